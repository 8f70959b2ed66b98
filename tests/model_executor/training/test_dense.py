"""The dense forward against the packed one of the server."""

import msgspec
import pytest
import torch
from torch import Tensor

from helios_serve.model_config import Geometry
from helios_serve.model_executor.models.helios.embeddings import make_rope
from helios_serve.model_executor.models.helios.inputs import PackSegment, TextContext
from helios_serve.model_executor.models.helios.samplers import patchify, unpatchify
from helios_serve.model_executor.training.dense import dense_forward
from helios_serve.model_executor.training.nano_model import NanoModel
from helios_serve.model_executor.training.recipe import tiny_recipe
from helios_serve.model_executor.training.windows import (
    patch_rows,
    unpatch_rows,
    window_patches,
)
from helios_serve.model_executor.worker.history_pool import HistoryPool

CPU = torch.device("cpu")
CAPTIONS = ["a red ball moves right over the sand", "the zebra"]
"""Captions of different lengths. The second has a word that is split into letters."""


def random_model(*, amplified: bool = False) -> NanoModel:
    """Return a model in which every parameter differs from its initial value."""
    recipe = tiny_recipe()
    settings = recipe.transformer | {"is_amplify_history": amplified}
    model = NanoModel(msgspec.structs.replace(recipe, transformer=settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            scale = 0.3 * max(1, parameter.shape[-1]) ** -0.5
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def served_text(model: NanoModel, caption: str) -> TextContext:
    tokens = model.tokenizer([caption], return_tensors="pt")
    with torch.inference_mode():
        states = model.text_encoder(input_ids=tokens.input_ids).last_hidden_state[0]
    return model.transformer.read_text(states, 512 - len(states))


def packed_flow(
    model: NanoModel, geometry: Geometry, window: Tensor, noise: Tensor, times: Tensor, stage: int
) -> Tensor:
    segments = []
    for index, caption in enumerate(CAPTIONS):
        blocks = list(range(1, 1 + 20 * geometry.blocks_per_frame))
        pool = HistoryPool(len(blocks) + 1, torch.float32, CPU)
        pool.write(window[index], blocks)
        segments.append(
            PackSegment(
                pool.gather(torch.tensor(blocks), geometry),
                noise[index],
                make_rope(model.transformer.config, geometry, stage, 3, CPU),
                float(times[index]),
                served_text(model, caption),
            )
        )
    flow: Tensor = model.transformer(segments)
    return flow.view(noise.shape)


@pytest.mark.parametrize("amplified", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_dense_forward_equals_the_packed_one(stage: int, amplified: bool) -> None:
    model, geometry = random_model(amplified=amplified), Geometry(64, 128)
    generator = torch.Generator().manual_seed(stage)
    window = torch.randn(2, 16, 20, *geometry.latent_size, generator=generator)
    noise = torch.randn(2, geometry.noise_tokens(stage, 3), 64, generator=generator)
    times = torch.tensor([700.0, 998.0])
    rope = make_rope(model.transformer.config, geometry, stage, 3, CPU)
    dense = dense_forward(
        model.transformer, window_patches(window), noise, times, model.encode(CAPTIONS), rope
    )
    packed = packed_flow(model, geometry, window, noise, times, stage)
    assert float(packed.abs().mean()) > 0.1
    assert float((dense.detach() - packed).abs().max()) < 1e-5


def test_every_parameter_has_a_gradient() -> None:
    model, geometry = random_model(), Geometry(64, 64)
    rope = make_rope(model.transformer.config, geometry, 1, 3, CPU)
    flow = dense_forward(
        model.transformer,
        window_patches(torch.randn(2, 16, 20, 8, 8)),
        torch.randn(2, geometry.noise_tokens(1, 3), 64),
        torch.tensor([500.0, 600.0]),
        model.encode(CAPTIONS),
        rope,
    )
    torch.autograd.backward(flow.square().mean())
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert without == []


def test_rows_are_those_of_the_server() -> None:
    latents = torch.randn(2, 16, 9, 8, 16)
    rows = patch_rows(latents)
    assert torch.equal(rows[1].flatten(0, 2), patchify(latents[1]))
    grid = Geometry(64, 128).patches
    assert torch.equal(
        unpatch_rows(rows.flatten(1, 3), grid)[1], unpatchify(rows[1].flatten(0, 2), grid)
    )
    assert torch.equal(unpatch_rows(rows.flatten(1, 3), grid), latents)
