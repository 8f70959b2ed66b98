"""Computes the cross-attention keys and values of prompts, with a cache."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from helios_serve.model_executor.models.helios.inputs import TextContext
from helios_serve.model_executor.models.helios.lora import LoraAdapter
from helios_serve.model_executor.models.helios.transformer import HeliosTransformer
from helios_serve.video_request import PromptWeight

Key = tuple[tuple[PromptWeight, ...], int, LoraAdapter | None]


class PromptReader:
    """Reads prompts, with an LRU cache of text contexts of at most `cache_bytes`.

    The context that was read last is cached even if it is larger. Sessions hold the contexts that
    they use, so those outlive their eviction.
    """

    def __init__(self, transformer: HeliosTransformer, cache_bytes: int) -> None:
        self.transformer = transformer
        self.cache_bytes = cache_bytes
        self._contexts: OrderedDict[Key, TextContext] = OrderedDict()
        self._cached_bytes = 0

    def read(
        self,
        mix: tuple[PromptWeight, ...],
        states: Mapping[str, Tensor],
        max_length: int,
        adapter: LoraAdapter | None,
    ) -> TextContext:
        """Return the text context of a weighted mix of prompts.

        `states` holds the encoder states of each prompt, and `max_length` is the number of rows
        after padding.
        """
        key = (mix, max_length, adapter)
        if key in self._contexts:
            self._contexts.move_to_end(key)
            return self._contexts[key]
        rows = mix_states([(states[item.prompt], item.weight) for item in mix])
        rows = rows.to(self.transformer.device)
        context = self.transformer.read_text(rows, max_length - len(rows), adapter)
        self._contexts[key] = context
        self._cached_bytes += context.num_bytes
        while self._cached_bytes > self.cache_bytes and len(self._contexts) > 1:
            self._cached_bytes -= self._contexts.popitem(last=False)[1].num_bytes
        return context


@torch.inference_mode()
def mix_states(parts: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Return the weighted sum of encoder states, padded with zeros to the longest: (rows, dim)."""
    if len(parts) == 1:
        return parts[0][0]
    states, _ = parts[0]
    mixed = states.new_zeros(max(len(rows) for rows, _ in parts), states.shape[1]).float()
    for rows, weight in parts:
        mixed[: len(rows)].add_(rows, alpha=weight)
    return mixed
