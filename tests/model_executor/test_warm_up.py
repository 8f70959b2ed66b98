"""The chunks that a worker generates at its start, if kernels are compiled at first use."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from helios_serve.engine.preflight import check_model
from helios_serve.errors import DeviceError, InvalidRequestError
from helios_serve.kernels.backend import KernelChoice
from helios_serve.messages import WorkerEvent, WorkerReady
from helios_serve.model_config import Geometry
from helios_serve.model_executor.loader import LoadedModel
from helios_serve.model_executor.models.text_encoder import TextEncoder
from helios_serve.model_executor.models.vae import Vae
from helios_serve.model_executor.worker import warm_up as module
from helios_serve.model_executor.worker.commands import Commands
from helios_serve.model_executor.worker.model_runner import ModelRunner
from helios_serve.model_executor.worker.warm_up import warm_up
from helios_serve.model_executor.worker.worker import Worker, load_rank
from helios_serve.options.workers import WorkerConfig, WorkerGroup
from tests.support.models import load_model

FORWARDS = {"base": 2, "mid": 6, "distilled": 6}
"""Forwards of each batch: two steps per stage."""


def denoiser(folder: Path) -> LoadedModel:
    return load_model(str(folder), roles=["denoise"])


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the reference kernels were Triton's."""
    monkeypatch.setattr(module, "choose_kernels", lambda *_: KernelChoice("triton", "sdpa"))


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of segments of each forward."""
    packs: list[int] = []
    forward = ModelRunner._forward

    def counted(runner: ModelRunner, segments: list[object]) -> object:
        packs.append(len(segments))
        return forward(runner, segments)  # type: ignore[arg-type]

    monkeypatch.setattr(ModelRunner, "_forward", counted)
    return packs


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize("variant", FORWARDS)
def test_a_session_alone_and_two_together_are_denoised(
    variant: str, checkpoints: dict[str, Path], forwards: list[int]
) -> None:
    model = denoiser(checkpoints[variant])
    assert model.transformer is not None
    warm_up(model.transformer, model.config)
    branches = 1 if variant == "distilled" else 2
    count = FORWARDS[variant]
    assert forwards == [branches] * count + [2 * branches] * count


def test_nothing_is_done_where_nothing_is_compiled(
    checkpoints: dict[str, Path], forwards: list[int]
) -> None:
    model = denoiser(checkpoints["distilled"])
    assert model.transformer is not None
    warm_up(model.transformer, model.config)
    assert forwards == []


@pytest.mark.usefixtures("compiling")
def test_a_device_on_which_it_fails_is_refused(checkpoints: dict[str, Path]) -> None:
    model = denoiser(checkpoints["distilled"])
    assert model.transformer is not None
    model.transformer.proj_out.bias.fill_(torch.nan)
    with pytest.raises(DeviceError, match="got cpu, on which the warm-up failed: .* NaN"):
        warm_up(model.transformer, model.config)


def test_chunks_of_the_sizes_that_will_be_served_are_denoised(
    checkpoints: dict[str, Path], forwards: list[int]
) -> None:
    """Also where nothing is compiled."""
    model = denoiser(checkpoints["distilled"])
    assert model.transformer is not None
    warm_up(model.transformer, model.config, [Geometry(64, 64), Geometry(64, 128)])
    assert forwards == [1] * 2 * FORWARDS["distilled"]


class Threads:
    """Notes in which thread prompts are encoded, chunks decoded and events emitted, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, str]] = []
        for kind, name in ((TextEncoder, "encode"), (Vae, "render")):
            monkeypatch.setattr(kind, name, self._noting(getattr(kind, name), name))

    def note(self, what: str) -> None:
        self.seen.append((threading.current_thread().name, what))

    def _noting(self, method: Any, name: str) -> Any:
        def noted(*arguments: Any) -> Any:
            self.note(name)
            return method(*arguments)

        return noted


def test_side_threads_are_warm_before_the_worker_is_ready(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, commands = Threads(monkeypatch), Commands()
    config = WorkerConfig(
        model=str(checkpoints["distilled"]),
        device="cpu",
        history_blocks=100,
        warm_up_sizes=("64x64", "128x64"),
    )

    def emit(event: WorkerEvent) -> None:
        threads.note(type(event).__name__)
        commands.close()

    load_rank(config, emit).run(commands)
    assert threads.seen == [
        ("encoder", "encode"),
        ("decoder", "render"),
        ("decoder", "render"),
        (threading.current_thread().name, "WorkerReady"),
    ]


def test_a_decoder_that_continues_videos_is_warmed_up_for_their_later_chunks_too(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    had_state: list[bool] = []
    render = Vae.render

    def noting(vae: Vae, latents: Any, state: Any = None) -> Any:
        had_state.append(bool(state.frames))
        return render(vae, latents, state)

    monkeypatch.setattr(Vae, "render", noting)
    commands = Commands()
    config = WorkerConfig(
        model=str(checkpoints["distilled"]),
        device="cpu",
        roles=("decode",),
        warm_up_sizes=("64x64",),
        continuous_decode=True,
    )
    worker = load_rank(config, lambda _: commands.close())
    worker.run(commands)
    assert had_state == [False, True]
    assert worker.states is not None
    assert worker.states.num_bytes == 0


def test_a_chunk_that_cannot_be_decoded_fails_the_worker(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(Vae, "render", broken)
    model = load_model(str(checkpoints["distilled"]), roles=["decode"])
    worker = Worker(model, lambda _: None, warm_up_sizes=[Geometry(64, 64)])
    commands = Commands()
    with worker.task_threads(commands):
        with pytest.raises(DeviceError, match="the warm-up failed: decoding failed: .*NOT_SUPP"):
            worker.warm_up_tasks(commands)
        commands.close()


def test_a_worker_that_is_to_end_does_not_wait_for_its_warm_up(
    checkpoints: dict[str, Path],
) -> None:
    model = load_model(str(checkpoints["distilled"]), roles=["decode"])
    events: list[WorkerEvent] = []
    commands = Commands()
    commands.close()
    Worker(model, events.append, warm_up_sizes=[Geometry(64, 64)]).run(commands)
    assert [type(event) for event in events] == [WorkerReady]


@pytest.mark.parametrize(
    ("size", "message"),
    [("big", "got warm up size 'big', expected WIDTHxHEIGHT"), ("100x64", "got size 100x64")],
)
def test_sizes_are_checked_before_anything_is_loaded(
    size: str, message: str, checkpoints: dict[str, Path]
) -> None:
    config = WorkerConfig(model=str(checkpoints["distilled"]), warm_up_sizes=(size,))
    with pytest.raises(InvalidRequestError, match=message):
        load_rank(config, lambda _: None)
    with pytest.raises(InvalidRequestError, match=message):
        check_model(str(checkpoints["distilled"]), [WorkerGroup(config)], "local")
