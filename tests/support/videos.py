"""Runs the same request with diffusers' pipeline and with our engine, to compare latents."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from helios_serve.core.session import Session
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.events import (
    ChunkReady,
    PromptSwitched,
    RequestFailed,
    RequestFinished,
)
from helios_serve.messages import EncodeTask, Snapshot, WorkerCommand
from helios_serve.model_executor.executor.abstract import Received
from helios_serve.model_executor.executor.inbox import Inbox
from helios_serve.model_executor.loader import LoadedModel
from helios_serve.model_executor.worker.commands import Commands
from helios_serve.model_executor.worker.model_runner import ModelRunner
from helios_serve.model_executor.worker.tasks import InputEncoder
from helios_serve.model_executor.worker.tensors import as_tensor
from helios_serve.model_executor.worker.worker import Worker
from helios_serve.options.sampling import PromptSwitch, SamplingParams
from helios_serve.options.workers import WorkerConfig
from helios_serve.video_request import Frames, VideoRequest, prompt_weights

PROMPT = "a dog runs over the green hill"
NEGATIVE = "static, blurred"
NUM_BLOCKS = 4096


@dataclass(frozen=True)
class Case:
    """One video with parameters for both sides. `options` are passed to diffusers only."""

    variant: str
    task: str = "t2v"
    height: int = 64
    width: int = 128
    chunks: int = 3
    steps: tuple[int, ...] = ()
    guidance: float = 5.0
    prompt: str = PROMPT
    switches: tuple[PromptSwitch, ...] = ()
    seed: int = 7
    video_frames: int = 70
    options: dict[str, Any] = field(default_factory=dict)

    def with_defaults(self) -> "Case":
        default = {"base": (4,), "mid": (3, 2, 2), "distilled": (2, 2, 2)}[self.variant]
        guidance = 1.0 if self.variant == "distilled" else self.guidance
        return replace(self, steps=self.steps or default, guidance=guidance)

    @property
    def params(self) -> SamplingParams:
        renamed = {
            "is_amplify_first_chunk": "amplify_first_chunk",
            "is_skip_first_chunk": "skip_first_chunk",
            "add_noise_to_image_latents": "add_input_noise",
        }
        options = {renamed.get(name, name): value for name, value in self.options.items()}
        return SamplingParams(
            width=self.width,
            height=self.height,
            num_frames=33 * self.chunks,
            seed=self.seed,
            steps=self.steps,
            guidance_scale=self.guidance,
            negative_prompt=NEGATIVE,
            switches=self.switches,
            **options,
        )

    @property
    def image(self) -> np.ndarray:
        first: np.ndarray = self._pixels(1)[0]
        return first

    @property
    def video(self) -> np.ndarray:
        return self._pixels(self.video_frames)

    def _pixels(self, frames: int) -> np.ndarray:
        shape = (frames, self.height, self.width, 3)
        return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)

    def request(self, request_id: str = "session", **extra: Any) -> VideoRequest:
        image, video = None, None
        if self.task == "i2v":
            image = Frames(self.image.tobytes(), 1, self.height, self.width)
        if self.task == "v2v":
            video = Frames(self.video.tobytes(), self.video_frames, self.height, self.width)
        return VideoRequest(
            request_id=request_id,
            prompt=self.prompt,
            params=self.params,
            image=image,
            video=video,
            **extra,
        )


def diffusers_latents(pipeline: Any, case: Case) -> Tensor:
    """Return the latents that diffusers returns with output_type="latent"."""
    options = dict(case.options)
    if case.task == "i2v":
        options["image"] = Image.fromarray(case.image)
    if case.task == "v2v":
        options["video"] = [Image.fromarray(frame) for frame in case.video]
    if case.variant == "base":
        options["num_inference_steps"] = case.steps[0]
    else:
        options["pyramid_num_inference_steps_list"] = list(case.steps)
    if case.switches:
        options["callback_on_step_end"] = prompt_switcher(pipeline, case)
        options["callback_on_step_end_tensor_inputs"] = ["prompt_embeds"]
    latents: Tensor = pipeline(
        case.prompt,
        negative_prompt=NEGATIVE,
        height=case.height,
        width=case.width,
        num_frames=33 * case.chunks,
        guidance_scale=case.guidance,
        generator=torch.Generator().manual_seed(case.seed),
        output_type="latent",
        **options,
    ).frames
    return latents


def prompt_switcher(pipeline: Any, case: Case) -> Any:
    """Return a step callback that changes the prompt's embedding at chunk edges."""
    done = 0

    def on_step_end(_: Any, __: int, ___: Any, ____: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        done += 1
        chunk, rest = divmod(done, sum(case.steps))
        if rest:
            return {}
        mix = prompt_weights(case.prompt, case.params, chunk)

        def encode(text: str) -> Any:
            return pipeline.encode_prompt(
                text, do_classifier_free_guidance=False, max_sequence_length=512
            )[0]

        return {"prompt_embeds": sum(item.weight * encode(item.prompt) for item in mix)}

    return on_step_end


def run_sessions(
    model: LoadedModel, requests: list[VideoRequest], *, batch_invariant: bool = False
) -> dict[str, Tensor]:
    """Run all requests together, and return their latents by request id."""
    executor = SteppedExecutor(model, NUM_BLOCKS, batch_invariant=batch_invariant)
    engine = EngineCore(executor, model.config)
    for request in requests:
        engine.add_request(request)
    latents, failures = finish(engine)
    assert not failures
    assert not executor.runner.sessions
    executor.shutdown()
    return latents


def finish(engine: EngineCore) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Run all requests to their end. Returns latents of completed ones, and messages of others."""
    parts: dict[str, list[Tensor]] = {}
    failures: dict[str, str] = {}
    finished: set[str] = set()
    while engine.has_unfinished:
        for event in engine.step():
            if isinstance(event, ChunkReady):
                own = parts.setdefault(event.request_id, [])
                if event.input_latents is not None:
                    own.append(as_tensor(event.input_latents))
                own.append(as_tensor(event.latents))
            elif isinstance(event, RequestFailed):
                failures[event.request_id] = event.message
            elif isinstance(event, RequestFinished):
                finished.add(event.request_id)
        engine.scheduler.check_integrity()
    for _ in range(4):  # the last plans only close sessions
        engine.step(0)
    return {name: torch.cat(parts[name], dim=2) for name in finished}, failures


class Viewer:
    """Steps an engine, and records its events."""

    def __init__(self, engine: EngineCore) -> None:
        self.engine = engine
        self.chunks: dict[str, list[ChunkReady]] = {}
        self.switches: dict[str, list[PromptSwitch | None]] = {}
        self.failures: dict[str, str] = {}

    def step(self) -> None:
        for event in self.engine.step():
            if isinstance(event, ChunkReady):
                self.chunks.setdefault(event.request_id, []).append(event)
            elif isinstance(event, PromptSwitched):
                self.switches.setdefault(event.request_id, []).append(event.switch)
            elif isinstance(event, RequestFailed):
                self.failures[event.request_id] = event.message
        self.engine.scheduler.check_integrity()

    def wait(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not until():
            assert time.monotonic() < deadline, "timed out"
            self.step()

    def finish(self) -> None:
        """Run until all requests have ended and workers hold nothing."""
        self.wait(lambda: not self.engine.has_unfinished)
        self.wait(lambda: not self.engine.scheduler.has_unfinished)

    def snapshot(self, request_id: str, chunk: int) -> Snapshot:
        """Return the snapshot after a chunk of a request."""
        (ready,) = (item for item in self.chunks[request_id] if item.chunk == chunk)
        return ready.snapshot

    def latents(self, request_id: str, chunks: range) -> Tensor:
        """Return the latents of a request. Asserts that each chunk was reported once, in order."""
        own = self.chunks[request_id]
        assert [item.chunk for item in own] == list(chunks)
        return torch.cat([as_tensor(item.latents) for item in own], dim=2)


class SteppedExecutor:
    """An executor of one worker that runs a plan at each poll, so that a test decides when."""

    def __init__(
        self,
        model: LoadedModel,
        num_blocks: int,
        *,
        batch_invariant: bool = False,
        continuous_decode: bool = False,
    ) -> None:
        self._inbox = Inbox()
        self.commands = Commands()
        self.worker = Worker(
            model,
            lambda event: self._inbox.put("stepped", event),
            history_blocks=num_blocks,
            batch_invariant=batch_invariant,
            continuous_decode=continuous_decode,
        )
        self._beside = ExitStack()

    @property
    def runner(self) -> ModelRunner:
        assert self.worker.runner is not None
        return self.worker.runner

    def start_worker(self, config: WorkerConfig) -> str:  # noqa: ARG002
        self._beside.enter_context(self.worker.task_threads(self.commands))
        self._inbox.put("stepped", self.worker.ready)
        return "stepped"

    def submit(self, worker_id: str, command: WorkerCommand) -> None:  # noqa: ARG002
        self.commands.put(command)

    def poll(self, timeout: float) -> list[Received]:
        if not self.commands.plans.empty():
            plan = self.commands.plans.get()
            assert plan is not None
            self.worker.execute(plan)
        return self._inbox.take(timeout)

    def wake(self) -> None:
        self._inbox.wake()

    def where(self, worker_id: str) -> str:
        return worker_id

    def kill_worker(self, worker_id: str) -> None:  # noqa: ARG002
        raise AssertionError("no worker must be killed here")

    def stop_worker(self, worker_id: str) -> None:  # noqa: ARG002
        self.shutdown()

    def shutdown(self) -> None:
        self.commands.close()
        self._beside.close()


def ready_session(model: LoadedModel, request: VideoRequest) -> Session:
    """Return a session whose prompts and reference are encoded."""
    assert model.text_encoder is not None
    assert model.vae is not None
    session = Session(request, request.resolve(model.config), model.config, arrival=0.0)
    reference = request if session.needs_seed else None
    limit = request.params.max_sequence_length
    task = EncodeTask(request.request_id, session.prompts.missing, limit, reference)
    encoded = InputEncoder(model.text_encoder, model.vae).encode(task)
    for prompt in encoded.prompts:
        session.prompts.learn(prompt)
    if encoded.snapshot is not None:
        session.seed(encoded.snapshot)
    return session


def our_latents(model: LoadedModel, case: Case, **extra: Any) -> Tensor:
    """Return the latents of a request that runs alone, preceded by the input's, as in diffusers."""
    request = case.request(keep_input_latents=case.task != "t2v", **extra)
    return run_sessions(model, [request])[request.request_id]
