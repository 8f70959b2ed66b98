"""bfloat16 as on a GPU: the reference's dtype rules, and masks that kernels accept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helios_serve.kernels import attention
from helios_serve.model_executor.models.helios.conditioning import block_noise_factor
from helios_serve.model_executor.models.helios.inputs import log_parts
from tests.support.models import load_model, loaded
from tests.support.videos import Case, diffusers_latents, our_latents

TOLERANCE_RMS = 0.06
"""Allowed rms error of latents (deviation 1.5). diffusers' own bfloat16 has 0.015 to 0.034."""


@pytest.mark.parametrize("variant", ["base", "mid", "distilled"])
def test_latents_stay_close_to_diffusers_in_bfloat16(
    variant: str, checkpoints: dict[str, Path], latent_pipeline: Any, cholesky: Any
) -> None:
    """Both are compared with fp32: our error must not exceed that of diffusers."""
    cholesky(block_noise_factor(1 / 3))
    case = Case(variant, chunks=2).with_defaults()
    exact = diffusers_latents(latent_pipeline(checkpoints[variant]), case)
    model = load_model(str(checkpoints[variant]), dtype="bfloat16")
    loaded(model.vae).render = lambda _: torch.zeros(33, 8, 8, 3, dtype=torch.uint8)  # type: ignore[assignment, method-assign, misc]
    got = our_latents(model, case)
    assert got.dtype == (torch.bfloat16 if variant == "distilled" else torch.float32)
    assert (got - exact).square().mean().sqrt() < TOLERANCE_RMS


def test_attention_gets_one_dtype_for_all_its_inputs(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA kernels refuse, or misread, a mask of another dtype; the CPU would take it."""
    attend, masked = attention.cpu_attend, []

    def checked(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        masked.append(bias is not None)
        inputs = (query, key, value, bias)
        assert {item.dtype for item in inputs if item is not None} == {torch.bfloat16}
        return attend(query, key, value, bias)

    model = load_model(str(checkpoints["distilled"]), dtype="bfloat16")
    loaded(model.vae).render = lambda _: torch.zeros(33, 8, 8, 3, dtype=torch.uint8)  # type: ignore[assignment, method-assign, misc]
    monkeypatch.setattr(attention, "cpu_attend", checked)
    our_latents(model, Case("distilled", chunks=1).with_defaults())
    assert set(masked) == {False, True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_counts_are_exact_in_every_dtype(dtype: torch.dtype) -> None:
    for count in range(1, 512):
        parts = log_parts(count, dtype)
        assert len(parts) <= 4
        assert parts.double().exp().sum().item() == pytest.approx(count, rel=2e-6)
    assert len(log_parts(500, torch.float32)) == 1
