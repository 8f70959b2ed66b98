"""Conversion of RGB frames to YUV 4:2:0 on a device."""

import torch
from torch import Tensor

RED, BLUE = 0.2126, 0.0722
"""Weights of red and blue in the luma of ITU-R BT.709; green has the rest."""
LUMA, CHROMA = 219.0 / 255, 224.0 / 255
"""Levels of luma and chroma in limited range, for each level of RGB."""


def yuv420(frames: Tensor) -> Tensor:
    """Convert RGB (n, h, w, 3), uint8, to YUV 4:2:0 in BT.709's limited range.

    Returns (n, 3 / 2 * h, w), uint8: the rows of Y, then those of U and V, two to a row. Both sides
    have to be even. The filter of chroma is swscale's bilinear one: the mean of two columns, and
    1, 3, 3, 1 eighths of four rows. A level differs from swscale's by 1 at most.
    """
    count, height, width, _ = frames.shape
    rgb = frames.float()
    weights = rgb.new_tensor([RED, 1 - RED - BLUE, BLUE])
    luma = rgb @ weights
    columns = rgb.view(count, height, width // 2, 2, 3).mean(3)
    rows = torch.cat([columns[:, :1], columns, columns[:, -1:]], dim=1)
    small = (rows[:, :-3:2] + rows[:, 3::2] + 3 * (rows[:, 1:-2:2] + rows[:, 2:-1:2])) / 8
    gray = small @ weights
    blue = (small[..., 2] - gray) / (2 - 2 * BLUE)
    red = (small[..., 0] - gray) / (2 - 2 * RED)
    chroma = torch.stack([blue, red], dim=1).mul_(CHROMA).add_(128)
    planes = [luma.mul_(LUMA).add_(16), chroma.view(count, height // 2, width)]
    return torch.cat(planes, dim=1).round_().to(torch.uint8)
