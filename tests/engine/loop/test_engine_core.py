"""The engine over a real runner: ends, failures and limits."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helios_serve.core.decode_lead import CHUNKS_AHEAD, DECODE_AHEAD
from helios_serve.core.history_manager import HistoryManager
from helios_serve.core.plan_pace import QUEUE_DEPTH
from helios_serve.engine.inline_engine import InlineEngine
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.events import ChunkReady, EngineEvent
from helios_serve.errors import CheckpointError, InvalidRequestError
from helios_serve.model_config import Geometry
from helios_serve.model_executor.loader import LoadedModel
from helios_serve.model_executor.models.helios.inputs import PackSegment
from helios_serve.model_executor.worker.tensors import as_tensor
from helios_serve.options.engine import EngineConfig
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.options.workers import WorkerOptions
from tests.support.models import loaded
from tests.support.videos import Case, SteppedExecutor, Viewer, finish, run_sessions

CASE = Case("distilled", height=64, width=64, chunks=2, steps=(1, 1, 1)).with_defaults()


@pytest.fixture
def model(checkpoints: dict[str, Path], latent_model: Any) -> LoadedModel:
    loaded: LoadedModel = latent_model(checkpoints["distilled"])
    return loaded


@pytest.fixture
def executor(model: LoadedModel) -> Iterator[SteppedExecutor]:
    stepped = SteppedExecutor(model, 400)
    yield stepped
    stepped.shutdown()


@pytest.fixture
def engine(executor: SteppedExecutor, model: LoadedModel) -> EngineCore:
    started = EngineCore(executor, model.config)
    started.step()
    return started


def test_an_aborted_request_leaves_nothing_and_disturbs_nobody(
    engine: EngineCore, executor: SteppedExecutor, model: LoadedModel
) -> None:
    engine.add_request(CASE.request("a"))
    engine.add_request(CASE.request("b"))
    for _ in range(2):
        engine.step()
    engine.abort("a")
    latents, failures = finish(engine)
    assert not failures
    assert latents.keys() == {"b"}
    assert (latents["b"] - alone(model, CASE)).abs().max() < 1e-4
    assert engine.scheduler.stats().used_blocks == 0
    assert not executor.runner.sessions


def test_a_request_that_cannot_be_opened_fails_alone(
    engine: EngineCore, executor: SteppedExecutor, tmp_path: Path
) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    engine.add_request(CASE.request("bad", lora=str(tmp_path / "bad.safetensors")))
    engine.add_request(CASE.request("good"))
    latents, failures = finish(engine)
    assert failures.keys() == {"bad"}
    assert "bad.safetensors is damaged" in failures["bad"]
    assert latents.keys() == {"good"}
    assert not executor.runner.sessions


def test_what_can_never_run_is_refused(engine: EngineCore) -> None:
    huge = Case("distilled", height=512, width=512).with_defaults()
    with pytest.raises(InvalidRequestError, match="got size 512x512, whose history takes"):
        engine.add_request(huge.request())
    engine.add_request(CASE.request("a"))
    with pytest.raises(InvalidRequestError, match="got request id 'a', which is in use"):
        engine.add_request(CASE.request("a"))


def test_a_bad_adapter_is_refused_before_weights_are_loaded(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    engine = InlineEngine(str(checkpoints["distilled"]), WorkerOptions(device="cpu"))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is damaged"):
        engine.check(CASE.request(lora=str(tmp_path / "bad.safetensors")))
    assert engine._model is None


MATES = {
    "t2v": Case("distilled", height=64, width=64, chunks=4, seed=1).with_defaults(),
    "i2v": Case("distilled", "i2v", height=64, width=64, chunks=4, seed=2).with_defaults(),
    "v2v": Case("distilled", "v2v", height=64, width=64, chunks=4, seed=3).with_defaults(),
}


def alone(model: LoadedModel, case: Case) -> torch.Tensor:
    return run_sessions(model, [case.request("x")], batch_invariant=True)["x"]


def engine_for_one(model: LoadedModel) -> EngineCore:
    """Return an engine whose pool has room for one session of 64x64 at a time."""
    blocks = HistoryManager.peak_blocks(Geometry(64, 64)) + 1
    engine = EngineCore(SteppedExecutor(model, blocks, batch_invariant=True), model.config)
    engine.step()
    return engine


def latents_of(events: list[EngineEvent], request_id: str, chunks: int) -> torch.Tensor:
    """Return the latents of a request. Asserts that its chunks were reported once, in order."""
    own = [
        event
        for event in events
        if isinstance(event, ChunkReady) and event.request_id == request_id
    ]
    assert [chunk.chunk for chunk in own] == list(range(chunks))
    return torch.cat([as_tensor(chunk.latents) for chunk in own], dim=2)


@pytest.mark.parametrize("task", MATES)
def test_an_evicted_session_goes_on_bitwise_where_it_was(task: str, model: LoadedModel) -> None:
    """With room for one session, flex is evicted at a chunk edge and resumes, again and again."""
    case, engine, events = MATES[task], engine_for_one(model), []
    flex = engine.add_request(case.request("flex", tier="flex", tenant="f"))
    for edge in (1, 2, 3):
        while flex.worker_id is None or flex.at_chunk_edge:
            events += engine.step()
        engine.add_request(CASE.request(f"default-{edge}"))
        while flex.worker_id is not None:
            events += engine.step()
        assert flex.edge_chunk == edge
    while engine.has_unfinished:
        events += engine.step()
    assert torch.equal(latents_of(events, "flex", 4), alone(model, case))


def test_a_paused_session_is_swapped_out_and_repeats_its_chunk(model: LoadedModel) -> None:
    case, engine, events = MATES["t2v"], engine_for_one(model), []
    paused = engine.add_request(case.request("paused"))
    while paused.cursor < (1, 1, 1):
        events += engine.step()
    engine.scheduler.pause("paused")
    engine.add_request(CASE.request("other"))
    while paused.worker_id is not None or len(engine.scheduler.sessions) == 2:
        events += engine.step()
    engine.scheduler.resume("paused")
    while engine.has_unfinished:
        events += engine.step()
    assert torch.equal(latents_of(events, "paused", 4), alone(model, case))


class Poison:
    """A transformer that raises whenever `trigger` finds something in the pack."""

    def __init__(self, transformer: Any, trigger: Any, error: Exception) -> None:
        self.transformer, self.trigger, self.error = transformer, trigger, error
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transformer, name)

    def __call__(self, segments: list[PackSegment]) -> torch.Tensor:
        self.calls += 1
        if self.trigger(segments):
            raise self.error
        flow: torch.Tensor = self.transformer(segments)
        return flow


def poisoned(model: LoadedModel, trigger: Any, error: Exception) -> EngineCore:
    transformer: Any = Poison(model.transformer, trigger, error)
    executor = SteppedExecutor(model._replace(transformer=transformer), 400)
    return EngineCore(executor, model.config)


def test_a_session_that_raises_fails_alone(model: LoadedModel) -> None:
    def has_wide_segment(segments: list[PackSegment]) -> bool:
        return any(len(segment.history.short) == 2 * 32 for segment in segments)

    engine = poisoned(model, has_wide_segment, RuntimeError("a bad kernel"))
    engine.add_request(Case("distilled", height=64, width=128).with_defaults().request("wide"))
    for name, case in MATES.items():
        engine.add_request(case.request(name))
    latents, failures = finish(engine)
    assert failures == {"wide": "RuntimeError: a bad kernel"}
    assert latents.keys() == MATES.keys()
    for name, case in MATES.items():
        assert (latents[name] - alone(model, case)).abs().max() < 1e-4
    assert engine.scheduler.stats().used_blocks == 0


def test_a_session_that_makes_nan_fails_alone(
    engine: EngineCore, executor: SteppedExecutor, model: LoadedModel
) -> None:
    for name, case in MATES.items():
        engine.add_request(case.request(name))
    sessions = executor.runner.sessions
    while "i2v" not in sessions or sessions["i2v"].chunk is None:
        engine.step()
    chunk = sessions["i2v"].chunk
    assert chunk is not None
    chunk.sampler.latents = chunk.sampler.latents * torch.nan
    latents, failures = finish(engine)
    assert failures == {"i2v": "the latents of chunk 0 contain NaN or infinity"}
    assert latents.keys() == {"t2v", "v2v"}
    for name, got in latents.items():
        assert (got - alone(model, MATES[name])).abs().max() < 1e-4


def test_a_batch_that_does_not_fit_is_halved(model: LoadedModel) -> None:
    engine = poisoned(model, lambda pack: len(pack) > 1, torch.OutOfMemoryError("full"))
    for name, case in MATES.items():
        engine.add_request(case.request(name))
    latents, failures = finish(engine)
    assert not failures
    for name, case in MATES.items():
        assert torch.equal(latents[name], alone(model, case))


def test_a_chunk_that_cannot_be_decoded_fails_its_session_alone(model: LoadedModel) -> None:
    class BadVae:
        def __init__(self, vae: Any) -> None:
            self.vae = vae

        def __getattr__(self, name: str) -> Any:
            return getattr(self.vae, name)

        def render(self, latents: torch.Tensor) -> torch.Tensor:
            if latents.shape[-1] == 16:
                raise RuntimeError("a bad picture")
            frames: torch.Tensor = self.vae.render(latents)
            return frames

    bad: Any = BadVae(model.vae)
    engine = EngineCore(SteppedExecutor(model._replace(vae=bad), 400), model.config)
    engine.add_request(Case("distilled", height=64, width=128).with_defaults().request("wide"))
    engine.add_request(CASE.request("good"))
    latents, failures = finish(engine)
    assert failures == {"wide": "decoding failed: RuntimeError: a bad picture"}
    assert latents.keys() == {"good"}


@pytest.fixture
def may_decode(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An event before which no chunk is decoded."""
    event, vae = threading.Event(), loaded(model.vae)
    render = vae.render

    def wait_and_render(latents: torch.Tensor) -> torch.Tensor:
        event.wait(60)
        return render(latents)

    monkeypatch.setattr(vae, "render", wait_and_render)
    yield event
    event.set()


def test_denoising_waits_for_a_decoder_that_is_behind(
    executor: SteppedExecutor, model: LoadedModel, may_decode: threading.Event
) -> None:
    """Waiting chunks take memory, and no queue limit would count sessions that ran ahead."""
    engine = EngineCore(
        executor, model.config, EngineConfig(scheduling=SchedulingConfig(max_num_seqs=2))
    )
    names = {f"{index}" for index in range(12)}
    for name in names:
        engine.add_request(CASE.request(name))
    while engine.decode_stage.queue.num_waiting < DECODE_AHEAD:
        engine.step()
    for _ in range(30):
        engine.step(timeout=0.01)
    most = DECODE_AHEAD + QUEUE_DEPTH * engine.scheduler.config.max_num_seqs
    assert engine.decode_stage.queue.num_waiting < most < len(names) * CASE.chunks
    assert engine.scheduler.sessions
    may_decode.set()
    latents, failures = finish(engine)
    assert latents.keys() == names
    assert not failures


def test_no_session_runs_away_from_its_decoder(
    engine: EngineCore, may_decode: threading.Event
) -> None:
    """Prompt switches are seen soon, and a blocked chunk does not block other sessions."""
    long = replace(CASE, chunks=6)
    engine.add_request(long.request("long"))
    viewer = Viewer(engine)
    ahead = 1 + CHUNKS_AHEAD
    viewer.wait(lambda: engine.scheduler.sessions["long"].edge_chunk == ahead)
    for _ in range(20):
        engine.step(timeout=0.01)
    session = engine.scheduler.sessions["long"]
    assert (session.cursor.chunk, session.in_flight) == (ahead, 0)
    engine.add_request(CASE.request("other"))
    viewer.wait(lambda: "other" not in engine.scheduler.sessions)
    engine.switch_prompt("long", long.prompt)  # which has been read
    may_decode.set()
    viewer.finish()
    (switch,) = viewer.switches["long"]
    assert switch is not None
    assert switch.chunk == ahead
    assert [chunk.chunk for chunk in viewer.chunks["long"]] == list(range(6))


def test_a_switch_behind_the_last_step_is_refused_by_what_is_true(
    engine: EngineCore, may_decode: threading.Event
) -> None:
    engine.add_request(CASE.request("done"))
    viewer = Viewer(engine)
    viewer.wait(lambda: "done" not in engine.scheduler.sessions)
    with pytest.raises(InvalidRequestError, match="'done' .* whose last chunk is already denoised"):
        engine.switch_prompt("done", "a cat")
    with pytest.raises(InvalidRequestError, match="'nobody' .* expected a running video"):
        engine.switch_prompt("nobody", "a cat")
    may_decode.set()
    viewer.finish()
