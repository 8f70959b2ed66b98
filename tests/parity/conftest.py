"""Fixtures: diffusers' pipelines, the reference of these tests."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor


@pytest.fixture(scope="session")
def latent_pipeline() -> Callable[[Path], Any]:
    """Loads diffusers' pipeline of a checkpoint once, without decoding."""

    @cache
    def load(folder: Path) -> Any:
        pipeline = DiffusionPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.vae.decode = lambda *_, **__: (torch.zeros(1, 3, 33, 8, 8),)
        return pipeline

    return load


@pytest.fixture
def cholesky(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], None]:
    """Makes diffusers use a given block noise factor: its own fp32 Cholesky fails on the CPU."""

    def use(factor: Tensor) -> None:
        monkeypatch.setattr(torch.linalg, "cholesky", lambda _: factor)

    return use
