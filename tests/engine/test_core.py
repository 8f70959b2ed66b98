"""The engine over a real runner: ends, failures and limits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from videos import Case, run_sessions

from helios_serve.engine.core import EngineCore
from helios_serve.engine.inline import InlineEngine
from helios_serve.errors import CheckpointError, InvalidRequestError
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
