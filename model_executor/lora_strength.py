"""How strong the layers of a LoRA adapter are: alpha / rank, from every place that states it."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from helios_serve.errors import CheckpointError

CONFIG_NAME = "adapter_config.json"
METADATA_KEY = "lora_adapter_metadata"
PREFIX = "transformer."
ALPHA_KEYS = ("lora_alpha", "network_alpha", "alpha")
RANK_KEYS = ("r", "lora_rank", "rank", "network_dim")
"""Names of alpha and rank in a flat header; the first one counts."""
SUMMARY_KEY = "ss_network_alpha"
"""kohya's header, which describes the training. The alpha tensors of a file are more exact."""
UNSUPPORTED = (
    *("use_dora", "lora_bias", "modules_to_save", "use_qalora", "trainable_token_indices"),
    *("target_parameters", "layer_replication", "alora_invocation_tokens"),
)
"""Settings of PEFT that change more than the strength."""
CHANGING_WEIGHTS = ("pissa", "olora", "corda", "loftq")
"""Initializations that change the weights of the model as well."""
TRUE = ("true", "1")


class Settings(NamedTuple):
    """What one place states: `source` names it.

    Keys of patterns are regular expressions, as in PEFT. `needs_alpha`: it must state the strength
    of every layer. `is_summary`: alpha tensors take precedence over it.
    """

    source: str
    rank: float | None
    alpha: float | None
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    is_rank_stabilized: bool
    needs_alpha: bool = False
    is_summary: bool = False

    def strength(self, names: Iterable[str], rank: int) -> float | None:
        """Return the strength of a layer of `rank` by any of its `names`; None if not stated.

        Raises CheckpointError if another rank is stated.
        """
        names = tuple(names)
        stated = matching(self.rank_pattern, names, self.rank)
        if stated is not None and stated != rank:
            raise CheckpointError(
                f"{self.source}: got rank {stated:g} for {names[0]}, expected {rank}, the rank of "
                "its tensors"
            )
        alpha = matching(self.alpha_pattern, names, self.alpha)
        if alpha is None:
            if self.needs_alpha or self.is_rank_stabilized:
                raise CheckpointError(
                    f"{self.source}: got no lora_alpha for {names[0]}, expected the strength of "
                    "every layer"
                )
            return None
        return alpha / (math.sqrt(rank) if self.is_rank_stabilized else rank)


def matching(
    pattern: Mapping[str, float], names: Iterable[str], default: float | None
) -> float | None:
    """Return the value of the first key that matches the end of a name, as PEFT matches them."""
    for key, value in pattern.items():
        if any(re.match(rf"(.*\.)?({key})$", name) for name in names):
            return value
    return default


def read_settings(file: Path, header: Mapping[str, str], *, with_config: bool) -> list[Settings]:
    """Return what the header of a LoRA file states, and its adapter_config.json if there is one.

    Raises CheckpointError for settings that are not supported or not valid.
    """
    found = []
    if METADATA_KEY in header:
        source = f"{file}: {METADATA_KEY}"
        found.append(peft_settings(source, parse_object(source, header[METADATA_KEY])))
    found += flat_settings(f"{file}: header", header)
    config = file.with_name(CONFIG_NAME)
    if with_config and config.is_file():
        try:
            text = config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{config}: cannot be read: {error}") from error
        found.append(peft_settings(str(config), parse_object(str(config), text)))
    return found


def parse_object(source: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{source} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: got {type(value).__name__}, expected a JSON object")
    return value


def peft_settings(source: str, values: Mapping[str, Any]) -> Settings:
    """Read a LoraConfig of PEFT; diffusers puts the component's name in front of its keys."""
    own = {key.removeprefix(PREFIX): value for key, value in values.items()}
    if (kind := own.get("peft_type", "LORA")) != "LORA":
        raise CheckpointError(f"{source}: got peft_type {kind!r}, expected LORA")
    for key in UNSUPPORTED:
        if own.get(key):
            raise CheckpointError(f"{source}: adapters with {key} are not supported")
    if own.get("bias", "none") != "none":
        raise CheckpointError(f"{source}: got bias {own['bias']!r}, expected none")
    start = own.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGING_WEIGHTS):
        raise CheckpointError(
            f"{source}: got init_lora_weights {start!r}, which changes the model's weights; "
            "convert the adapter to a plain LoRA first"
        )
    return Settings(
        source,
        number(source, "r", own.get("r")),
        number(source, "lora_alpha", own.get("lora_alpha")),
        pattern_of(source, "rank_pattern", own.get("rank_pattern")),
        pattern_of(source, "alpha_pattern", own.get("alpha_pattern")),
        is_rank_stabilized=bool(own.get("use_rslora")),
        needs_alpha=True,
    )


def flat_settings(source: str, header: Mapping[str, str]) -> list[Settings]:
    """Read strengths from single keys in the header of a safetensors file."""
    own = {key.removeprefix(PREFIX): value for key, value in header.items()}
    alpha = next((key for key in ALPHA_KEYS if key in own), None)
    rank = next((key for key in RANK_KEYS if key in own), None)
    patterns = {
        key: parse_object(f"{source}: {key}", own[key])
        for key in ("rank_pattern", "alpha_pattern")
        if key in own
    }
    is_stabilized = own.get("use_rslora", "").lower() in TRUE
    for key in UNSUPPORTED:
        if own.get(key, "").lower() in TRUE:
            raise CheckpointError(f"{source}: adapters with {key} are not supported")
    if alpha is None and rank is None and not patterns and not is_stabilized:
        summary = number(source, SUMMARY_KEY, header.get(SUMMARY_KEY))
        if summary is None:
            return []
        return [Settings(source, None, summary, {}, {}, False, is_summary=True)]
    stated = Settings(
        source,
        None if rank is None else number(source, rank, own[rank]),
        None if alpha is None else number(source, alpha, own[alpha]),
        pattern_of(source, "rank_pattern", patterns.get("rank_pattern")),
        pattern_of(source, "alpha_pattern", patterns.get("alpha_pattern")),
        is_rank_stabilized=is_stabilized,
    )
    return [stated]


def pattern_of(source: str, key: str, value: Any) -> dict[str, float]:
    if not value:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: {key}: got {value!r}, expected a JSON object")
    for expression in value:
        try:
            re.compile(expression)
        except re.error as error:
            raise CheckpointError(f"{source}: {key}: {expression!r}: {error}") from error
    read = {name: number(source, key, item) for name, item in value.items()}
    return {name: item for name, item in read.items() if item is not None}


def number(source: str, key: str, value: Any) -> float | None:
    """Return a finite number, which headers store as text; None if it is not stated."""
    if value is None or value in ("", "None", "null"):
        return None
    try:
        read = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        read = math.nan
    if not math.isfinite(read):
        raise CheckpointError(f"{source}: {key}: got {value!r}, expected a number")
    return read
