"""The names that LoRA files give to layers and their tensors.

Files come from diffusers (`transformer.blocks.0.attn1.to_q.lora_A.weight`), PEFT
(`base_model.model.` in front, `lora_A.default.weight`), ComfyUI and Wan's own code
(`diffusion_model.blocks.0.self_attn.q.lora_down.weight`), and kohya's sd-scripts and musubi-tuner
(`lora_unet_blocks_0_self_attn_q.lora_down.weight`, with an `alpha`).
"""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

Part = Literal["down", "up", "alpha"]

PEFT_PREFIX = "base_model.model."
PREFIXES = (PEFT_PREFIX, "model.diffusion_model.", "diffusion_model.", "transformer.", "module.")
KOHYA_PREFIX = "lora_unet_"
TENSOR = re.compile(
    r"(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)"
    r"(\.(?P<adapter>[^.]+))?\.weight"
)
ALPHA = re.compile(r"(?P<layer>.+)\.alpha")
PARTS: dict[str, Part] = {
    "lora_A": "down",
    "lora_down": "down",
    "lora.down": "down",
    "lora_B": "up",
    "lora_up": "up",
    "lora.up": "up",
}
OTHER_KINDS = {
    r"\.(dora_scale|lora_magnitude_vector)": "DoRA",
    r"\.lora_(B|up)\.([^.]+\.)?bias$": "a bias of a LoRA layer",
    r"\.hada_": "LoHa",
    r"\.lokr_": "LoKr",
    r"\.(oft_|boft_)": "OFT",
    r"\.(diff|diff_b)$": "a difference of whole weights",
    r"\.lora_embedding_": "a LoRA of an embedding",
    r"\.modules_to_save\.": "a whole layer",
}
"""Keys of adapters that are not supported, as regular expressions, and what they are."""
WAN_NAMES = (
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])$", r".\1"),
    (r"\.to_out\.0$", ".o"),
    (r"\.ffn\.net\.0\.proj$", ".ffn.0"),
    (r"\.ffn\.net\.2$", ".ffn.2"),
    (r"^proj_out$", "head.head"),
    (r"^condition_embedder\.(text|time)_embedder\.linear_1$", r"\1_embedding.0"),
    (r"^condition_embedder\.(text|time)_embedder\.linear_2$", r"\1_embedding.2"),
    (r"^condition_embedder\.time_proj$", "time_projection.1"),
)
"""Regular expressions that turn a layer's name into the one that Wan's own code gives it."""


class TensorName(NamedTuple):
    """The key of a tensor, split into its parts.

    - `key`: the whole key.
    - `layer`: the layer's name without prefixes, in the file's own words.
    - `part`: what the tensor is.
    - `adapter`: the name of the adapter in the key, if it has one.
    """

    key: str
    layer: str
    part: Part
    adapter: str | None


def parse_key(key: str) -> TensorName | None:
    """Split a key into its parts; None if it is not a tensor of a LoRA layer."""
    if (match := TENSOR.fullmatch(key)) is not None:
        return TensorName(key, bare(match["layer"]), PARTS[match["part"]], match["adapter"])
    if (match := ALPHA.fullmatch(key)) is not None:
        return TensorName(key, bare(match["layer"]), "alpha", None)
    return None


def bare(layer: str) -> str:
    """Return a layer's name without the prefixes that libraries put in front of it."""
    for prefix in PREFIXES:
        layer = layer.removeprefix(prefix)
    return layer.removeprefix(KOHYA_PREFIX)


def kind_of(key: str) -> str | None:
    """Return the kind of unsupported adapter that a key belongs to; None for other keys."""
    return next((kind for pattern, kind in OTHER_KINDS.items() if re.search(pattern, key)), None)


def known_names(layers: Iterable[str]) -> dict[str, str]:
    """Return the layers by each name that a file may give them."""
    names = {}
    for layer in layers:
        for name in (layer, wan_name(layer)):
            names[name] = names[name.replace(".", "_")] = layer
    return names


def wan_name(layer: str) -> str:
    for pattern, replacement in WAN_NAMES:
        layer = re.sub(pattern, replacement, layer)
    return layer
