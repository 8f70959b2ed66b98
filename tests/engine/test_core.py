"""The engine over a real runner: ends, failures and limits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from videos import Case, run_sessions

from helios_serve.core.history_manager import HistoryManager
from helios_serve.engine.core import EngineCore
from helios_serve.engine.inline import InlineEngine
from helios_serve.errors import CheckpointError, InvalidRequestError
from helios_serve.model_config import Geometry
from helios_serve.model_executor.loader import LoadedModel
from helios_serve.model_executor.models.helios.inputs import Segment
from helios_serve.model_executor.worker.model_runner import ModelRunner, as_latents

CASE = Case("distilled", height=64, width=64, chunks=2, steps=(1, 1, 1)).with_defaults()


@pytest.fixture
def runner(checkpoints: dict[str, Path], latent_model: Any) -> ModelRunner:
    return ModelRunner(latent_model(checkpoints["distilled"]), 200)


@pytest.fixture
def engine(runner: ModelRunner) -> EngineCore:
    return EngineCore(runner, runner.model.config, 200)


def finish(engine: EngineCore) -> dict[str, list[torch.Tensor]]:
    chunks: dict[str, list[torch.Tensor]] = {}
    while engine.has_unfinished:
        for chunk in engine.step().chunks:
            chunks.setdefault(chunk.session_id, []).append(as_latents(chunk.latents))
    return chunks


def test_an_aborted_request_leaves_nothing_and_disturbs_nobody(
    engine: EngineCore, runner: ModelRunner
) -> None:
    engine.add_request(CASE.request("a"))
    engine.add_request(CASE.request("b"))
    for _ in range(2):
        engine.step()
    engine.abort("a")
    chunks = finish(engine)
    alone = run_sessions(runner.model, [CASE.request("b")])["b"]
    assert chunks.keys() == {"b"}
    assert (torch.cat(chunks["b"], dim=2) - alone).abs().max() < 1e-4
    engine.scheduler.check_integrity()
    assert engine.scheduler.stats().used_blocks == 0
    assert not runner.sessions


def test_a_request_that_cannot_be_opened_fails_alone(
    engine: EngineCore, runner: ModelRunner, tmp_path: Path
) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    engine.add_request(CASE.request("bad", lora=str(tmp_path / "bad.safetensors")))
    engine.add_request(CASE.request("good"))
    failures = engine.step().failures
    assert [failure.session_id for failure in failures] == ["bad"]
    assert "bad.safetensors is damaged" in failures[0].message
    assert len(finish(engine)["good"]) == 2
    assert not runner.sessions


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
    engine = InlineEngine(str(checkpoints["distilled"]), device="cpu")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is damaged"):
        engine.check(CASE.request(lora=str(tmp_path / "bad.safetensors")))
    assert engine._model is None


def run_all(engine: EngineCore) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Latents of the sessions that came through, and the messages of those that failed."""
    chunks: dict[str, list[torch.Tensor]] = {}
    failures: dict[str, str] = {}
    while engine.has_unfinished:
        output = engine.step()
        engine.scheduler.check_integrity()
        failures |= {failure.session_id: failure.message for failure in output.failures}
        for chunk in output.chunks:
            chunks.setdefault(chunk.session_id, []).append(as_latents(chunk.latents))
    whole = {name: torch.cat(parts, dim=2) for name, parts in chunks.items()}
    return {name: whole[name] for name in whole if name not in failures}, failures


MATES = {
    "t2v": Case("distilled", height=64, width=64, chunks=4, seed=1).with_defaults(),
    "i2v": Case("distilled", "i2v", height=64, width=64, chunks=4, seed=2).with_defaults(),
    "v2v": Case("distilled", "v2v", height=64, width=64, chunks=4, seed=3).with_defaults(),
}


def alone(model: LoadedModel, case: Case) -> torch.Tensor:
    return run_sessions(model, [case.request("x")], batch_invariant=True)["x"]


@pytest.mark.parametrize("task", MATES)
def test_an_evicted_session_goes_on_bitwise_where_it_was(task: str, runner: ModelRunner) -> None:
    """Room for one session only: flex makes way at a chunk edge and comes back, chunk by chunk."""
    case, model = MATES[task], runner.model
    blocks = HistoryManager.peak_blocks(Geometry(64, 64)) + 1
    engine = EngineCore(ModelRunner(model, blocks, batch_invariant=True), model.config, blocks)
    flex = engine.add_request(case.request("flex", tier="flex", tenant="f"))
    chunks = []
    for edge in (1, 2, 3):
        while flex.cursor.chunk < edge - 1 or flex.at_chunk_edge:
            chunks += engine.step().chunks
        engine.add_request(CASE.request(f"default-{edge}"))
        while flex.worker_id is not None:
            chunks += engine.step().chunks
        assert flex.edge_chunk == edge
    while engine.has_unfinished:
        chunks += engine.step().chunks
    own = [chunk for chunk in chunks if chunk.session_id == "flex"]
    assert [chunk.chunk for chunk in own] == [0, 1, 2, 3]
    got = torch.cat([as_latents(chunk.latents) for chunk in own], dim=2)
    assert torch.equal(got, alone(model, case))


def test_a_paused_session_is_swapped_out_and_repeats_its_chunk(runner: ModelRunner) -> None:
    model, case = runner.model, MATES["t2v"]
    blocks = HistoryManager.peak_blocks(Geometry(64, 64)) + 1
    engine = EngineCore(ModelRunner(model, blocks, batch_invariant=True), model.config, blocks)
    paused = engine.add_request(case.request("paused"))
    chunks = []
    for _ in range(9):  # in the middle of the second chunk
        chunks += engine.step().chunks
    engine.pause("paused")
    engine.add_request(CASE.request("other"))
    while paused.worker_id is not None or len(engine.scheduler.sessions) == 2:
        chunks += engine.step().chunks
    engine.resume("paused")
    while engine.has_unfinished:
        chunks += engine.step().chunks
    own = [chunk for chunk in chunks if chunk.session_id == "paused"]
    assert [chunk.chunk for chunk in own] == [0, 1, 2, 3]
    got = torch.cat([as_latents(chunk.latents) for chunk in own], dim=2)
    assert torch.equal(got, alone(model, case))


class Poison:
    """A transformer that raises whenever `trigger` finds something in the pack."""

    def __init__(self, transformer: Any, trigger: Any, error: Exception) -> None:
        self.transformer, self.trigger, self.error = transformer, trigger, error
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transformer, name)

    def __call__(self, segments: list[Segment]) -> torch.Tensor:
        self.calls += 1
        if self.trigger(segments):
            raise self.error
        return self.transformer(segments)


def poisoned(runner: ModelRunner, trigger: Any, error: Exception) -> EngineCore:
    transformer: Any = Poison(runner.model.transformer, trigger, error)
    model = runner.model._replace(transformer=transformer)
    return EngineCore(ModelRunner(model, 400), model.config, 400)


def test_a_session_that_raises_fails_alone(runner: ModelRunner) -> None:
    def has_wide_segment(segments: list[Segment]) -> bool:
        return any(len(segment.history.short) == 2 * 32 for segment in segments)

    engine = poisoned(runner, has_wide_segment, RuntimeError("a bad kernel"))
    engine.add_request(Case("distilled", height=64, width=128).with_defaults().request("wide"))
    for name, case in MATES.items():
        engine.add_request(case.request(name))
    latents, failures = run_all(engine)
    assert failures == {"wide": "RuntimeError: a bad kernel"}
    assert latents.keys() == MATES.keys()
    for name, case in MATES.items():
        assert (latents[name] - alone(runner.model, case)).abs().max() < 1e-4
    assert engine.scheduler.stats().used_blocks == 0


def test_a_session_that_makes_nan_fails_alone(runner: ModelRunner) -> None:
    engine = EngineCore(runner, runner.model.config, 200)
    for name, case in MATES.items():
        engine.add_request(case.request(name))
    engine.step()
    chunk = runner.sessions["i2v"].chunk
    assert chunk is not None
    chunk.sampler.latents = chunk.sampler.latents * torch.nan
    latents, failures = run_all(engine)
    assert failures == {"i2v": "chunk 0 came out with NaN or infinity in its latents"}
    assert latents.keys() == {"t2v", "v2v"}
    for name in latents:
        assert (latents[name] - alone(runner.model, MATES[name])).abs().max() < 1e-4


def test_a_batch_that_does_not_fit_is_halved(runner: ModelRunner) -> None:
    engine = poisoned(runner, lambda pack: len(pack) > 1, torch.OutOfMemoryError("full"))
    for name, case in MATES.items():
        engine.add_request(case.request(name))
    latents, failures = run_all(engine)
    assert not failures
    for name, case in MATES.items():
        assert torch.equal(latents[name], alone(runner.model, case))
