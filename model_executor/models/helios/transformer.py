"""The Helios transformer over packed tokens.

Each linear layer runs once over the pack; attention is restricted to segments. History and noise
tokens share self-attention (unified history injection), but history always has timestep 0, and only
noise tokens attend to the text. Parameter names are those of the Hugging Face checkpoints.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from helios_serve.kernels.backend import AUTO, KernelChoice, choose_kernels
from helios_serve.kernels.fp8 import Rows
from helios_serve.kernels.registry import kernels_of
from helios_serve.kernels.rows import NormTable
from helios_serve.model_config import PATCH_DIM, TransformerConfig
from helios_serve.model_executor.models.helios.embeddings import ConditionEmbedder
from helios_serve.model_executor.models.helios.exchange import Ranks
from helios_serve.model_executor.models.helios.inputs import (
    Pack,
    PackedText,
    PackLayout,
    PackSegment,
    TextContext,
    kinds_of,
    log_parts,
    make_pack,
    take_noise,
)
from helios_serve.model_executor.models.helios.lora import (
    AdapterRows,
    LoraAdapter,
    LoraLinear,
    Projections,
    name_layers,
)

SCALES = slice(1, None, 3)
"""The columns of a modulation table that scale a norm: 1 and 4 of 6."""
MAX_HISTORY_SCALE = 10.0
"""Upper bound of the learned scale of history keys; the lower bound is 1."""


class Attention(nn.Module):
    """The projections and norms of self- and cross-attention."""

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


class SelfAttention(Attention):
    """Attention of each token to the history and noise tokens of its segment."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.projections = Projections(self.to_q, self.to_k, self.to_v)
        self.backend = AUTO
        """The path of attention, by its name in `kernels.attention`."""
        if config.is_amplify_history:
            per_head = config.history_scale_mode == "per_head"
            self.history_key_scale = nn.Parameter(torch.ones(self.heads if per_head else 1))

    @property
    def history_scale(self) -> Tensor | None:
        """The factors of the history keys, (heads,); None if the checkpoint does not scale them."""
        if not hasattr(self, "history_key_scale"):
            return None
        scale = 1 + self.history_key_scale.sigmoid() * (MAX_HISTORY_SCALE - 1)
        return scale.expand(self.heads)

    def forward(self, x: Rows, pack: Pack) -> Tensor:
        """x (tokens, dim) -> (tokens, dim)."""
        layout = pack.layout
        query, key, value = self.projections(x, layout.lora)
        query, key = kernels_of(query).qk_norm_rope_(
            query,
            key,
            (self.norm_q.weight, self.norm_k.weight),
            pack.rope,
            layout.rows,
            self.heads,
            self.eps,
            history_scale=self.history_scale,
        )
        return self.attend(query, key, value, layout, layout)

    def forward_noise(self, x: Rows, pack: Pack) -> Tensor:
        """Like `forward`, with queries of the noise tokens only: (tokens, dim) -> (noise, dim)."""
        layout, noise = pack.layout, pack.layout.noise_only
        query = self.to_q(take_noise(x, layout), noise.lora)
        key, value = self.projections(x, layout.lora, skip=1)
        kernels = kernels_of(query)
        query = kernels.norm_rope_(query, self.norm_q.weight, pack.noise_rope, self.heads, self.eps)
        key = kernels.norm_rope_(
            key,
            self.norm_k.weight,
            pack.rope,
            self.heads,
            self.eps,
            history_scale=self.history_scale,
            rows=layout.rows,
        )
        return self.attend(query, key, value, noise, layout)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, queries: PackLayout, keys: PackLayout
    ) -> Tensor:
        """Return the output projection of attention, for queries and keys of the given layouts."""
        attention = kernels_of(query, self.backend).attention
        value = value.view(len(value), self.heads, -1)
        query_exchange, key_exchange = queries.exchange, keys.exchange
        if query_exchange is None or key_exchange is None:
            mixed = attention(query, key, value, queries.lengths, keys.lengths)
        else:
            query, key, value = (
                query_exchange.to_heads(query),
                key_exchange.to_heads(key),
                key_exchange.to_heads(value),
            )
            mixed = attention(query, key, value, query_exchange.lengths, key_exchange.lengths)
            mixed = query_exchange.to_rows(mixed)
        out: Tensor = self.to_out[0](mixed, queries.lora)
        return out


class CrossAttention(Attention):
    """Attention of noise tokens to the prompt of their segment."""

    def keys_values(self, text: Tensor, lora: AdapterRows) -> tuple[Tensor, Tensor]:
        """Text rows (rows, dim) -> keys and values (rows, heads, head_dim)."""
        kernels, projected = kernels_of(text), self.to_k(text, lora)
        key = kernels.norm_rope_(projected, self.norm_k.weight, None, self.heads, self.eps)
        return key, self.to_v(text, lora).unflatten(-1, (self.heads, -1))

    def forward(self, x: Rows, layout: PackLayout, text: PackedText, layer: int) -> Tensor:
        """x (noise tokens, dim) -> (noise tokens, dim); `layout` is the noise tokens' own."""
        projected = self.to_q(x, layout.lora)
        kernels = kernels_of(projected)
        query = kernels.norm_rope_(projected, self.norm_q.weight, None, self.heads, self.eps)
        key, value = text.layer(layer)
        mixed = kernels.text_attention(query, key, value, layout.lengths, text.lengths, text.bias)
        out: Tensor = self.to_out[0](mixed, layout.lora)
        return out


class GeluProjection(nn.Module):
    """The first layer of the feed-forward network, with its activation."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = LoraLinear(dim, hidden)

    def forward(self, x: Rows, lora: AdapterRows, *, in_fp8: bool) -> Rows:
        """x (rows, dim) -> (rows, hidden), in float8 if `in_fp8`."""
        if in_fp8:
            hidden: Tensor = self.proj(x, lora)
            return kernels_of(hidden).gelu_fp8(hidden)
        activated: Tensor = self.proj(x, lora, gelu=True)
        return activated


class FeedForward(nn.Module):
    """The feed-forward network. The indices of `net` are the checkpoint's."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [GeluProjection(dim, hidden), nn.Identity(), LoraLinear(hidden, dim)]
        )

    def forward(self, x: Rows, layout: PackLayout, *, in_fp8: bool) -> Tensor:
        """x (rows, dim) -> (rows, dim); with `in_fp8` what is in between is in float8."""
        hidden = self.net[0](x, layout.lora, in_fp8=in_fp8)
        out: Tensor = self.net[2](hidden, layout.lora)
        return out


class BlockTable(NamedTuple):
    """The modulation of a block, one row per timestep of the pack: fp32 (rows, dim) each."""

    norm: NormTable
    gate: Tensor
    ffn_norm: NormTable
    ffn_gate: Tensor

    @classmethod
    def of(cls, table: Tensor) -> "BlockTable":
        """Split (rows, 6, dim) in the order of the checkpoint, its scales plus one."""
        shift, factor, gate, ffn_shift, ffn_factor, ffn_gate = table.unbind(1)
        return cls(NormTable(factor, shift), gate, NormTable(ffn_factor, ffn_shift), ffn_gate)


class Block(nn.Module):
    """A transformer block: self-attention, cross-attention and feed-forward with modulation."""

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

    def takes_fp8(self, layout: PackLayout) -> bool:
        """Whether the layers after norms and GELU take float8: adapters need full precision."""
        up: Any = self.ffn.net[0].proj
        down: Any = self.ffn.net[2]
        layers = (self.attn1.to_q, self.attn1.to_k, self.attn1.to_v, self.attn2.to_q, up, down)
        return not layout.lora and all(layer.weight_scale is not None for layer in layers)

    def table(self, modulation: Tensor) -> BlockTable:
        """Modulation of the timesteps (rows, 6, dim) -> the block's table."""
        table = self.scale_shift_table + modulation.float()
        table[:, SCALES].add_(1)
        return BlockTable.of(table)

    def forward(
        self,
        x: Tensor,
        normed: Rows,
        pack: Pack,
        table: BlockTable,
        following: NormTable,
        *,
        noise_only: bool,
    ) -> tuple[Tensor, Rows]:
        """Return the new x and its norm modulated by `following`, (tokens, dim) each.

        `normed` is x after the norm `table.norm`; `following` is the norm of the next block, which
        takes float8 if this one does. x is updated in place. With `noise_only`, used in the last
        block, history tokens are keys and values only, and the noise tokens alone are returned, for
        the output projection.
        """
        kernels, layout, eps = kernels_of(x), pack.layout, self.eps
        in_fp8 = self.takes_fp8(layout)
        norms, last_norms = (
            kernels.norms(in_fp8=in_fp8),
            kernels.norms(in_fp8=in_fp8 and not noise_only),
        )
        if noise_only:
            update = self.attn1.forward_noise(normed, pack)
            x, layout = take_noise(x, layout), layout.noise_only
        else:
            update = self.attn1(normed, pack)
        rows, text_norm = layout.rows, NormTable(self.norm2.weight[None], self.norm2.bias[None])
        noise = norms.gated_residual_(x, update, rows, table.gate, text_norm, eps, noise_only=True)
        update = self.attn2(noise, layout.noise_only, pack.text, self.layer)
        normed = norms.noise_residual_(x, update, rows, table.ffn_norm, eps)
        update = self.ffn(normed, layout, in_fp8=in_fp8)
        normed = last_norms.gated_residual_(x, update, rows, table.ffn_gate, following, eps)
        return x, normed


class OutputNorm(nn.Module):
    """The modulation of the final norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 2, dim))

    def table(self, embedded: Tensor) -> NormTable:
        """Embedded timesteps (rows, dim) -> the norm before the output projection."""
        shift, scale = (self.scale_shift_table + embedded.unsqueeze(1)).float().unbind(1)
        return NormTable(1 + scale, shift)


class HeliosTransformer(nn.Module):
    """Predicts the flow of noise tokens, given history, timestep and text.

    Source: Helios (arXiv 2603.04379). Numerics follow diffusers 0.42.1.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.inner_dim
        self.config = config
        self.patch_embedding = LoraLinear(PATCH_DIM, dim)
        self.patch_short = LoraLinear(PATCH_DIM, dim)
        self.patch_mid = LoraLinear(PATCH_DIM * 8, dim)
        self.patch_long = LoraLinear(PATCH_DIM * 64, dim)
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList([Block(config, layer) for layer in range(config.num_layers)])
        self.norm_out = OutputNorm(dim)
        self.proj_out = LoraLinear(dim, PATCH_DIM)
        self._joined_tables: Tensor | None = None
        self.ranks: Ranks | None = None
        """Set for context parallelism: all ranks must call `forward` with the same segments."""
        name_layers(self)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of tokens, history and text. Norms and modulation are always fp32."""
        return self.proj_out.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.proj_out.weight.device

    @property
    def layers(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def use_attention(self, backend: str) -> None:
        """Compute self-attention by the path of this name; "auto" is the fastest there is."""
        for block in self.layers:
            block.attn1.backend = backend

    @property
    def kernels(self) -> KernelChoice:
        """The kernels that this model runs, and its attention."""
        return choose_kernels(self.device, self.layers[0].attn1.backend)

    def join_weights(self) -> None:
        """Join what one kernel then computes for several layers. Call it after loading.

        These are the projections of self-attention in each block, and the modulation tables of all
        blocks. Parameters become views of what is joined, so that names and memory stay the same.
        """
        for block in self.layers:
            block.attn1.projections.join()
        tables = torch.cat([block.scale_shift_table.data for block in self.layers])
        for block, rows in zip(self.layers, torch.split(tables, 1), strict=True):
            block.scale_shift_table.data = rows
        self._joined_tables = tables

    def block_tables(self, modulation: Tensor) -> list[BlockTable]:
        """Modulation of the timesteps (rows, 6, dim) -> the table of each block."""
        if self._joined_tables is None:
            return [block.table(modulation) for block in self.layers]
        first = self.layers[0].scale_shift_table
        assert first.data_ptr() == self._joined_tables.data_ptr(), "weights moved: join again"
        joined = self._joined_tables.unsqueeze(1) + modulation.float()  # (layers, rows, 6, dim)
        joined[:, :, SCALES].add_(1)
        return [BlockTable.of(table) for table in joined.unbind()]

    @torch.inference_mode()
    def forward(self, segments: Sequence[PackSegment]) -> Tensor:
        """Return the flow of the segments' noise tokens, concatenated: (noise tokens, 64)."""
        pack, times = make_pack(segments, self.ranks)
        embedded, modulation = self.condition_embedder.embed_times(*times)
        blocks = self.layers
        tables = self.block_tables(modulation)
        following = [*(table.norm for table in tables[1:]), self.norm_out.table(embedded)]
        x, rows = self.embed_patches(pack), pack.layout.rows
        norms = kernels_of(x).norms(in_fp8=blocks[0].takes_fp8(pack.layout))
        normed = norms.modulate(x, rows, tables[0].norm, self.config.eps)
        for block, table, norm in zip(blocks, tables, following, strict=True):
            x, normed = block(x, normed, pack, table, norm, noise_only=block is blocks[-1])
        flow: Tensor = self.proj_out(normed, pack.layout.noise_only.lora)
        exchange = pack.layout.noise_exchange
        return flow if exchange is None else exchange.collect(flow)

    def embed_patches(self, pack: Pack) -> Tensor:
        """Embed history patches (multi-term memory patchification) and noise: (tokens, dim).

        Each product is written to its place among the tokens.
        """
        layers = (self.patch_long, self.patch_mid, self.patch_short, self.patch_embedding)
        x = torch.empty(
            pack.layout.spans[-1].stop, self.config.inner_dim, dtype=self.dtype, device=self.device
        )
        start = 0
        for segment in pack.segments:
            lora = [] if segment.adapter is None else [(slice(None), segment.adapter)]
            for layer, patches in zip(layers, kinds_of(segment), strict=True):
                if len(patches):
                    rows = x[start : start + len(patches)]
                    layer(patches.to(self.dtype), lora, out=rows)
                    start += len(patches)
        return x

    @torch.inference_mode()
    def read_text(
        self, rows: Tensor, padding: int, adapter: LoraAdapter | None = None
    ) -> TextContext:
        """Compute the cross-attention keys and values of a prompt in all layers.

        `rows` holds the encoder states of the prompt's tokens, (rows, text_dim), to be followed by
        `padding` zero rows. Those are identical, so a few rows represent all of them, with biases
        whose exponentials add up to `padding` (see `log_parts`).
        """
        bias = None
        rows = rows.to(self.dtype)
        if padding:
            logs = log_parts(padding, self.dtype).to(rows.device)
            bias = torch.cat([logs.new_zeros(len(rows)), logs])
            rows = torch.cat([rows, rows.new_zeros(len(logs), rows.shape[1])])
        lora = [] if adapter is None else [(slice(None), adapter)]
        text = self.condition_embedder.embed_text(rows, lora)
        pairs = [block.attn2.keys_values(text, lora) for block in self.layers]
        keys, values = zip(*pairs, strict=True)
        return TextContext(keys, values, bias)
