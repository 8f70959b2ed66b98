"""A dense forward of the transformer that can be trained: the same function as the packed one.

The packed forward runs in inference mode with kernels that work in place, so it has no gradients.
This one uses the same modules on batches of one size and stage. A test keeps the two equal.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_serve.kernels.rope import Rope
from helios_serve.model_config import TransformerConfig
from helios_serve.model_executor.models.helios.embeddings import axis_frequencies
from helios_serve.model_executor.models.helios.transformer import Block, HeliosTransformer
from helios_serve.model_executor.training.text_rows import TextRows


class DenseHistory(NamedTuple):
    """History patches: long (batch, n, 4096), mid (batch, n, 512), short (batch, n, 64)."""

    long: Tensor
    mid: Tensor
    short: Tensor


class DenseTokens(NamedTuple):
    """The flow of the noise tokens, (batch, tokens, 64), and their last hidden states."""

    flow: Tensor
    hidden: Tensor


class BlockWeights(NamedTuple):
    """The weights of a block, with the projections of one input joined."""

    qkv: Tensor
    qkv_bias: Tensor
    query_norm: Tensor
    key_norm: Tensor
    key_scale: Tensor | None
    out: Tensor
    out_bias: Tensor
    text_query: Tensor
    text_query_bias: Tensor
    text_kv: Tensor
    text_kv_bias: Tensor
    text_query_norm: Tensor
    text_key_norm: Tensor
    text_out: Tensor
    text_out_bias: Tensor
    text_norm: Tensor
    text_norm_bias: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor
    table: Tensor


class BlockShape(NamedTuple):
    """Heads, history tokens and eps of a block. The last one returns noise tokens only."""

    heads: int
    history: int
    eps: float
    last: bool


class Conditions(NamedTuple):
    """The inputs that all blocks share.

    `history_times` (1, 6, dim) and `noise_times` (batch, 6, dim) are modulations; `turns` the cos
    and sin of each token, (batch or 1, 1, tokens, head_dim / 2) each; `text` (batch, rows, dim) and
    `text_bias` (batch, 1, 1, rows) the prompt.
    """

    history_times: Tensor
    noise_times: Tensor
    turns: tuple[Tensor, Tensor]
    text: Tensor
    text_bias: Tensor


def dense_forward(
    model: HeliosTransformer,
    history: DenseHistory,
    noise: Tensor,
    timesteps: Tensor,
    text: TextRows,
    rope: Rope,
    offsets: Sequence[int] | None = None,
) -> Tensor:
    """Return the flow of the noise tokens: (batch, tokens, 64). See `dense_tokens`."""
    return dense_tokens(model, history, noise, timesteps, text, rope, offsets).flow


def dense_tokens(
    model: HeliosTransformer,
    history: DenseHistory,
    noise: Tensor,
    timesteps: Tensor,
    text: TextRows,
    rope: Rope,
    offsets: Sequence[int] | None = None,
) -> DenseTokens:
    """Run the transformer on a batch.

    `noise` is (batch, tokens, 64) and `timesteps` (batch,). `rope` holds the entries of one
    segment. `offsets` are added to the positions of frames, one per sample, but for the anchor's:
    that makes RoPE absolute, for an ablation.
    """
    config, embedder = model.config, model.condition_embedder
    embedded, modulation = embedder.embed_times(torch.cat([timesteps.new_zeros(1), timesteps]))
    x = torch.cat(
        [
            model.patch_long(history.long),
            model.patch_mid(history.mid),
            model.patch_short(history.short),
            model.patch_embedding(noise),
        ],
        dim=1,
    )
    entries = rope.entries[None, None]  # (batch, heads, tokens, pairs)
    if offsets is not None:
        anchor = history.long.shape[1] + history.mid.shape[1]
        entries = shifted_entries(model.config, entries, offsets, anchor, history.short.shape[1])
    conditions = Conditions(
        modulation[:1],
        modulation[1:],
        (entries.real.contiguous(), entries.imag.contiguous()),
        embedder.embed_text(text.rows),
        text.bias[:, None, None, :],
    )
    shape = BlockShape(
        config.num_attention_heads, x.shape[1] - noise.shape[1], config.eps, last=False
    )
    blocks = model.layers
    for layer in blocks:
        x = run_block(x, weights_of(layer), conditions, shape._replace(last=layer is blocks[-1]))
    norm = model.norm_out.table(embedded[1:])
    normed = F.layer_norm(x, x.shape[-1:], eps=config.eps)
    out = normed * norm.weight[:, None] + norm.bias[:, None]
    return DenseTokens(F.linear(out, model.proj_out.weight, model.proj_out.bias), x)


def shifted_entries(
    config: TransformerConfig, entries: Tensor, offsets: Sequence[int], anchor: int, short: int
) -> Tensor:
    """Move all tokens but the anchor's, from `anchor` on, by `offsets` frames: (batch, 1, ...).

    `short` counts the tokens of the anchor and the last frame.
    """
    pairs = config.rope_dim[0] // 2
    frequencies = axis_frequencies(config.rope_dim[0], config.rope_theta)
    angles = torch.outer(torch.tensor(offsets, dtype=torch.float32), frequencies)
    turn = F.pad(torch.polar(torch.ones_like(angles), angles), (0, entries.shape[-1] - pairs))
    turn[:, pairs:] = 1
    moved = entries * turn[:, None, None].to(entries.device)
    first, last = slice(anchor, anchor + short // 2), anchor + short // 2
    still = entries[:, :, first].expand(len(offsets), -1, -1, -1)
    return torch.cat([moved[:, :, :anchor], still, moved[:, :, last:]], dim=2)


def weights_of(layer: Block) -> BlockWeights:
    """Return the weights of a block."""
    own, text = layer.attn1, layer.attn2
    out, text_out = linear(own.to_out[0]), linear(text.to_out[0])
    net: Any = layer.ffn.net
    up, down = linear(net[0].proj), linear(net[2])
    return BlockWeights(
        torch.cat([own.to_q.weight, own.to_k.weight, own.to_v.weight]),
        torch.cat([own.to_q.bias, own.to_k.bias, own.to_v.bias]),
        own.norm_q.weight,
        own.norm_k.weight,
        own.history_scale,
        *out,
        text.to_q.weight,
        text.to_q.bias,
        torch.cat([text.to_k.weight, text.to_v.weight]),
        torch.cat([text.to_k.bias, text.to_v.bias]),
        text.norm_q.weight,
        text.norm_k.weight,
        *text_out,
        layer.norm2.weight,
        layer.norm2.bias,
        *up,
        *down,
        layer.scale_shift_table,
    )


def linear(layer: Any) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a linear layer."""
    return layer.weight, layer.bias


def run_block(x: Tensor, weights: BlockWeights, given: Conditions, shape: BlockShape) -> Tensor:
    """Run a block on x (batch, tokens, dim). The last one returns the noise tokens."""
    dim, count = x.shape[-1], shape.history
    history = (weights.table + given.history_times).unbind(1)
    noise = (weights.table + given.noise_times).unbind(1)
    normed = modulated(x, (history[1], history[0]), (noise[1], noise[0]), shape)
    update = attend_history(normed, weights, given, shape)
    if shape.last:
        x = x[:, count:] + update * noise[2][:, None]
        count = 0
    else:
        x = x + gated(update, history[2], noise[2], count)
    normed = F.layer_norm(
        x[:, count:], (dim,), weights.text_norm, weights.text_norm_bias, shape.eps
    )
    update = attend_text(normed, weights, given, shape)
    x = torch.cat([x[:, :count], x[:, count:] + update], dim=1) if count else x + update
    inner = shape._replace(history=count)
    normed = modulated(x, (history[4], history[3]), (noise[4], noise[3]), inner)
    hidden = F.gelu(F.linear(normed, weights.up, weights.up_bias), approximate="tanh")
    update = F.linear(hidden, weights.down, weights.down_bias)
    return x + gated(update, history[5], noise[5], count)


def modulated(
    x: Tensor, history: tuple[Tensor, Tensor], noise: tuple[Tensor, Tensor], shape: BlockShape
) -> Tensor:
    """Norm x and apply (scale, shift), which differ between history and noise tokens."""
    normed = F.layer_norm(x, x.shape[-1:], eps=shape.eps)
    late = normed[:, shape.history :] * (1 + noise[0][:, None]) + noise[1][:, None]
    if shape.history == 0:
        return late
    early = normed[:, : shape.history] * (1 + history[0][:, None]) + history[1][:, None]
    return torch.cat([early, late], dim=1)


def gated(update: Tensor, history: Tensor, noise: Tensor, count: int) -> Tensor:
    late = update[:, count:] * noise[:, None]
    if count == 0:
        return late
    return torch.cat([update[:, :count] * history[:, None], late], dim=1)


def attend_history(
    normed: Tensor, weights: BlockWeights, given: Conditions, shape: BlockShape
) -> Tensor:
    """Self-attention over history and noise (unified history injection)."""
    query, key, value = F.linear(normed, weights.qkv, weights.qkv_bias).chunk(3, dim=-1)
    cos, sin = given.turns
    if shape.last:
        count = shape.history
        late = cos[:, :, count:], sin[:, :, count:]
        query = turned(query[:, count:], weights.query_norm, late, shape)
    else:
        query = turned(query, weights.query_norm, (cos, sin), shape)
    key = turned(key, weights.key_norm, (cos, sin), shape)
    if weights.key_scale is not None:
        scaled = key[:, :, : shape.history] * weights.key_scale[:, None, None]
        key = torch.cat([scaled, key[:, :, shape.history :]], dim=2)
    mixed = F.scaled_dot_product_attention(query, key, by_head(value, shape))
    return F.linear(mixed.transpose(1, 2).flatten(2), weights.out, weights.out_bias)


def attend_text(
    normed: Tensor, weights: BlockWeights, given: Conditions, shape: BlockShape
) -> Tensor:
    """Cross-attention of noise tokens to the prompt."""
    query = F.linear(normed, weights.text_query, weights.text_query_bias)
    key, value = F.linear(given.text, weights.text_kv, weights.text_kv_bias).chunk(2, dim=-1)
    mixed = F.scaled_dot_product_attention(
        by_head(root_norm(query, weights.text_query_norm, shape.eps), shape),
        by_head(root_norm(key, weights.text_key_norm, shape.eps), shape),
        by_head(value, shape),
        attn_mask=given.text_bias,
    )
    return F.linear(mixed.transpose(1, 2).flatten(2), weights.text_out, weights.text_out_bias)


def root_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


def by_head(x: Tensor, shape: BlockShape) -> Tensor:
    """(batch, tokens, dim) -> (batch, heads, tokens, head_dim)."""
    return x.reshape(*x.shape[:2], shape.heads, -1).transpose(1, 2)


def turned(x: Tensor, norm: Tensor, turns: tuple[Tensor, Tensor], shape: BlockShape) -> Tensor:
    """Norm queries or keys, split them by head and rotate pairs: (batch, heads, tokens, ...)."""
    cos, sin = turns
    split = by_head(root_norm(x, norm, shape.eps), shape)
    first, second = split.reshape(*split.shape[:-1], -1, 2).unbind(-1)
    pairs = [first * cos - second * sin, first * sin + second * cos]
    return torch.stack(pairs, dim=-1).flatten(-2)
