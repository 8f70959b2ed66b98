"""Tiny random Helios checkpoints, written by diffusers and transformers themselves.

All three variants share their weights and differ in pipeline class, scheduler and flags, as the
published ones do. Norms, biases and tables are moved away from their neutral values and output
projections scaled up, so that every one of them shows in a comparison.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    HeliosDMDScheduler,
    HeliosPipeline,
    HeliosPyramidPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
)
from diffusers.utils import logging
from torch import nn
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

VARIANTS = ("base", "mid", "distilled")
WORDS = (
    "a dog runs over the green hill while waves rise and one yellow car speeds along static blurred"
)
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?-'"
TEXT_DIM = 64

logging.set_verbosity_error()
logging.disable_progress_bar()


def write_tiny_checkpoints(folder: Path, **transformer: Any) -> dict[str, Path]:
    """Write all three variants below `folder`, with `transformer` over its configuration."""
    tokenizer = make_tokenizer()
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": make_text_encoder(len(tokenizer)),
        "vae": make_vae(),
        "transformer": make_transformer(**transformer),
    }
    for variant in VARIANTS:
        make_pipeline(variant, parts).save_pretrained(folder / variant)
    return {variant: folder / variant for variant in VARIANTS}


def make_pipeline(variant: str, parts: dict[str, Any]) -> Any:
    common = {
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "gamma": 1 / 3,
        "use_dynamic_shifting": True,
        "use_flow_sigmas": True,
        "prediction_type": "flow_prediction",
    }
    pyramid = {"stages": 3, "stage_range": [0, 1 / 3, 2 / 3, 1]}
    if variant == "base":
        scheduler = HeliosScheduler(
            stages=1, stage_range=[0, 1], time_shift_type="exponential", **common
        )
        return HeliosPipeline(scheduler=scheduler, **parts)
    if variant == "mid":
        scheduler = HeliosScheduler(time_shift_type="exponential", **pyramid, **common)
        return HeliosPyramidPipeline(scheduler=scheduler, is_cfg_zero_star=True, **parts)
    dmd = HeliosDMDScheduler(time_shift_type="linear", **pyramid, **common)
    return HeliosPyramidPipeline(scheduler=dmd, is_distilled=True, **parts)


def make_tokenizer() -> T5TokenizerFast:
    pieces = ["<pad>", "</s>", "<unk>", *(f"\u2581{word}" for word in sorted(set(WORDS.split())))]
    scores = [0.0] * 3 + [-3.0] * (len(pieces) - 3)
    pieces += ["\u2581", *LETTERS]
    scores += [-8.0] * (len(pieces) - len(scores))
    return T5TokenizerFast(
        vocab=list(zip(pieces, scores, strict=True)),
        extra_ids=0,
        additional_special_tokens=None,
        model_max_length=512,
    )


def make_text_encoder(vocab_size: int) -> UMT5EncoderModel:
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=vocab_size,
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        is_encoder_decoder=False,
        tie_word_embeddings=True,
        dropout_rate=0.0,
    )
    return unsettle(UMT5EncoderModel(config), 0.1)


def make_vae() -> AutoencoderKLWan:
    torch.manual_seed(1)
    vae = AutoencoderKLWan(base_dim=8, dim_mult=[1, 2, 2, 2], num_res_blocks=1)
    return unsettle(vae, 0.1)


def make_transformer(**overrides: Any) -> HeliosTransformer3DModel:
    torch.manual_seed(2)
    settings: dict[str, Any] = {
        "num_attention_heads": 4,
        "attention_head_dim": 32,
        "text_dim": TEXT_DIM,
        "ffn_dim": 256,
        "num_layers": 3,
        "rope_dim": (12, 10, 10),
    }
    model = unsettle(HeliosTransformer3DModel(**(settings | overrides)), 0.2)
    gains = {"to_out.0": 4.0, "net.2": 3.0, "patch_": 2.0, "proj_out": 1.5, "attn2.to_out.0": 1.5}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for part, gain in gains.items():
                if part in name and name.endswith("weight"):
                    parameter.mul_(gain)
            if name.endswith("history_key_scale"):
                parameter.normal_()
    return model


def unsettle(module: nn.Module, spread: float) -> Any:
    """Set norms to random values around one, and biases to random values around zero."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.05)
            elif "gamma" in name or ("norm" in name and parameter.ndim == 1):
                parameter.add_(torch.randn_like(parameter), alpha=spread)
    return module.eval()
