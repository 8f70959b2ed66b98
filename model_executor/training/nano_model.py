"""The modules that are trained together: transformer and text encoder."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import torch
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from helios_serve.model_config import HeliosConfig, SamplerConfig, TransformerConfig, Variant
from helios_serve.model_executor.models.architectures import UMT5_XXL, scheduler_config
from helios_serve.model_executor.models.helios.transformer import Block, HeliosTransformer
from helios_serve.model_executor.models.nano.vocabulary import trained_tokenizer
from helios_serve.model_executor.training.recipe import Recipe
from helios_serve.model_executor.training.text_rows import TextRows, encode_captions


class NanoModel(nn.Module):
    """A transformer and its text encoder, which learns with it."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.ablation = recipe.ablation
        self.tokenizer = trained_tokenizer()
        settings = UMT5_XXL | recipe.text | {"vocab_size": len(self.tokenizer)}
        self.text_encoder: Any = UMT5EncoderModel(UMT5Config(**settings, tie_word_embeddings=True))
        self.transformer = HeliosTransformer(msgspec.convert(recipe.transformer, TransformerConfig))
        initialize(self.transformer)

    def encode(self, captions: Sequence[str]) -> TextRows:
        return encode_captions(self.text_encoder, self.tokenizer, captions)


def initialize(model: HeliosTransformer) -> None:
    """Start close to the identity: residual branches are open, but their last layers are zero."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    zeroed: list[Any] = [model.proj_out, model.condition_embedder.time_proj]
    for layer in model.layers:
        assert isinstance(layer, Block)
        zeroed += [layer.attn1.to_out[0], layer.attn2.to_out[0], layer.ffn.net[2]]
        nn.init.zeros_(layer.scale_shift_table)
        with torch.no_grad():
            layer.scale_shift_table[:, [2, 5]] = 1.0
    for module in zeroed:
        nn.init.zeros_(module.weight)
    # Long patches sum 64 base patches; without this their tokens would be eight times as large.
    with torch.no_grad():
        for module in (model.patch_long, model.patch_mid):
            module.weight /= math.sqrt(module.weight.shape[1] / 64)


def variant_config(variant: Variant, transformer: TransformerConfig) -> HeliosConfig:
    """Return the configuration of a published variant with these widths."""
    stored = scheduler_config(variant)
    solver = "dmd" if variant == "distilled" else "unipc"
    keys = SamplerConfig.__struct_fields__
    known = {key: value for key, value in stored.items() if key in keys}
    return HeliosConfig(
        variant=variant,
        transformer=transformer,
        scheduler=msgspec.convert(known | {"solver": solver}, SamplerConfig),
        cfg_zero_star=variant == "mid",
    )
