"""Entries by axis are those of the full grid, averaged over the full windows, as diffusers does."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helios_serve.kernels.rope import PackedRope
from helios_serve.model_config import Geometry, TransformerConfig
from helios_serve.model_executor.models.helios.embeddings import axis_frequencies, make_rope

CPU = torch.device("cpu")
CONFIG = TransformerConfig(
    num_layers=1,
    num_attention_heads=1,
    attention_head_dim=32,
    ffn_dim=1,
    text_dim=1,
    rope_dim=(12, 10, 10),
)


def full_grid(frames: range, rows: int, cols: int) -> Tensor:
    """cos and sin of every patch: (channels, frames, rows, cols)."""
    grid = torch.meshgrid(
        *(torch.tensor(list(axis)).float() for axis in (frames, range(rows), range(cols))),
        indexing="ij",
    )
    angles = [
        place[None] * axis_frequencies(dim, CONFIG.rope_theta)[:, None, None, None]
        for place, dim in zip(grid, CONFIG.rope_dim, strict=True)
    ]
    angle = torch.cat(angles)
    return torch.stack([angle.cos(), angle.sin()], dim=1).flatten(0, 1)


def averaged(entries: Tensor, factor: int) -> Tensor:
    spare = [-size % factor for size in entries.shape[1:]]
    padded = F.pad(entries[None], (0, spare[2], 0, spare[1], 0, spare[0]), mode="replicate")
    return F.avg_pool3d(padded, factor)[0]


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (80, 112), (128, 192)])
@pytest.mark.parametrize("stage", [0, 2])
def test_entries_equal_those_of_the_full_grid(size: tuple[int, int], stage: int) -> None:
    geometry = Geometry(*size)
    grid, noise = geometry.patches, geometry.stage_patches(stage, 3)
    expected = [
        averaged(full_grid(range(1, 17), *grid), 4),
        averaged(full_grid(range(17, 19), *grid), 2),
        full_grid(range(0, 1), *grid),
        full_grid(range(19, 20), *grid),
        full_grid(range(20, 29), *noise),
    ]
    rows = torch.cat([part.flatten(1).T for part in expected])
    got = torch.view_as_real(make_rope(CONFIG, geometry, stage, 3, CPU).entries)
    assert (got.flatten(1) - rows).abs().max() < 1e-6


def test_a_pack_names_places_in_one_table() -> None:
    """Places and table, which kernels read, say what the entries say; equal sizes share a table."""
    ropes = [make_rope(CONFIG, Geometry(*size), 0, 3, CPU) for size in ((64, 64), (64, 128))]
    packed = PackedRope([(ropes[0], slice(None)), (ropes[1], slice(9, None)), (ropes[0], slice(4))])
    assert len(packed.table) == sum(len(rope.table) for rope in ropes)
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(packed.pairs))
    entries = packed.table.gather(0, packed.places.long()[:, axis])
    assert torch.equal(entries, packed.entries)
