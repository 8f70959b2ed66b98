"""Streams of videos that are read from the store."""

import asyncio
from functools import partial

from helios_serve.engine.requests.chunk_stream import ChunkStream, VideoChunk
from helios_serve.errors import InvalidRequestError, RequestFailedError
from helios_serve.messages import Segment
from helios_serve.store.jobs import StoredJob
from helios_serve.store.video_store import VideoStore

CANCELLED = "the request was cancelled"


async def stored_stream(store: VideoStore, request_id: str) -> ChunkStream:
    """Return the stored chunks of a request that has ended or waits to be resumed.

    Raises InvalidRequestError for an unknown request.
    """
    job = await asyncio.to_thread(store.job, request_id)
    if job is None:
        raise unknown(request_id)
    fetch = partial(fetch_stored, store, request_id)
    stream = ChunkStream(request_id, job.first_chunk, job.next_chunk, fetch)
    stream.end(why_incomplete(job))
    return stream


def unknown(request_id: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"got request id {request_id!r}, expected one that was accepted", param="request_id"
    )


def why_incomplete(job: StoredJob) -> str | None:
    """Return the error for readers after the last committed chunk; None if no chunk is missing."""
    if job.status == "cancelled":
        return CANCELLED
    if job.is_finished or job.next_chunk == job.num_chunks:
        return job.error
    return f"the video has stopped at chunk {job.next_chunk}; it resumes after a restart"


async def fetch_stored(store: VideoStore, request_id: str, index: int) -> VideoChunk:
    """Return a committed chunk. Raises RequestFailedError if it was deleted meanwhile."""
    header, fragment = await asyncio.to_thread(
        lambda: (store.header(request_id), store.fragment(request_id, index))
    )
    if header is None or fragment is None:
        raise RequestFailedError(f"chunk {index} of {request_id!r} was deleted")
    return VideoChunk(index, segment=Segment(header, fragment))
