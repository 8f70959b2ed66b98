"""Mutation tests: each deliberate fault shows in the latents, so that parity tests can fail."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helios_serve.kernels.rope import Rope
from helios_serve.model_config import Geometry, TransformerConfig
from helios_serve.model_executor.models.helios import embeddings, schedule
from helios_serve.model_executor.models.helios.inputs import HistoryPatches
from helios_serve.model_executor.worker import history_pool, packed_batch
from helios_serve.model_executor.worker.history_pool import TILE_PIXELS, HistoryPool
from tests.support.videos import Case, our_latents

TOLERANCE = 5e-5
Mutation = Callable[[pytest.MonkeyPatch], None]


def forget(window: str) -> Mutation:
    """Gather zeros for one window."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        gather = HistoryPool.gather

        def without(pool: HistoryPool, table: Tensor, geometry: Geometry) -> HistoryPatches:
            patches = gather(pool, table, geometry)
            kept = getattr(patches, window).clone()
            kept[: len(kept) // 2 if window == "short" else None] = 0
            return patches._replace(**{window: kept})

        patch.setattr(HistoryPool, "gather", without)

    return mutate


def shift_rope(patch: pytest.MonkeyPatch) -> None:
    """Noise frames at 19 to 27 instead of 20 to 28."""
    make = embeddings.make_rope

    def shifted(
        config: TransformerConfig, geometry: Geometry, stage: int, stages: int, device: Any
    ) -> Rope:
        right = make(config, geometry, stage, stages, device)
        places = right.places.clone()
        places[geometry.history_tokens :, 0] -= 1
        return replace(right, places=places)

    patch.setattr(packed_batch, "make_rope", shifted)


def use_own_tokens_for_mu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        schedule,
        "lagged_tokens",
        lambda geometry, stage, stages: geometry.noise_tokens(stage, stages),
    )


def pad_by_patches(patch: pytest.MonkeyPatch) -> None:
    """Fill edge tiles by repeating the last patch instead of the last latent pixel."""

    def pad(latents: Tensor, padding: tuple[int, ...], mode: str) -> Tensor:
        assert mode == "replicate"
        for dim, spare in ((-1, padding[1]), (-2, padding[3])):
            last = latents.narrow(dim, latents.shape[dim] - 2, 2)
            latents = torch.cat([latents, *[last] * (spare // 2)], dim=dim)
        assert latents.shape[-1] % TILE_PIXELS == 0
        return latents

    class Padding:
        def __getattr__(self, name: str) -> Any:
            return pad if name == "pad" else getattr(F, name)

    patch.setattr(history_pool, "F", Padding())


MUTATIONS: dict[str, tuple[Mutation, Case]] = {
    "no long window": (forget("long"), Case("distilled")),
    "no mid window": (forget("mid"), Case("distilled")),
    "no anchor": (forget("short"), Case("distilled")),
    "RoPE shifted by one": (shift_rope, Case("distilled", chunks=1)),
    "mu not lagged": (
        use_own_tokens_for_mu,
        Case("mid", height=128, width=192, chunks=1, steps=(4, 4, 4)),
    ),
    "padding by patches": (pad_by_patches, Case("base", height=48, width=80)),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_fails_parity(
    name: str, checkpoints: dict[str, Path], latent_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents without the fault stand for diffusers', which the parity tests compare them with."""
    mutate, case = MUTATIONS[name]
    case = case.with_defaults()
    model = latent_model(checkpoints[case.variant])
    expected = our_latents(model, case)
    schedule.denoise_schedule.cache_clear()
    mutate(monkeypatch)
    broken = our_latents(model, case)
    schedule.denoise_schedule.cache_clear()
    assert (broken - expected).abs().max() > 20 * TOLERANCE
