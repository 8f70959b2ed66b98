"""The simulator against queueing theory: M/D/1, and processor sharing.

The model has one stage and chunks of one step, so that a video of n chunks takes n times the
seconds of a step on its worker, and encoding and decoding take none. The scheduler then is first
come, first served for videos of one chunk, and for longer ones serves all in turn, a chunk each.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from helios_serve.benchmarks.measure.statistics import runs_interval
from helios_serve.benchmarks.simulator.simulation import SimulatedModel
from helios_serve.model_config import CHUNK_FRAMES, HeliosConfig, SamplerConfig
from helios_serve.options.scheduling import BatchLimits
from helios_serve.size import Size
from tests.support.scheduling import CONFIG
from tests.support.simulated import load_of, run_load, seconds_of
from tests.support.tries import tries

SERVICE = 1.0
"""Seconds of a video of one chunk."""
SEEDS = tries(10, 20)
ONE_STAGE = SimulatedModel(
    "one-stage",
    HeliosConfig(
        variant="base",
        transformer=CONFIG.transformer,
        scheduler=SamplerConfig(solver="unipc", stages=1, stage_range=(0, 1)),
    ),
    Size(640, 384),
)


def sojourns(starts: Sequence[float], chunks: Sequence[int], step: float) -> list[float]:
    """Seconds of each video on one worker that runs one session at a time, without guidance."""
    workload = load_of(starts, steps=(1,))
    requests = tuple(
        msgspec.structs.replace(request, num_frames=CHUNK_FRAMES * count)
        for request, count in zip(workload.requests, chunks, strict=True)
    )
    made = run_load(
        workload._replace(requests=requests),
        seconds_of(step=step),
        model=ONE_STAGE,
        limits=BatchLimits(max_num_seqs=1, max_queued=100_000),
    )
    return [(record.ended or math.nan) - record.intended for record in made.run.records]


def poisson(random: np.random.Generator, rate: float, number: int) -> list[float]:
    return list(np.cumsum(random.exponential(1 / rate, number)))


def lindley(starts: Sequence[float], service: float) -> list[float]:
    """Sojourns of a queue that is served in order."""
    free, found = 0.0, []
    for start in starts:
        free = max(free, start) + service
        found.append(free - start)
    return found


@pytest.mark.parametrize("load", [0.3, 0.7, 0.95])
def test_each_video_waits_as_in_a_queue_that_is_served_in_order(load: float) -> None:
    """Lindley's recursion, video by video."""
    starts = poisson(np.random.default_rng(1), load / SERVICE, 300)
    found = sojourns(starts, [1] * len(starts), SERVICE)
    assert found == pytest.approx(lindley(starts, SERVICE), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.3, 0.5, 0.7])
def test_the_mean_is_that_of_m_d_1(load: float) -> None:
    """Pollaczek and Khinchine: D (1 + rho / (2 (1 - rho))), within 3 % over all seeds."""
    theory = SERVICE * (1 + load / (2 * (1 - load)))
    means = []
    for seed in range(SEEDS):
        starts = poisson(np.random.default_rng(seed), load / SERVICE, 2000)
        means.append(float(np.mean(sojourns(starts, [1] * len(starts), SERVICE)[200:])))
    interval = runs_interval(means)
    assert interval.value == pytest.approx(theory, rel=0.03)
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low - 0.01 * theory <= theory <= interval.high + 0.01 * theory


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.3, 0.6])
def test_long_videos_share_a_worker_like_processor_sharing(load: float) -> None:
    """E[S] / (1 - rho), whatever the distribution of S: 10 to 60 chunks of 0.1 s."""
    theory_of_mean = 1 / (1 - load)
    ratios = []
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        chunks = [int(count) for count in random.choice([10, 20, 60], 500, p=[0.5, 0.3, 0.2])]
        step = 0.1
        mean = step * (10 * 0.5 + 20 * 0.3 + 60 * 0.2)
        starts = poisson(random, load / mean, len(chunks))
        found = sojourns(starts, chunks, step)
        ratios.append(float(np.mean(found[50:])) / mean)
    assert runs_interval(ratios).value == pytest.approx(theory_of_mean, rel=0.03)
