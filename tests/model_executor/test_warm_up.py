"""The chunks that a worker generates at its start, if kernels are compiled at first use."""

from pathlib import Path

import pytest
import torch

from helios_serve.errors import DeviceError
from helios_serve.kernels.backend import KernelChoice
from helios_serve.model_executor.loader import LoadedModel
from helios_serve.model_executor.worker import warm_up as module
from helios_serve.model_executor.worker.model_runner import ModelRunner
from helios_serve.model_executor.worker.warm_up import warm_up
from tests.support.models import load_model

FORWARDS = {"base": 2, "mid": 6, "distilled": 6}
"""Forwards of each batch: two steps per stage."""


def denoiser(folder: Path) -> LoadedModel:
    return load_model(str(folder), roles=["denoise"])


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the worker treat reference kernels as Triton kernels."""
    monkeypatch.setattr(module, "choose_kernels", lambda _: KernelChoice("triton", "sdpa"))


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
