"""Checks inside vLLM-Omni's process, run in its environment, that cannot be made from outside.

python omni_program.py latents MODEL OUTPUT    latents of three requests made together
python omni_program.py abort MODEL OUTPUT      how an aborted request's blocks are freed
python omni_program.py faults MODEL OUTPUT     how requests end that share a call with failing ones
"""

import asyncio
import json
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from vllm_omni.diffusion.data import DiffusionRequestAbortedError, OmniDiffusionConfig
from vllm_omni.diffusion.diffusion_engine import DiffusionEngine
from vllm_omni.diffusion.request import OmniDiffusionRequest
from vllm_omni.diffusion.sched.interface import (
    CachedRequestData,
    DiffusionSchedulerOutput,
    NewRequestData,
)
from vllm_omni.entrypoints.async_omni import AsyncOmni
from vllm_omni.inputs.data import OmniDiffusionSamplingParams

from helios_serve.core.scheduler import Scheduler
from helios_serve.engine.launch import launch
from helios_serve.engine.requests.chunk_stream import VideoChunk
from helios_serve.integrations import host, vllm_omni
from helios_serve.integrations.vllm_omni.executor import HeliosExecutor
from helios_serve.integrations.vllm_omni.session import OmniSession
from helios_serve.messages import SchedulerOutput

FOLDER = Path(vllm_omni.__file__).parent
REQUESTS = {99: (64, 64), 66: (128, 64), 198: (64, 64)}
"""Width and height of each request, by its number of frames, which is also its seed."""
PATIENCE = 60.0


def sampling(frames: int, width: int, height: int, **options: Any) -> OmniDiffusionSamplingParams:
    return OmniDiffusionSamplingParams(
        num_frames=frames,
        width=width,
        height=height,
        seed=frames,
        extra_args={"steps": [1, 1, 1]},
        **options,
    )


async def latents(model: str, output: Path) -> None:
    vllm_omni.register()
    omni = AsyncOmni(model=model, deploy_config=str(FOLDER / "helios.yaml"))

    async def make(frames: int) -> torch.Tensor:
        params = sampling(frames, *REQUESTS[frames], return_trajectory_latents=True)
        outputs = omni.generate(
            prompt={"prompt": "a dog"}, request_id=str(frames), sampling_params_list=[params]
        )
        return torch.cat([chunk.latents async for chunk in outputs], dim=2)

    try:
        made = await asyncio.gather(*map(make, REQUESTS))
    finally:
        omni.shutdown()
    torch.save(dict(zip(REQUESTS, made, strict=True)), output)


class Steps:
    """Records what is in use after every step. Plans without steps only close sessions."""

    def __init__(self) -> None:
        self.used: list[int] = []
        self._has_steps: deque[bool] = deque()

    def plan(self, _worker: str, plan: SchedulerOutput, _scheduler: object) -> None:
        self._has_steps.append(bool(plan.scheduled_steps))

    def steps(self, _worker: str, _event: object, scheduler: Scheduler) -> None:
        if self._has_steps.popleft():
            self.used.append(scheduler.stats().used_blocks)

    def task(self, *_: object) -> None: ...
    def rendered(self, *_: object) -> None: ...
    def death(self, *_: object) -> None: ...


async def abort(model: str, output: Path) -> None:
    steps = Steps()

    def watched(*arguments: Any, **options: Any) -> Any:
        core = launch(*arguments, **options)
        core.observers.add(steps)
        return core

    config = OmniDiffusionConfig(
        model=model,
        model_class_name="HeliosPyramidPipeline",
        engine_backend="helios_serve.integrations.vllm_omni.HeliosEngine",
        distributed_executor_backend="helios_serve.integrations.vllm_omni.HeliosExecutor",
        streaming_output=True,
        step_execution=True,
        max_num_seqs=4,
    )
    with mock.patch.object(host, "launch", watched):
        engine = DiffusionEngine.make_engine(config)
    request = OmniDiffusionRequest({"prompt": "a dog"}, sampling(6600, 64, 64), "long")
    heard = []
    try:
        async for chunk in engine.step_streaming(request):
            heard.append(chunk[0].finished)
            if len(heard) == 1:
                engine.abort("long")
                begun = len(steps.used)
    except DiffusionRequestAbortedError:
        heard.append("aborted")
    deadline = time.monotonic() + PATIENCE
    while engine.executor.host.stats().scheduler.used_blocks and time.monotonic() < deadline:
        await asyncio.sleep(0.001)
    report = {
        "heard": heard,
        "steps": len(steps.used) - begun,
        "used_before": max(steps.used),
        "used_behind": engine.executor.host.stats().scheduler.used_blocks,
    }
    engine.close()
    output.write_text(json.dumps(report))


class Faults:
    """Injects unexpected errors: in a chunk's future, and in its conversion."""

    def __init__(self) -> None:
        self._next, self._output = host.HostedVideo._next, OmniSession.output

    async def next(self, video: host.HostedVideo) -> VideoChunk | None:
        if video.request_id.startswith("no-chunk"):
            raise KeyError("lost")
        return await self._next(video)

    def output(self, session: OmniSession, chunk: VideoChunk) -> Any:
        if session.request.request_id.startswith("no-memory"):
            raise MemoryError("out of memory")
        return self._output(session, chunk)


def scheduled(names: list[str], *, are_new: bool) -> DiffusionSchedulerOutput:
    """Return a call with these requests. The one called `odd-size` has an unsupported size."""
    sizes = {"odd-size": (100, 64)}
    new = [
        NewRequestData(
            name,
            OmniDiffusionRequest(
                {"prompt": "a dog"}, sampling(66, *sizes.get(name[:8], (64, 64))), name
            ),
        )
        for name in names
    ]
    return DiffusionSchedulerOutput(
        step_id=0,
        scheduled_new_reqs=new if are_new else [],
        scheduled_cached_reqs=CachedRequestData([] if are_new else names),
        finished_req_ids=set(),
        num_running_reqs=len(names),
        num_waiting_reqs=0,
    )


async def faults(model: str, output: Path) -> None:
    """Make both kinds of calls for several requests, each with one valid request."""
    kinds = ("sound", "no-chunk", "no-memory", "odd-size")
    executor = HeliosExecutor(OmniDiffusionConfig(model=model, max_num_seqs=8))
    fault = Faults()
    ended: dict[str, Any] = {}
    with (
        mock.patch.object(host.HostedVideo, "_next", lambda video: fault.next(video)),
        mock.patch.object(OmniSession, "output", lambda *arguments: fault.output(*arguments)),
    ):
        names = [f"{kind}-batch" for kind in kinds]
        made = executor.execute_batch(scheduled(names, are_new=True))
        ended |= {name: made[name].result for name in names}
        names, are_new = [f"{kind}-step" for kind in kinds], True
        while names:
            made = executor.execute_step(scheduled(names, are_new=are_new))
            ended |= {name: made[name].result for name in names if made[name].finished}
            names, are_new = [name for name in names if name not in ended], False
    left = list(executor.sessions)
    executor.shutdown()
    results = {name: [result.error, result.error_status_code] for name, result in ended.items()}
    frames = {
        name: list(result.media.video.tensor.shape)
        for name, result in ended.items()
        if result.media is not None
    }
    output.write_text(json.dumps({"results": results, "frames": frames, "left": left}))


if __name__ == "__main__":
    program = {"latents": latents, "abort": abort, "faults": faults}[sys.argv[1]]
    asyncio.run(program(sys.argv[2], Path(sys.argv[3])))
