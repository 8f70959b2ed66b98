"""What a plan leaves on the device, on its way to the engine."""

from collections.abc import Iterable
from typing import NamedTuple

from helios_serve.errors import HeliosError, describe_error
from helios_serve.logger import logger
from helios_serve.messages import ChunkResult, RunnerOutput, SessionFailure, Snapshot
from helios_serve.model_executor.streams import HostCopy
from helios_serve.model_executor.worker.tensors import as_bytes, as_data, dtype_name
from helios_serve.size import Size


class ChunkEnd(NamedTuple):
    """A finished chunk of a session, as it is copied to the host.

    `copy` holds whether the latents are finite, the latents (1, 16, 9, h, w), and the history's
    anchor and frames as rows of blocks. `num_frames` are in the history, `rng` is the generator's
    state after the chunk, and `size` the video's.
    """

    session_id: str
    chunk: int
    copy: HostCopy
    num_frames: int
    rng: bytes
    size: Size

    def result(self) -> ChunkResult:
        """Wait for the copy. Raises HeliosError if the latents are not finite."""
        is_finite, latents, anchor, frames = self.copy.wait()
        if not is_finite:
            raise HeliosError(f"the latents of chunk {self.chunk} contain NaN or infinity")
        snapshot = Snapshot(
            chunk=self.chunk + 1,
            rng=self.rng,
            anchor=as_bytes(anchor),
            frames=as_bytes(frames),
            num_frames=self.num_frames,
            dtype=dtype_name(frames.dtype),
            height=self.size.height,
            width=self.size.width,
        )
        return ChunkResult(self.session_id, self.chunk, as_data(latents), snapshot)


class LaunchedPlan(NamedTuple):
    """A plan whose work was launched, and that the device may not have done yet."""

    ends: tuple[ChunkEnd, ...]
    failures: tuple[SessionFailure, ...]
    forward_seconds: float

    def wait(self) -> RunnerOutput:
        """Return the plan's output. Waits for the device only where the plan finished a chunk.

        A chunk that cannot be returned fails its session; the engine then closes that.
        """
        failures = list(self.failures)
        chunks = tuple(results(self.ends, failures))
        return RunnerOutput(chunks, tuple(failures), self.forward_seconds)


def results(ends: Iterable[ChunkEnd], failures: list[SessionFailure]) -> Iterable[ChunkResult]:
    """Yield the results of chunks; adds those that fail to `failures`."""
    for end in ends:
        try:
            yield end.result()
        except Exception as error:  # must not affect the other sessions
            failures.append(failure_of(end.session_id, error))


def failure_of(session_id: str, error: Exception) -> SessionFailure:
    """Return the failure of a session; logs errors that are not the product's own."""
    if not isinstance(error, HeliosError):
        logger.error("session %s failed", session_id, exc_info=error)
    return SessionFailure(session_id, describe_error(error))
