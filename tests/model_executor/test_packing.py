"""Packed equals alone: a session's latents do not depend on the others in its batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helios_serve.core.scheduler import Scheduler
from helios_serve.model_executor.loader import LoadedModel
from helios_serve.model_executor.worker.model_runner import ModelRunner
from helios_serve.model_executor.worker.packed_batch import Job, PackedBatch
from helios_serve.model_executor.worker.worker import Worker
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.video_request import VideoRequest
from tests.support.lora_files import write_lora
from tests.support.tries import tries
from tests.support.videos import NUM_BLOCKS, Case, ready_session, run_sessions

FORWARD_TOLERANCE = 5e-6
SESSION_TOLERANCE = 1e-4
SIZES = [(64, 64), (64, 128), (128, 64), (128, 192)]
ODD_SIZES = [(48, 80), (80, 112)]
INVARIANCES = ((False, 1), (True, 1), (True, 2))
INVARIANCE = pytest.mark.parametrize(
    ("batch_invariant", "threads"), INVARIANCES, indirect=["threads"]
)
PROMPTS = ["waves rise", "a dog runs over the green hill", "x" * 40]


class Wish(NamedTuple):
    """One session of a random set, and the step at which it meets the others."""

    case: Case
    lora_scale: float | None
    steps_before: int


@st.composite
def wishes(draw: st.DrawFn, variant: str) -> Wish:
    height, width = draw(st.sampled_from(SIZES + ODD_SIZES * (variant == "base")))
    case = Case(
        variant,
        task=draw(st.sampled_from(["t2v", "i2v", "v2v"])),
        height=height,
        width=width,
        chunks=2,
        steps=(5,) if variant == "base" else (3, 1, 1),
        guidance=1.0 if variant == "distilled" else draw(st.sampled_from([1.0, 5.0])),
        prompt=draw(st.sampled_from(PROMPTS)),
        seed=draw(st.integers(0, 1000)),
    )
    return Wish(
        case,
        lora_scale=draw(st.sampled_from([None, 0.5, 1.0])),
        steps_before=draw(st.integers(2, 9)),
    )


@pytest.fixture(scope="module")
def lora_path(checkpoints: dict[str, Path], latent_model: Any, tmp_path_factory: Any) -> Path:
    model = latent_model(checkpoints["distilled"])
    return write_lora(tmp_path_factory.mktemp("lora") / "adapter.safetensors", model.transformer)


def job_of(wish: Wish, model: LoadedModel, lora: str) -> tuple[Job, ModelRunner]:
    """Return a session in the middle of its video, just before its next step."""
    scheduler = Scheduler(SchedulingConfig(), lambda: 0.0)
    worker = Worker(model, lambda _: None, history_blocks=NUM_BLOCKS)
    assert worker.runner is not None
    state = scheduler.add_worker("here", NUM_BLOCKS, worker.ready.text_rows)
    scale = wish.lora_scale
    extra: dict[str, Any] = {} if scale is None else {"lora": lora, "lora_scale": scale}
    session = ready_session(model, wish.case.request(**extra))
    scheduler.add_session(session)
    for _ in range(wish.steps_before):
        worker.runner.execute_model(scheduler.schedule(state))
    assert not session.is_planned
    (step,) = scheduler.schedule(state).scheduled_steps
    return worker.runner._prepare(step), worker.runner


@settings(
    max_examples=tries(4, 50),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param("base", marks=pytest.mark.slow),
        pytest.param("mid", marks=pytest.mark.slow),
        "distilled",
    ],
)
def test_a_packed_forward_equals_each_segment_alone(
    variant: str,
    data: st.DataObject,
    checkpoints: dict[str, Path],
    latent_model: Any,
    lora_path: Path,
) -> None:
    model = latent_model(checkpoints[variant])
    segments = []
    for wish in data.draw(st.lists(wishes(variant), min_size=2, max_size=4)):
        job, runner = job_of(wish, model, str(lora_path))
        segments += PackedBatch([job], model.config, runner.pool).segments
    packed = model.transformer(segments).split([len(segment.noise) for segment in segments])
    for segment, got in zip(segments, packed, strict=True):
        assert (got - model.transformer([segment])).abs().max() < FORWARD_TOLERANCE


def mixed_requests(variant: str, lora: str | None) -> list[VideoRequest]:
    steps = {"base": (3,), "mid": (3, 2, 2), "distilled": (2, 2, 2)}[variant]
    other = {"base": (5,), "mid": (1, 2, 1), "distilled": (1, 2, 3)}[variant]
    cases = [
        Case(variant, chunks=2, steps=steps),
        Case(variant, "i2v", height=128, width=64, chunks=1, steps=other, seed=1),
        Case(
            variant,
            "v2v",
            width=64,
            chunks=1,
            steps=other,
            guidance=1.0,
            prompt="waves rise",
            seed=2,
            video_frames=33,
        ),
        Case(variant, height=64, width=64, chunks=2, steps=steps, guidance=2.0, seed=3),
    ]
    requests = [
        case.with_defaults().request(f"session-{index}") for index, case in enumerate(cases)
    ]
    if lora is not None:
        requests.append(cases[0].with_defaults().request("with-lora", lora=lora))
    return requests


@pytest.mark.parametrize(
    ("batch_invariant", "threads", "variant"),
    [
        (True, 1, "base"),
        (True, 1, "mid"),
        *((*invariance, "distilled") for invariance in INVARIANCES),
        *(
            pytest.param(*invariance, variant, marks=pytest.mark.slow)
            for invariance in INVARIANCES
            for variant in ("base", "mid")
            if invariance != (True, 1)
        ),
    ],
    indirect=["threads"],
)
@pytest.mark.usefixtures("threads")
def test_sessions_together_equal_sessions_alone(
    variant: str,
    batch_invariant: bool,
    checkpoints: dict[str, Path],
    latent_model: Any,
    lora_path: Path,
) -> None:
    model = latent_model(checkpoints[variant])
    requests = mixed_requests(variant, str(lora_path))
    together = run_sessions(model, requests, batch_invariant=batch_invariant)
    for request in requests:
        alone = run_sessions(model, [request], batch_invariant=batch_invariant)
        error = (together[request.request_id] - alone[request.request_id]).abs().max().item()
        assert error == 0 if batch_invariant else error < SESSION_TOLERANCE


def test_another_number_of_threads_changes_the_rounding_alone(
    checkpoints: dict[str, Path], latent_model: Any, set_threads: Callable[[int], None]
) -> None:
    """Matrix libraries add up a product in an order that depends on the threads."""
    model = latent_model(checkpoints["distilled"])
    request = Case("distilled", height=64, width=64, chunks=2).with_defaults().request("x")
    latents = []
    for threads in (1, 2, 1, 2):
        set_threads(threads)
        latents.append(run_sessions(model, [request], batch_invariant=True)["x"])
    assert torch.equal(latents[0], latents[2])
    assert torch.equal(latents[1], latents[3])
    assert (latents[0] - latents[1]).abs().max() < SESSION_TOLERANCE


def test_an_adapter_changes_only_its_own_session(
    checkpoints: dict[str, Path], latent_model: Any, lora_path: Path
) -> None:
    model = latent_model(checkpoints["distilled"])
    requests = mixed_requests("distilled", str(lora_path))
    together = run_sessions(model, requests)
    assert (together["session-0"] - together["with-lora"]).abs().max() > 0.01


@INVARIANCE
@pytest.mark.usefixtures("threads")
def test_sessions_with_different_adapters_and_without_equal_each_alone(
    batch_invariant: bool,
    checkpoints: dict[str, Path],
    latent_model: Any,
    tmp_path: Path,
) -> None:
    model = latent_model(checkpoints["distilled"])
    case = Case("distilled", height=64, width=64, chunks=2, steps=(1, 1, 1)).with_defaults()
    adapters = {
        name: write_lora(tmp_path / f"{name}.safetensors", model.transformer, rank=rank)
        for name, rank in (("a", 4), ("b", 7))
    }
    requests = [case.request("none")]
    requests += [case.request(name, lora=str(path)) for name, path in adapters.items()]
    together = run_sessions(model, requests, batch_invariant=batch_invariant)
    for request in requests:
        alone = run_sessions(model, [request], batch_invariant=batch_invariant)
        error = (together[request.request_id] - alone[request.request_id]).abs().max().item()
        assert error == 0 if batch_invariant else error < SESSION_TOLERANCE
    for one, other in (("none", "a"), ("none", "b"), ("a", "b")):
        assert (together[one] - together[other]).abs().max() > 0.01
