"""The first history of videos that continue an image or a video."""

import pytest
import torch
from torch import Generator, Tensor

from helios_serve.media.references import TAIL_FRAMES
from helios_serve.model_executor.models.helios.conditioning import Posterior, seed_from_video
from helios_serve.options.sampling import SamplingParams


class Space:
    """A fake latent space whose latents encode the frames that they were made of."""

    def encode(self, frames: Tensor) -> Posterior:
        count = 1 if len(frames) == 1 else 9
        mean = frames[:count, :1, :1, :1].float().reshape(1, 1, count, 1, 1)
        mean = mean.expand(1, 16, count, 2, 2)
        return Posterior(mean, torch.full_like(mean, 0.1))

    def normalize(self, latents: Tensor) -> Tensor:
        return latents


@pytest.mark.parametrize("count", [33, 50, 100, 101, 132, 140, 500])
def test_the_ends_of_a_video_are_all_that_counts(count: int) -> None:
    """The first and the last frames alone give the same history, and the same noise after it."""
    video = (torch.arange(count) % 251).to(torch.uint8).view(count, 1, 1, 1).expand(-1, 16, 16, 3)
    skipped = max(0, count - 1 - TAIL_FRAMES)
    ends = torch.cat([video[:1], video[1 + skipped :]])
    params = SamplingParams()
    results = []
    for frames, left_out in ((video, 0), (ends, skipped)):
        generator = Generator().manual_seed(7)
        seed = seed_from_video(
            frames, Space(), generator, params, keep_inputs=False, skipped=left_out
        )
        results.append((seed.anchor, seed.frames, torch.randn(3, generator=generator)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
