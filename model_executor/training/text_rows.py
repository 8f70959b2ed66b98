"""Encoded prompts of a batch, padded as the served model pads them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_LENGTH = 512
"""Rows of a prompt after padding, the default of `max_sequence_length`."""
HIDDEN = -1e4
"""Bias of rows that fill up a batch: their weight is 0."""


class TextRows(NamedTuple):
    """Encoder states (batch, rows, text_dim), and a bias on the attention logits (batch, rows).

    The zero rows that pad a prompt to 512 are represented by one, whose bias is the logarithm of
    their number.
    """

    rows: Tensor
    bias: Tensor


def encode_captions(encoder: Any, tokenizer: Any, captions: Sequence[str]) -> TextRows:
    """Encode captions with gradients."""
    tokens = tokenizer(
        list(captions),
        max_length=MAX_LENGTH,
        truncation=True,
        padding=True,
        pad_to_multiple_of=16,
        return_tensors="pt",
    )
    device = encoder.shared.weight.device
    mask = tokens.attention_mask.to(device)
    states = encoder(input_ids=tokens.input_ids.to(device), attention_mask=mask).last_hidden_state
    rows = torch.cat([states * mask[..., None], torch.zeros_like(states[:, :1])], dim=1)
    padding = MAX_LENGTH - mask.sum(dim=1)
    logs = [math.log(count) if count else HIDDEN for count in padding.tolist()]
    bias = torch.cat([(1.0 - mask) * HIDDEN, torch.tensor(logs, device=device)[:, None]], dim=1)
    return TextRows(rows, bias)
