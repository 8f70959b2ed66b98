"""Asynchronous engines over built-in models in this process, and what is read from them."""

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
"""Seconds after which something that should have come has not come."""
NUM_BLOCKS = 500

Result = TypeVar("Result")


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a test's coroutine, which may not take for ever."""
    return asyncio.run(asyncio.wait_for(main, PATIENCE))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does; `run` sees to it that this ends."""
    while not condition():
        await asyncio.sleep(0.005)


def request(name: str, frames: int = 66, **options: Any) -> VideoRequest:
    """A request for a small video; `options` are those of its parameters or its own."""
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
    """A model whose pictures are its latents' colours: decoding would take most of a test."""
    model = load_model(name)
    assert model.vae is not None
    model.vae.decode = colours  # type: ignore[method-assign]
    return model


def colours(latents: Tensor) -> Tensor:
    """Latents (16, 9, h, w) -> frames (33, 8 h, 8 w, 3), each latent frame a few times."""
    pixels = (latents[:3].float().sigmoid() * 255).to(torch.uint8).permute(1, 2, 3, 0)
    frames = pixels[(torch.arange(33) + 3) // 4]
    return frames.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)


def core(
    model: str = "nano", *, workers: int = 1, scheduling: SchedulingConfig | None = None
) -> EngineCore:
    """An engine with threads for workers."""
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
    """All chunks of a request that was submitted."""
    return [chunk async for chunk in engine.watch(name, from_chunk)]


async def make(engine: AsyncEngine, wanted: VideoRequest) -> list[VideoChunk]:
    """All chunks of a request that was not."""
    return [chunk async for chunk in engine.generate(wanted)]


def fragments(chunks: Iterable[VideoChunk]) -> list[bytes]:
    """What chunks are made of; two of them are equal where every pixel is."""
    return [chunk.segment.fragment for chunk in chunks if chunk.segment is not None]


def undisturbed(wanted: VideoRequest) -> list[bytes]:
    """The fragments of a request that an engine has for itself, from beginning to end."""
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
    """When each frame is shown, in frames from the video's beginning."""
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
    """An engine that ends with nothing left over."""
    async with AsyncEngine({"nano": own, **others}, store) as engine:
        yield engine
        await idle(engine)
        assert not any(
            each.has_unfinished or each.scheduler.sessions for each in engine.models.cores.values()
        )


async def idle(engine: AsyncEngine) -> None:
    """Wait until neither an engine nor a worker holds anything of any request."""
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
    """What a process does with its data folder: its whole life."""
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
