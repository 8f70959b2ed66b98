"""One forward against diffusers' transformer, at every stage and at odd sizes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helios_serve.model_config import HISTORY_FRAMES, Geometry, HeliosConfig
from helios_serve.model_executor.components import build_transformer
from helios_serve.model_executor.loader import LoadedModel
from helios_serve.model_executor.models.helios.config import read_config
from helios_serve.model_executor.models.helios.embeddings import make_rope
from helios_serve.model_executor.models.helios.inputs import PackSegment
from helios_serve.model_executor.models.helios.samplers import patchify, unpatchify
from helios_serve.model_executor.models.helios.transformer import HeliosTransformer
from helios_serve.model_executor.weights import find_sources, stream_weights
from helios_serve.model_executor.worker.history_pool import HistoryPool
from tests.support.models import loaded
from tests.support.tiny_checkpoint import TEXT_DIM, make_transformer

TOLERANCE = 1e-5
PROMPT_TOKENS, PADDED_TOKENS = 11, 64


def random_inputs(geometry: Geometry, stage: int, stages: int) -> dict[str, Tensor]:
    """Latents of a chunk, its anchor and history, and a zero-padded prompt."""
    generator = torch.Generator().manual_seed(stage)
    height, width = geometry.latent_size
    shrink = 2 ** (stages - 1 - stage)
    shapes = {
        "noise": (1, 16, 9, height // shrink, width // shrink),
        "anchor": (1, 16, 1, height, width),
        "history": (1, 16, HISTORY_FRAMES, height, width),
        "prompt": (1, PADDED_TOKENS, TEXT_DIM),
    }
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    inputs["prompt"][:, PROMPT_TOKENS:] = 0
    return inputs


def their_flow(transformer: Any, inputs: dict[str, Tensor], timestep: float) -> Tensor:
    history = inputs["history"]
    index = torch.arange(29)[None]
    with torch.inference_mode():
        flow: Tensor = transformer(
            hidden_states=inputs["noise"],
            timestep=torch.tensor([timestep]),
            encoder_hidden_states=inputs["prompt"],
            indices_hidden_states=index[:, 20:],
            indices_latents_history_short=index[:, [0, 19]],
            indices_latents_history_mid=index[:, 17:19],
            indices_latents_history_long=index[:, 1:17],
            latents_history_short=torch.cat([inputs["anchor"], history[:, :, -1:]], dim=2),
            latents_history_mid=history[:, :, 16:18],
            latents_history_long=history[:, :, :16],
            return_dict=False,
        )[0]
    return flow[0]


def our_flow(
    transformer: HeliosTransformer,
    config: HeliosConfig,
    inputs: dict[str, Tensor],
    geometry: Geometry,
    stage: int,
    timestep: float,
) -> Tensor:
    frames = torch.cat([inputs["anchor"], inputs["history"]], dim=2)[0]
    count = frames.shape[1] * geometry.blocks_per_frame
    pool = HistoryPool(count + 1, torch.float32, torch.device("cpu"))
    blocks = torch.randperm(count, generator=torch.Generator().manual_seed(0)) + 1
    pool.write(frames, blocks.tolist())
    segment = PackSegment(
        history=pool.gather(blocks, geometry),
        noise=patchify(inputs["noise"][0]),
        rope=make_rope(config.transformer, geometry, stage, config.stages, torch.device("cpu")),
        timestep=timestep,
        text=transformer.read_text(
            inputs["prompt"][0, :PROMPT_TOKENS], PADDED_TOKENS - PROMPT_TOKENS
        ),
    )
    rows = transformer([segment])
    return unpatchify(rows, geometry.stage_patches(stage, config.stages))


@pytest.mark.parametrize(
    ("variant", "height", "width", "stage"),
    [
        ("base", 48, 80, 0),
        ("base", 80, 112, 0),
        ("base", 64, 128, 0),
        *[("distilled", 128, 192, stage) for stage in range(3)],
        *[("distilled", 64, 64, stage) for stage in range(3)],
    ],
)
@pytest.mark.parametrize("timestep", [0.0, 121.9948, 998.0])
def test_forward_equals_diffusers(
    variant: str,
    height: int,
    width: int,
    stage: int,
    timestep: float,
    checkpoints: dict[str, Path],
    latent_model: Any,
    latent_pipeline: Any,
) -> None:
    model: LoadedModel = latent_model(checkpoints[variant])
    geometry = Geometry(height, width)
    inputs = random_inputs(geometry, stage, model.config.stages)
    expected = their_flow(latent_pipeline(checkpoints[variant]).transformer, inputs, timestep)
    got = our_flow(loaded(model.transformer), model.config, inputs, geometry, stage, timestep)
    assert (got - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("mode", ["per_head", "scalar"])
def test_amplified_history_equals_diffusers(mode: str, tmp_path: Path, checkpoints: Any) -> None:
    """No published checkpoint amplifies its history keys, but the architecture can."""
    theirs = make_transformer(is_amplify_history=True, history_scale_mode=mode)
    theirs.save_pretrained(tmp_path / "transformer")
    for part in ("model_index.json", "scheduler", "vae"):
        (tmp_path / part).symlink_to(checkpoints["distilled"] / part)
    config = read_config(tmp_path)
    module, component = build_transformer(tmp_path, config, torch.float32)
    stream_weights(module, component, find_sources(module, component), torch.device("cpu"))
    assert isinstance(module, HeliosTransformer)
    geometry = Geometry(64, 128)
    inputs = random_inputs(geometry, 1, 3)
    got = our_flow(module, config, inputs, geometry, 1, 500.0)
    assert (got - their_flow(theirs, inputs, 500.0)).abs().max() < TOLERANCE
