"""Workers with different roles, which are added and drained."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.errors import CheckpointError, HeliosError, InvalidRequestError
from helios_serve.model_executor.executor.inline import InlineExecutor
from helios_serve.model_executor.models.helios.config import read_config
from helios_serve.model_executor.worker.worker import Emit, Worker, load_worker
from helios_serve.options.engine import EngineConfig
from helios_serve.options.sampling import PromptSwitch
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.options.workers import ROLES, Role, WorkerConfig
from tests.support.models import blank_frames
from tests.support.videos import Case, Viewer, run_sessions

SMALL = Case("distilled", height=64, width=64, chunks=3, steps=(1, 1, 1)).with_defaults()
CASES = {
    "t2v": SMALL,
    "i2v": replace(SMALL, task="i2v", seed=1),
    "v2v": replace(SMALL, task="v2v", seed=2),
}
SWITCH = PromptSwitch(1, "waves rise", 2)
Start = Callable[..., Viewer]


@pytest.fixture(scope="module")
def folder(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["distilled"]


@pytest.fixture(scope="module")
def expected(folder: Path, latent_model: Any) -> dict[str, Tensor]:
    """The latents of every case, made by one worker that does everything."""
    requests = [case.request(name) for name, case in CASES.items()]
    return run_sessions(latent_model(folder), requests, batch_invariant=True)


def worker(folder: Path, *roles: Role) -> WorkerConfig:
    return WorkerConfig(
        model=str(folder),
        device="cpu",
        dtype="float32",
        roles=roles or ROLES,
        history_blocks=200,
        batch_invariant=True,
    )


def without_decoding(config: WorkerConfig, emit: Emit) -> Worker:
    """A worker whose frames are blank."""
    loaded = load_worker(config, emit)
    if loaded.model.vae is not None:
        loaded.model.vae.render = blank_frames  # type: ignore[assignment, method-assign]
    return loaded


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts engines with workers in threads, and waits until these are ready."""
    with ExitStack() as running:

        def start(*workers: WorkerConfig, make_worker: Any = without_decoding) -> Viewer:
            executor = InlineExecutor(make_worker)
            running.callback(executor.shutdown)
            # Small batches, so that work is spread over workers and steps.
            config = EngineConfig(workers=workers, scheduling=SchedulingConfig(max_num_seqs=2))
            viewer = Viewer(EngineCore(executor, read_config(folder), config))
            wait_ready(viewer)
            return viewer

        yield start


def wait_ready(viewer: Viewer) -> None:
    worker_pool = viewer.engine.worker_pool
    viewer.wait(lambda: all(handle.is_ready for handle in worker_pool.workers.values()))


def check(viewer: Viewer, expected: dict[str, Tensor]) -> None:
    """Assert that requests named "case-number" have the `expected` latents."""
    assert not viewer.failures
    for name in viewer.chunks:
        assert torch.equal(viewer.latents(name, range(3)), expected[name.split("-")[0]]), name
        assert all(chunk.frames and chunk.frames.count == 33 for chunk in viewer.chunks[name])


SPLITS: dict[str, list[tuple[Role, ...]]] = {
    "one each": [("encode",), ("denoise",), ("decode",)],
    "encoder apart": [("encode", "decode"), ("denoise",)],
    "two denoise, two decode": [
        ("denoise",),
        ("denoise", "decode"),
        ("encode",),
        ("decode", "encode"),
    ],
}


@pytest.mark.parametrize("split", SPLITS)
def test_workers_with_split_roles_make_the_latents_of_one(
    split: str, start: Start, folder: Path, expected: dict[str, Tensor]
) -> None:
    viewer = start(*(worker(folder, *roles) for roles in SPLITS[split]))
    for number in range(2):
        for name, case in CASES.items():
            viewer.engine.add_request(case.request(f"{name}-{number}"))
    viewer.finish()
    assert len(viewer.chunks) == 2 * len(CASES)
    check(viewer, expected)


def test_a_decoder_apart_makes_the_frames_of_one_worker(start: Start, folder: Path) -> None:
    frames = []
    for workers in ([ROLES], SPLITS["encoder apart"]):
        viewer = start(*(worker(folder, *roles) for roles in workers), make_worker=load_worker)
        viewer.engine.add_request(replace(SMALL, chunks=1).request("a"))
        viewer.finish()
        frames.append(viewer.chunks["a"][0].frames)
    assert frames[0] is not None
    assert frames[0] == frames[1]


def test_only_a_denoising_worker_has_room_for_sessions(folder: Path) -> None:
    ready = {
        roles: load_worker(worker(folder, *roles), lambda _: None).ready
        for roles in SPLITS["one each"]
    }
    assert (ready["denoise",].num_blocks, ready["denoise",].text_rows > 0) == (200, True)
    for role in ("encode", "decode"):
        assert (ready[role,].num_blocks, ready[role,].text_rows) == (0, 0)


@pytest.mark.parametrize("role", ROLES)
def test_the_last_worker_for_a_role_is_not_drained(role: Role, start: Start, folder: Path) -> None:
    others = [other for other in ROLES if other != role]
    viewer = start(worker(folder, role), worker(folder, *others), worker(folder, *others))
    first, second, third = viewer.engine.worker_pool.workers
    with pytest.raises(
        InvalidRequestError,
        match=f"got worker '{first}', which is the last one to {role}: add another one first",
    ):
        viewer.engine.worker_pool.drain(first)
    viewer.engine.worker_pool.drain(second)
    with pytest.raises(InvalidRequestError, match="which is the last one to"):
        viewer.engine.worker_pool.drain(third)
    with pytest.raises(InvalidRequestError, match="got worker 'nobody', expected one of: inline-"):
        viewer.engine.worker_pool.drain("nobody")
    viewer.wait(lambda: second not in viewer.engine.worker_pool.workers)
    assert viewer.engine.worker_pool.workers.keys() == {first, third}


def test_sessions_move_from_a_drained_worker_to_a_new_one(
    start: Start, folder: Path, latent_model: Any, expected: dict[str, Tensor]
) -> None:
    """One of three sessions moves while it is paused, and one just after a prompt switch."""
    viewer = start(worker(folder))
    engine = viewer.engine
    (old,) = engine.worker_pool.workers
    sessions = []
    for name, case in CASES.items():
        session = engine.add_request(case.request(f"{name}-0"))
        viewer.wait(lambda: session.cursor >= (0, 1, 0))  # noqa: B023
        engine.scheduler.pause(session.session_id)
        sessions.append(session)
    engine.switch_prompt("t2v-0", SWITCH.prompt, SWITCH.transition_chunks)
    viewer.wait(lambda: viewer.switches == {"t2v-0": [SWITCH]})
    new = engine.worker_pool.start(worker(folder))
    wait_ready(viewer)
    for name in ("t2v-0", "i2v-0"):
        engine.scheduler.resume(name)
    engine.worker_pool.drain(old)
    viewer.wait(lambda: old not in engine.worker_pool.workers)
    assert {session.worker_id for session in sessions} <= {new, None}
    engine.scheduler.resume("v2v-0")
    viewer.finish()
    switched = replace(SMALL, switches=(SWITCH,)).request("t2v")
    check(viewer, expected | run_sessions(latent_model(folder), [switched], batch_invariant=True))
    viewer.wait(lambda: old not in {thread.name for thread in threading.enumerate()})


def test_a_worker_that_is_drained_before_it_is_ready_never_is(
    start: Start, folder: Path, expected: dict[str, Tensor]
) -> None:
    viewer = start(worker(folder))
    late = viewer.engine.worker_pool.start(worker(folder))
    viewer.engine.worker_pool.drain(late)
    viewer.engine.add_request(SMALL.request("t2v-0"))
    viewer.finish()
    check(viewer, expected)
    assert late not in viewer.engine.worker_pool.workers


def test_the_engine_ends_when_a_role_has_nobody_left(start: Start, folder: Path) -> None:
    def broken(config: WorkerConfig, emit: Emit) -> Worker:
        if config.roles == ("decode",):
            raise CheckpointError("the VAE is damaged")
        return without_decoding(config, emit)

    with pytest.raises(HeliosError, match="no worker can be started to decode: .*VAE is damaged"):
        start(worker(folder, "encode", "denoise"), worker(folder, "decode"), make_worker=broken)


def test_a_worker_that_dies_while_it_is_drained_is_not_replaced(
    start: Start, folder: Path, expected: dict[str, Tensor]
) -> None:
    viewer = start(worker(folder), worker(folder))
    engine = viewer.engine
    first, second = engine.worker_pool.workers
    sessions = [engine.add_request(case.request(f"{name}-0")) for name, case in CASES.items()]
    viewer.wait(lambda: any(session.worker_id == first for session in sessions))
    engine.worker_pool.drain(first)
    engine.executor.kill_worker(first)
    viewer.finish()
    assert engine.worker_pool.workers.keys() == {second}
    check(viewer, expected)
