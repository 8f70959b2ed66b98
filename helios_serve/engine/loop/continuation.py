"""Videos that go on from a snapshot of another one, or of their own."""

import hashlib

import msgspec

from helios_serve.core.session import Session
from helios_serve.errors import InvalidRequestError
from helios_serve.messages import Snapshot
from helios_serve.model_config import CHUNK_FRAMES


def check_continuation(session: Session) -> None:
    """Raise InvalidRequestError unless the session's request can go on from its snapshot."""
    snapshot = session.snapshot
    if snapshot is None:
        return
    if session.params.num_chunks <= snapshot.chunk:
        raise InvalidRequestError(
            f"got num_frames {session.params.num_frames}, expected more than the "
            f"{snapshot.chunk * CHUNK_FRAMES} that there are already",
            param="num_frames",
        )
    params = session.params
    if (params.width, params.height) != (snapshot.width, snapshot.height):
        raise InvalidRequestError(
            f"got size {params.width}x{params.height}, expected {snapshot.width}x{snapshot.height} "
            "as in the video to go on from",
            param="size",
        )


def fork_snapshots(snapshot: Snapshot, seed: int, count: int) -> list[Snapshot]:
    """The same history `count` times, each with a generator of its own behind it."""
    return [
        msgspec.structs.replace(snapshot, reseed=child_seed(seed, snapshot.chunk, index))
        for index in range(count)
    ]


def child_seed(seed: int, chunk: int, index: int) -> int:
    """63 bits that depend on all three, and look like none of them."""
    digest = hashlib.blake2b(f"{seed}:{chunk}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
