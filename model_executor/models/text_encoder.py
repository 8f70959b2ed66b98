"""UMT5 of transformers: prompts to the states of their real tokens."""

import html
import re
from collections import OrderedDict
from typing import Any

import ftfy
import torch
from torch import Tensor

MAX_CACHED_PROMPTS = 256


class TextEncoder:
    """Thin wrapper of UMT5EncoderModel and its tokenizer, with a cache of encoded prompts.

    Its layers work on `device`; its embedding may lie elsewhere.

    Weights must be tied: published checkpoints store `shared.weight` alone, and an encoder whose
    own embedding stayed untied reads every prompt as zeros.
    """

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = device
        self._cache: OrderedDict[tuple[str, int], Tensor] = OrderedDict()

    @torch.inference_mode()
    def encode(self, prompt: str, max_length: int) -> Tensor:
        """States of the real tokens, at most `max_length` of them: (tokens, text_dim)."""
        key = (clean(prompt), max_length)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        # Padding is masked in the encoder and cut from its states, so it is left out at once.
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
    """Mend the encoding, unescape entities twice and fold white space, as in training."""
    mended = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", mended).strip()
