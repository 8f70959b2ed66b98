"""Conversion of stored jobs to the API's video objects."""

from helios_serve.engine.requests.progress import Progress
from helios_serve.errors import without_paths
from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.service.protocol import Video, VideoError, WireStatus
from helios_serve.store.job_repair import DAMAGED
from helios_serve.store.jobs import StoredJob


def video_object(
    job: StoredJob, progress: Progress | None, retention: float | None = None
) -> Video:
    """Return a job as an API video.

    Args:
        job: The stored job.
        progress: The engine's progress; None if the engine does not run the job.
        retention: Seconds for which finished videos are kept; None: forever.
    """
    params, chunks = job.request.params, job.next_chunk - job.first_chunk
    frames = job.next_chunk * CHUNK_FRAMES if job.is_endless else params.num_frames
    width, height = job.request.shown_size or (params.width, params.height)
    status = wire_status(job)
    if status == "queued" and progress is not None and progress.queue_position is None:
        status = "in_progress"  # a worker has it; the store says so only after the first chunk
    is_complete = job.status == "completed"
    return Video(
        id=job.id,
        model=job.request.model or "",
        status=status,
        progress=percent_done(job),
        created_at=int(job.created_at),
        completed_at=int(job.completed_at) if job.completed_at and is_complete else None,
        expires_at=int(job.completed_at + retention) if job.completed_at and retention else None,
        error=video_error(job),
        prompt=job.request.prompt,
        remixed_from_video_id=job.request.parent if job.request.relation == "remix" else None,
        seconds=f"{frames / params.fps:g}",
        size=f"{width}x{height}",
        num_frames=None if job.is_endless else frames,
        fps=params.fps,
        seed=params.seed,
        phase=status if progress is None else progress.phase,
        chunks_done=job.next_chunk if job.is_endless else chunks,
        num_chunks=None if job.is_endless else job.num_chunks,
        parent_video_id=job.request.parent,
        relation=job.request.relation,
        queue_position=None if progress is None else progress.queue_position,
        eta_seconds=rounded_eta(progress),
        inference_time_s=inference_seconds(job),
    )


def rounded_eta(progress: Progress | None) -> float | None:
    """Return the estimated seconds to the end, in tenths; None if there is no estimate."""
    if progress is None or progress.eta_seconds is None:
        return None
    return round(progress.eta_seconds, 1)


def inference_seconds(job: StoredJob) -> float | None:
    """Return the seconds from acceptance to the end; None for a job that has not ended."""
    if job.completed_at is None:
        return None
    return round(job.completed_at - job.created_at, 3)


def server_timing(job: StoredJob) -> str | None:
    """Return the value of the header `Server-Timing`: milliseconds of a job in each stage.

    `queue`, `encode`, `denoise` and `decode` are StageSeconds of the finished chunks; `total` is
    the time from acceptance to the end, or to the last change. None without a finished
    chunk, and for jobs of earlier versions. Source: W3C Server Timing.
    """
    if job.spent is None or not job.chunks:
        return None
    total = (job.completed_at or job.updated_at) - job.created_at
    parts = job.spent._asdict() | {"total": total}
    return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in parts.items())


def percent_done(job: StoredJob) -> int:
    """Return the part of the chunks that can be read, as 0 to 100; 100 only for completed videos.

    Chunks that a fork has in common with its parent do not count.
    """
    if job.status == "completed":
        return 100
    return min(99, 100 * len(job.chunks) // (job.num_chunks - job.first_chunk))


def wire_status(job: StoredJob) -> WireStatus:
    """Return the API's status.

    A cancelled job is "failed": clients keep polling on unknown statuses.
    """
    return "failed" if job.status == "cancelled" else job.status


def video_error(job: StoredJob) -> VideoError | None:
    """Return why a video is not complete, or None."""
    if job.status == "cancelled":
        return VideoError("cancelled", "the video was cancelled; its finished chunks are kept")
    if job.status == "failed":
        code = "damaged" if job.error == DAMAGED else "generation_failed"
        return VideoError(code, without_paths(job.error or "the video could not be generated"))
    return None
