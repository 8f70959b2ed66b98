"""Convolutions that are causal in time, and the frames that they remember.

Frames are (frames, height, width, channels), contiguous: with one video at a time that is what
torch calls channels last, for 3D convolutions over the video and for 2D ones over its frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helios_serve.kernels.registry import NormSilu

TAPS = 3
"""Frames that each convolution in time sees: two past ones and its own."""
PAST = TAPS - 1


class CausalState:
    """The last frames that each causal convolution of an encoder or decoder has seen.

    A coder gives each of its convolutions a name, extends the state with every group of frames, and
    keeps nothing itself: so a state continues a video wherever it is passed. An empty state begins
    one. With `keeps` off the frames of the next group are not remembered, since none follows.
    `norm_silu` is the kernel of the frames' device.
    """

    def __init__(self, norm_silu: NormSilu) -> None:
        self.norm_silu = norm_silu
        self.keeps = True
        self.frames: dict[str, Tensor] = {}

    @property
    def num_bytes(self) -> int:
        return sum(frames.nbytes for frames in self.frames.values())

    def past(self, name: str) -> Tensor | None:
        """Return the two frames before those of the next group; None at the start of a video."""
        return self.frames.get(name)

    def keep(self, name: str, frames: Tensor) -> None:
        """Remember the last two of `frames`, which include the past; zeros precede a video."""
        if not self.keeps:
            return
        if len(frames) >= PAST:
            self.frames[name] = frames[-PAST:].clone()
        else:
            before = frames.new_zeros(PAST - len(frames), *frames.shape[1:])
            self.frames[name] = torch.cat([before, frames])


class CausalConv3d(nn.Module):
    """A 3D convolution of stride 1 that pads in space on both sides, and in time with the past.

    `name` is that of its past in a `CausalState`. The parameters are those of nn.Conv3d.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.name = ""
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *kernel))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (2 + n, h, w, channels), the past among them -> (n, h, w, out channels).

        Without time in the kernel, (n, ...) -> (n, ...). A single frame starts a video: what
        precedes it is zero.
        """
        if self.weight.shape[2] == 1 or len(frames) == 1:
            return conv_frames(frames, self.weight[:, :, -1], self.bias)
        if frames.dtype.itemsize == 2:
            return conv_video(frames, self.weight, self.bias)
        return conv_pairs(frames, self.weight, self.bias)

    def extend(self, frames: Tensor, state: CausalState) -> Tensor:
        """Convolve `frames` (n, h, w, channels) after the past in `state`, and keep their last."""
        past = state.past(self.name)
        joined = frames if past is None else torch.cat([past, frames])
        state.keep(self.name, joined)
        convolved: Tensor = self(joined)
        return convolved


def name_convolutions(coder: nn.Module) -> None:
    """Give each convolution of an encoder or decoder the name of its past."""
    for name, module in coder.named_modules():
        if isinstance(module, CausalConv3d):
            module.name = name


def conv_frames(
    frames: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int = 1, padded: bool = True
) -> Tensor:
    """Convolve each frame: (n, h, w, c) by (out, c, y, x) -> (n, h', w', out)."""
    padding = (weight.shape[2] // 2, weight.shape[3] // 2) if padded else (0, 0)
    out = F.conv2d(frames.permute(0, 3, 1, 2), weight, bias, stride=stride, padding=padding)
    return out.permute(0, 2, 3, 1)


def conv_video(frames: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve (2 + n, h, w, c) by (out, c, 3, y, x) -> (n, h, w, out)."""
    padding = (0, weight.shape[3] // 2, weight.shape[4] // 2)
    out = F.conv3d(frames.permute(3, 0, 1, 2)[None], weight, bias, padding=padding)
    return out[0].permute(1, 2, 3, 0)


def conv_pairs(frames: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`conv_video` with a third fewer multiplications: four 2D convolutions make two frames.

    Winograd's minimal filtering F(2, 3) (Lavin and Gray, arXiv 1509.09308) along time. It is exact
    but for rounding, which sums of frames would make coarser in half precision.
    """
    count = len(frames) - PAST
    paired = count - count % 2
    even, odd = frames[0 : paired + PAST : 2], frames[1 : paired + PAST : 2]
    first, middle, last = weight.unbind(2)
    outer, inner = (first + last) / 2, middle / 2
    plus = conv_frames(odd[:-1] + even[1:], outer + inner, bias)
    minus = conv_frames(even[1:] - odd[:-1], outer - inner, None)
    out = plus.new_empty(count, *plus.shape[1:])
    # Not torch.add(..., out=...): the compiler does not take parts of a tensor there.
    out[0:paired:2].copy_(plus).add_(minus)
    out[1:paired:2].copy_(plus).sub_(minus)
    out[0:paired:2] += conv_frames(even[:-1] - even[1:], first, None)
    out[1:paired:2] -= conv_frames(odd[:-1] - odd[1:], last, None)
    if paired < count:
        rest = conv_frames(frames[-1:], last, bias)
        rest += conv_frames(frames[-2:-1], middle, None)
        out[paired:] = rest.add_(conv_frames(frames[-3:-2], first, None))
    return out
