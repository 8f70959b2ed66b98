"""Asynchronous engines with built-in models in this process, and helpers that read from them."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, closing
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import av
import msgspec
import torch
from torch import Tensor

from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.engine.requests.chunk_stream import VideoChunk
from helios_serve.messages import Segment
from helios_serve.model_executor.executor.inline import InlineExecutor
from helios_serve.model_executor.loader import LoadedModel
from helios_serve.model_executor.worker.worker import Worker
from helios_serve.options.engine import EngineConfig
from helios_serve.options.sampling import SamplingParams
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.options.workers import WorkerConfig
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest
from tests.support.models import load_model

PATIENCE = 60.0
"""Timeout of waits, in seconds."""
NUM_BLOCKS = 500

Result = TypeVar("Result")


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a test's coroutine, with a timeout."""
    return asyncio.run(asyncio.wait_for(main, PATIENCE))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until another thread has made `condition` true. The timeout is that of `run`."""
    while not condition():
        await asyncio.sleep(0.005)


def request(name: str, frames: int = 66, **options: Any) -> VideoRequest:
    """Return a request for a small video. `options` are fields of the request or its parameters."""
    own = {key: value for key, value in options.items() if key in VideoRequest.__struct_fields__}
    params = {key: value for key, value in options.items() if key not in own}
    small: dict[str, Any] = {"width": 64, "height": 64, "seed": 3, "steps": (1, 1, 1)}
    return VideoRequest(
        request_id=name,
        params=SamplingParams(num_frames=frames, **small | params),
        **{"prompt": "a dog"} | own,
    )


@cache
def quick_model(name: str = "nano") -> LoadedModel:
    """Return a model that shows latents as colours, because decoding would take most of a test."""
    model = load_model(name)
    assert model.vae is not None
    model.vae.render = colours  # type: ignore[assignment, method-assign]
    return model


def colours(latents: Tensor) -> Tensor:
    """Latents (16, 9, h, w) -> frames (33, 8 h, 8 w, 3), with latent frames repeated."""
    pixels = (latents[:3].float().sigmoid() * 255).to(torch.uint8).permute(1, 2, 3, 0)
    frames = pixels[(torch.arange(33) + 3) // 4]
    return frames.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)


def core(
    model: str = "nano", *, workers: int = 1, scheduling: SchedulingConfig | None = None
) -> EngineCore:
    """Return an engine whose workers are threads."""
    loaded = quick_model(model)
    executor = InlineExecutor(
        lambda _, emit: Worker(loaded, emit, history_blocks=NUM_BLOCKS, batch_invariant=True)
    )
    config = EngineConfig(
        workers=(WorkerConfig(model=model, device="cpu"),) * workers,
        scheduling=scheduling or SchedulingConfig(),
    )
    return EngineCore(executor, loaded.config, config)


async def read(engine: AsyncEngine, name: str, from_chunk: int | None = None) -> list[VideoChunk]:
    """Return all chunks of a submitted request."""
    return [chunk async for chunk in engine.watch(name, from_chunk)]


async def make(engine: AsyncEngine, wanted: VideoRequest) -> list[VideoChunk]:
    """Submit a request, and return all its chunks."""
    return [chunk async for chunk in engine.generate(wanted)]


def fragments(chunks: Iterable[VideoChunk]) -> list[bytes]:
    """Return the MP4 fragments of chunks, which are equal if all pixels are."""
    return [chunk.segment.fragment for chunk in chunks if chunk.segment is not None]


def undisturbed(wanted: VideoRequest) -> list[bytes]:
    """Return the fragments of a request that an engine runs alone."""
    plain = msgspec.structs.replace(
        wanted, request_id="undisturbed", output="segment", max_lead_chunks=None
    )
    return list(_undisturbed(msgspec.msgpack.encode(plain)))


@cache
def _undisturbed(encoded: bytes) -> tuple[bytes, ...]:
    wanted = msgspec.msgpack.decode(encoded, type=VideoRequest)

    async def main() -> list[VideoChunk]:
        async with AsyncEngine({"": core(wanted.model or "nano")}) as engine:
            return await make(engine, msgspec.structs.replace(wanted, model=None))

    return tuple(fragments(run(main())))


def frame_numbers(segments: Iterable[Segment], fps: int = 24) -> list[float]:
    """Return the time at which each frame is shown, as a frame number of the video."""
    parts = list(segments)
    data = parts[0].header + b"".join(part.fragment for part in parts)
    with av.open(io.BytesIO(data), "r") as container:
        return [
            float(frame.pts * frame.time_base * fps)
            for frame in container.decode(video=0)
            if frame.pts is not None and frame.time_base is not None
        ]


@asynccontextmanager
async def engine_of(
    own: EngineCore, store: VideoStore | None = None, **others: EngineCore
) -> AsyncIterator[AsyncEngine]:
    """Yield an engine, and assert at the end that no request has left anything in it."""
    async with AsyncEngine({"nano": own, **others}, store) as engine:
        yield engine
        await idle(engine)
        assert not any(
            each.has_unfinished or each.scheduler.sessions for each in engine.models.cores.values()
        )


async def idle(engine: AsyncEngine) -> None:
    """Wait until neither the engine nor its workers hold anything of any request."""
    held = 1
    while held:
        stats, reports = (
            (await engine.models.stats()).values(),
            (await engine.models.workers()).values(),
        )
        held = sum(each.encoding + each.decoding + each.scheduler.waiting for each in stats)
        held += sum(each.scheduler.used_blocks + each.scheduler.used_text_rows for each in stats)
        held += sum(each.tasks + each.sessions for several in reports for each in several)


def indices(chunks: list[VideoChunk]) -> list[int]:
    return [chunk.index for chunk in chunks]


@asynccontextmanager
async def opened(
    folder: Path, own: EngineCore | None = None, model: str = "nano"
) -> AsyncIterator[AsyncEngine]:
    """Yield an engine with the store of a data folder, and close both, as a process does."""
    with closing(VideoStore(folder)) as store:
        async with AsyncEngine({model: own or core(model)}, store) as engine:
            yield engine


def store_of(engine: AsyncEngine) -> VideoStore:
    assert engine.store is not None
    return engine.store


def job_status(engine: AsyncEngine, name: str) -> str | None:
    job = store_of(engine).job(name)
    return None if job is None else job.status


def num_stored(engine: AsyncEngine, name: str) -> int:
    return len(store_of(engine).segments(name))
