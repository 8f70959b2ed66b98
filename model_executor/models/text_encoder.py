"""The UMT5 text encoder: encodes prompts to the states of their tokens."""

import html
import re
from collections import OrderedDict
from typing import Any

import ftfy
import torch
from torch import Tensor

MAX_CACHED_PROMPTS = 256


class TextEncoder:
    """Wraps UMT5EncoderModel and its tokenizer, and caches the last 256 encoded prompts.

    The layers of `model` run on `device`; its embedding may be on another device. The embedding
    must be tied: published checkpoints store `shared.weight` only, and an untied encoder would
    encode every prompt as zeros.
    """

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = device
        self._cache: OrderedDict[tuple[str, int], Tensor] = OrderedDict()

    @torch.inference_mode()
    def encode(self, prompt: str, max_length: int) -> Tensor:
        """Encode a prompt, truncated to `max_length` tokens: (tokens, text_dim), unpadded."""
        key = (clean(prompt), max_length)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        # The encoder masks padding, and its states would be dropped, so no padding is added.
        tokens = self.tokenizer(
            [key[0]], max_length=max_length, truncation=True, return_tensors="pt"
        )
        embedding = self.model.get_input_embeddings()
        rows = embedding(tokens.input_ids.to(embedding.weight.device)).to(self.device)
        states = self.model(inputs_embeds=rows).last_hidden_state[0]
        self._cache[key] = states
        if len(self._cache) > MAX_CACHED_PROMPTS:
            self._cache.popitem(last=False)
        return self._cache[key]


def clean(prompt: str) -> str:
    """Fix the encoding, unescape HTML entities twice and collapse white space, as in training."""
    mended = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", mended).strip()
