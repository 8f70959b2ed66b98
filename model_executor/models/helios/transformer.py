"""The Helios transformer over packed tokens.

Parameter names are those of the Hugging Face checkpoint. Every linear layer runs once over the
pack; attention runs a segment at a time. History and noise share self-attention (unified history
injection) but history always takes timestep 0, and only noise attends to text.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helios_serve.kernels import reference as kernels
from helios_serve.model_config import PATCH_DIM, TransformerConfig
from helios_serve.model_executor.models.helios.embeddings import ConditionEmbedder
from helios_serve.model_executor.models.helios.inputs import (
    PackLayout,
    Segment,
    TextContext,
    lay_out,
)
from helios_serve.model_executor.models.helios.lora import LoraAdapter, LoraLinear, name_layers

MAX_HISTORY_SCALE = 10.0
"""Amplified history keys are scaled by 1 to this."""


class Attention(nn.Module):
    """Projections and norms shared by self- and cross-attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.inner_dim
        self.heads = config.num_attention_heads
        self.eps = config.eps
        self.to_q = LoraLinear(dim, dim)
        self.to_k = LoraLinear(dim, dim)
        self.to_v = LoraLinear(dim, dim)
        self.to_out = nn.ModuleList([LoraLinear(dim, dim)])
        self.norm_q = nn.RMSNorm(dim, eps=config.eps)
        self.norm_k = nn.RMSNorm(dim, eps=config.eps)

    def queries(self, x: Tensor, layout: PackLayout, rope: Tensor | None = None) -> Tensor:
        """(rows, dim) -> (rows, heads, head_dim), normed and, with `rope`, rotated."""
        projected = self.to_q(x, layout.lora)
        return kernels.qk_norm_rope(projected, self.norm_q.weight, rope, self.heads, self.eps)


class SelfAttention(Attention):
    """Attention of every token to its own segment's history and noise."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        if config.is_amplify_history:
            per_head = config.history_scale_mode == "per_head"
            self.history_key_scale = nn.Parameter(torch.ones(self.heads if per_head else 1))

    def keys(self, x: Tensor, layout: PackLayout, rope: Tensor) -> Tensor:
        projected = self.to_k(x, layout.lora)
        key = kernels.qk_norm_rope(projected, self.norm_k.weight, rope, self.heads, self.eps)
        if hasattr(self, "history_key_scale"):
            scale = 1 + self.history_key_scale.sigmoid() * (MAX_HISTORY_SCALE - 1)
            for span in layout.spans:
                key[span.start : span.noise] *= scale.view(-1, 1).to(key.dtype)
        return key

    def forward(self, x: Tensor, layout: PackLayout, rope: Tensor) -> Tensor:
        """x (tokens, dim) -> (tokens, dim)."""
        query = self.queries(x, layout, rope)
        return self.attend(query, [span.rows for span in layout.spans], x, layout, rope, layout)

    def forward_noise(self, x: Tensor, layout: PackLayout, rope: Tensor) -> Tensor:
        """As `forward`, but for the noise tokens alone: (tokens, dim) -> (noise tokens, dim)."""
        noise = layout.noise_only
        query = self.queries(take_noise(x, layout), noise, take_noise(rope, layout))
        return self.attend(query, [span.rows for span in noise.spans], x, layout, rope, noise)

    def attend(
        self,
        query: Tensor,
        query_rows: Sequence[slice],
        x: Tensor,
        layout: PackLayout,
        rope: Tensor,
        out_layout: PackLayout,
    ) -> Tensor:
        key = self.keys(x, layout, rope)
        value = self.to_v(x, layout.lora).unflatten(-1, (self.heads, -1))
        mixed = [
            kernels.attention(query[rows], key[span.rows], value[span.rows])
            for rows, span in zip(query_rows, layout.spans, strict=True)
        ]
        out: Tensor = self.to_out[0](kernels.join(mixed), out_layout.lora)
        return out


class CrossAttention(Attention):
    """Attention of noise tokens to their segment's prompt."""

    def keys_values(
        self, text: Tensor, lora: Sequence[tuple[slice, LoraAdapter]]
    ) -> tuple[Tensor, Tensor]:
        """Text rows (rows, dim) -> keys and values (rows, heads, head_dim)."""
        projected = self.to_k(text, lora)
        key = kernels.qk_norm_rope(projected, self.norm_k.weight, None, self.heads, self.eps)
        return key, self.to_v(text, lora).unflatten(-1, (self.heads, -1))

    def forward(
        self, x: Tensor, layout: PackLayout, texts: Sequence[TextContext], layer: int
    ) -> Tensor:
        """x holds noise tokens only, as `layout` says: (tokens, dim) -> (tokens, dim)."""
        query = self.queries(x, layout)
        mixed = [
            kernels.attention(query[span.rows], text.keys[layer], text.values[layer], text.bias)
            for span, text in zip(layout.spans, texts, strict=True)
        ]
        out: Tensor = self.to_out[0](kernels.join(mixed), layout.lora)
        return out


class GeluProjection(nn.Module):
    """The widening half of the feed-forward network."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = LoraLinear(dim, hidden)

    def forward(self, x: Tensor, lora: Sequence[tuple[slice, LoraAdapter]]) -> Tensor:
        return F.gelu(self.proj(x, lora), approximate="tanh")


class FeedForward(nn.Module):
    """The feed-forward network; `net` carries the checkpoint's indices."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [GeluProjection(dim, hidden), nn.Identity(), LoraLinear(hidden, dim)]
        )

    def forward(self, x: Tensor, layout: PackLayout) -> Tensor:
        out: Tensor = self.net[2](self.net[0](x, layout.lora), layout.lora)
        return out


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, modulated by the timestep."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        dim = config.inner_dim
        self.layer = layer
        self.eps = config.eps
        self.attn1 = SelfAttention(config)
        self.attn2 = CrossAttention(config)
        self.norm2 = nn.LayerNorm(dim, config.eps)
        self.ffn = FeedForward(dim, config.ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 6, dim))

    def forward(
        self,
        x: Tensor,
        layout: PackLayout,
        rope: Tensor,
        modulation: Tensor,
        texts: Sequence[TextContext],
        *,
        noise_only: bool,
    ) -> Tensor:
        """x (tokens, dim) is updated in place and returned.

        With `noise_only`, as in the last block, history serves as keys and values only and just
        the noise tokens are returned.
        """
        table = (self.scale_shift_table + modulation.float()).unbind(1)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = table

        normed = kernels.norm_modulate(x, layout.runs, scale, shift, self.eps)
        if noise_only:
            update = self.attn1.forward_noise(normed, layout, rope)
            x, layout = take_noise(x, layout), layout.noise_only
        else:
            update = self.attn1(normed, layout, rope)
        kernels.gated_residual_(x, update, layout.runs, gate)

        self.read_text_(x, layout, texts)

        normed = kernels.norm_modulate(x, layout.runs, ffn_scale, ffn_shift, self.eps)
        kernels.gated_residual_(x, self.ffn(normed, layout), layout.runs, ffn_gate)
        return x

    def read_text_(self, x: Tensor, layout: PackLayout, texts: Sequence[TextContext]) -> None:
        """Add cross-attention to the noise tokens of x in place."""
        norm, noise = self.norm2, layout.noise_only
        rows = take_noise(x, layout).float()
        normed = F.layer_norm(rows, rows.shape[-1:], norm.weight, norm.bias, self.eps).to(x.dtype)
        update = self.attn2(normed, noise, texts, self.layer)
        for span, source in zip(layout.spans, noise.spans, strict=True):
            x[span.noise_rows] += update[source.rows]


class OutputNorm(nn.Module):
    """The table that modulates the final norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 2, dim))


class HeliosTransformer(nn.Module):
    """Predicts the flow of noise tokens, given history, timestep and text.

    Source: Helios (arXiv 2603.04379); numerics follow diffusers 0.42.1.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.inner_dim
        self.config = config
        self.patch_embedding = nn.Linear(PATCH_DIM, dim)
        self.patch_short = nn.Linear(PATCH_DIM, dim)
        self.patch_mid = nn.Linear(PATCH_DIM * 8, dim)
        self.patch_long = nn.Linear(PATCH_DIM * 64, dim)
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList([Block(config, layer) for layer in range(config.num_layers)])
        self.norm_out = OutputNorm(dim)
        self.proj_out = LoraLinear(dim, PATCH_DIM)
        name_layers(self)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of tokens, history and text; norms and modulation are fp32 throughout."""
        return self.proj_out.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.proj_out.weight.device

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment]) -> Tensor:
        """Flow rows of every segment's noise tokens, end to end: (noise tokens, 64)."""
        layout, timesteps = lay_out(segments)
        rope = kernels.join([segment.rope for segment in segments])
        texts = [segment.text for segment in segments]
        x = self.embed_patches(segments)
        times = torch.tensor([0.0, *timesteps], device=x.device)
        embedded, modulation = self.condition_embedder.embed_times(times)
        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            x = block(x, layout, rope, modulation, texts, noise_only=layer == last)
        return self.project_out(x, layout.noise_only, embedded)

    def embed_patches(self, segments: Sequence[Segment]) -> Tensor:
        """Multi-term memory patchification and noise patches: (tokens, dim)."""
        sources = (
            (self.patch_long, [segment.history.long for segment in segments]),
            (self.patch_mid, [segment.history.mid for segment in segments]),
            (self.patch_short, [segment.history.short for segment in segments]),
            (self.patch_embedding, [segment.noise.to(self.dtype) for segment in segments]),
        )
        embedded = [
            layer(kernels.join(rows)).split([len(part) for part in rows]) for layer, rows in sources
        ]
        return torch.cat([part for parts in zip(*embedded, strict=True) for part in parts])

    def project_out(self, x: Tensor, layout: PackLayout, embedded: Tensor) -> Tensor:
        """Noise tokens (rows, dim) -> flow rows (rows, 64)."""
        table = self.norm_out.scale_shift_table + embedded.unsqueeze(1)
        shift, scale = table.float().unbind(1)
        normed = kernels.norm_modulate(x, layout.runs, scale, shift, self.config.eps)
        out: Tensor = self.proj_out(normed, layout.lora)
        return out

    @torch.inference_mode()
    def read_text(
        self, rows: Tensor, padding: int, adapter: LoraAdapter | None = None
    ) -> TextContext:
        """Cross-attention keys and values of a prompt, in every layer.

        `rows` are the encoder's states of its real tokens, (rows, text_dim); `padding` zero rows
        follow. They are identical, so one stands for all, with log(padding) added to its logit.
        """
        bias = None
        rows = rows.to(self.dtype)
        if padding:
            logs = log_parts(padding, self.dtype).to(rows.device)
            bias = torch.cat([logs.new_zeros(len(rows)), logs])
            rows = torch.cat([rows, rows.new_zeros(len(logs), rows.shape[1])])
        text = self.condition_embedder.embed_text(rows)
        lora = [] if adapter is None else [(slice(None), adapter)]
        readers = [block.get_submodule("attn2") for block in self.blocks]
        pairs = [
            reader.keys_values(text, lora)
            for reader in readers
            if isinstance(reader, CrossAttention)
        ]
        keys, values = zip(*pairs, strict=True)
        return TextContext(keys, values, bias)


def log_parts(count: int, dtype: torch.dtype) -> Tensor:
    """Numbers of `dtype` whose exponentials add up to `count`, to a millionth.

    Attention kernels take a bias in the dtype of the keys only, and bfloat16 misses log(count) by
    up to a percent of the sum: so the rest gets a row of its own, and its rest another.
    """
    parts: list[float] = []
    rest = float(count)
    while rest > 1e-6 * count:
        part = torch.tensor(math.log(rest)).to(dtype)
        if part.double().exp() > rest * (1 + 1e-6):
            part = torch.nextafter(part, part.new_tensor(-torch.inf))
        parts.append(part.item())
        rest -= part.double().exp().item()
    return torch.tensor(parts, dtype=dtype)


def take_noise(x: Tensor, layout: PackLayout) -> Tensor:
    """The rows of noise tokens, end to end; a view where there is one segment."""
    if all(span.start == span.noise for span in layout.spans):
        return x
    return kernels.join([x[span.noise_rows] for span in layout.spans])
