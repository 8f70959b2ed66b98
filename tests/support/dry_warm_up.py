"""Finds the kernels that a worker compiles for a GPU at its start, and later, without a GPU.

Prints, as JSON, the kernels that its warm-up compiles, and those that videos of other sizes and
prompts, alone and at different stages together, still need.
"""

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from triton.runtime import driver

from helios_serve.kernels import registry
from helios_serve.kernels.backend import KernelChoice
from helios_serve.messages import SchedulerOutput
from helios_serve.model_config import CHUNK_LATENTS, Geometry, HeliosConfig
from helios_serve.model_executor.worker import warm_up
from helios_serve.model_executor.worker.worker import load_rank
from helios_serve.options.sampling import SamplingParams
from helios_serve.options.workers import WorkerConfig
from tests.support.dry_gpu import DryDriver

VIDEOS = (((192, 128), 55), ((640, 384), 7), ((128, 192), 300))
"""Sizes, and tokens of the prompts."""
BLOCKS = 1 + 2 * CHUNK_LATENTS * Geometry(384, 640).blocks_per_frame


def plans(
    name: str, size: tuple[int, int], tokens: int, config: HeliosConfig
) -> list[SchedulerOutput]:
    params = SamplingParams(width=size[0], height=size[1], num_frames=1, steps=(3, 1, 2))
    return list(warm_up.plans([name], tokens, params, config))


def served(config: HeliosConfig) -> Iterator[SchedulerOutput]:
    """Serve each video alone, then two together, one of them a step ahead of the other."""
    for video in VIDEOS:
        yield from plans("a", *video, config)
    small, large = plans("a", *VIDEOS[0], config), plans("b", *VIDEOS[1], config)
    yield small[0]
    for one, other in zip(small[1:], large, strict=False):
        yield SchedulerOutput(
            new_sessions=other.new_sessions,
            scheduled_steps=one.scheduled_steps + other.scheduled_steps,
            finished=one.finished,
        )


def leave_nothing_unset() -> None:
    """Fill new tensors, because kernels that are not launched leave their results unset."""
    empty, empty_like, new_empty = torch.empty, torch.empty_like, Tensor.new_empty

    def zeroed(make: Any) -> Any:
        return lambda *args, **options: make(*args, **options).zero_()

    torch.empty, torch.empty_like = zeroed(empty), zeroed(empty_like)
    Tensor.new_empty = zeroed(new_empty)  # type: ignore[method-assign]


def main() -> None:
    dry = DryDriver()
    driver.set_active(dry)
    leave_nothing_unset()
    for module in (registry, warm_up):
        module.choose_kernels = lambda *_: KernelChoice("triton", "triton")  # type: ignore[attr-defined]
    config = WorkerConfig(device="cpu", dtype="bfloat16", roles=("denoise",), history_blocks=BLOCKS)
    worker = load_rank(config, lambda _: None)
    warm = [name for name, *_ in dry.utils.loaded]
    assert worker.runner is not None
    for plan in served(worker.model.config):
        assert worker.runner.execute_model(plan).failures == ()
    later = [name for name, *_ in dry.utils.loaded[len(warm) :]]
    print(json.dumps({"warm": warm, "later": later}))


if __name__ == "__main__":
    main()
