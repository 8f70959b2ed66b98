"""How long plans and tasks take on a device: a few rates, which are fitted or assumed."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from helios_serve.benchmarks.load.json_file import read_json
from helios_serve.core.cost import Flops, encode_cost, forward_flops
from helios_serve.messages import EncodeTask
from helios_serve.model_config import CHUNK_FRAMES, Geometry, HeliosConfig
from helios_serve.options.workers import ROLES, Role

Seconds = Annotated[float, Meta(ge=0)]
Source = Literal["measured", "roofline"]
"""Fitted to a trace of a real server, or computed from a datasheet and never measured."""


Lane = Role | Literal["segment"]
"""What a worker does at the same time: a stage of its device each, and its host encodes frames."""
LANES: tuple[Lane, ...] = (*ROLES, "segment")


class PlanCosts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a plan: `overhead`, `stages[s]` for each stage s in it, `session` for each step,
    and `linear` and `attention` for each FLOP of that kind.
    """

    overhead: Seconds = 0.0
    stages: tuple[Seconds, ...] = ()
    session: Seconds = 0.0
    linear: Seconds = 0.0
    attention: Seconds = 0.0


class TaskCosts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of an encode or decode task: `overhead`, and `pixel` for each pixel that the VAE
    turns over. Prompts count as pixels, as in `helios_serve/core/cost.py`.
    """

    overhead: Seconds = 0.0
    pixel: Seconds = 0.0


class FitError(msgspec.Struct, frozen=True):
    """How well the costs predict `n` plans or tasks that they were not fitted to.

    `mape` is the mean absolute error relative to the measured time, `bias` the error of the sum.
    """

    n: int
    mape: float
    bias: float


class DeviceCosts(msgspec.Struct, frozen=True, kw_only=True):
    """The costs of one worker.

    - `origin`: where they come from, for people.
    - `sharing`: how much stages that run at the same time slow each other down: 0 not at all, 1 so
      that each of k gets a k-th of the device.
    - `slowdowns`: where it was measured, in place of `sharing`: how much longer a lane takes while
      another one is busy. 0.5 is half as long again. Those of several others add up.
    - `cores`: cores of the host that a lane keeps busy. When the lanes of all workers of a host ask
      for more than it has, those with a share of it slow down alike.
    - `start_seconds`: from the start of a worker until it is ready.
    - `num_blocks`, `text_rows`: its history blocks, and its room for keys and values of prompts.
    - `residuals`: measured time over predicted time of plans and tasks that were held out.
    - `segment`: to encode the frames of a chunk, which a thread of the host does while the device
      has other work.
    """

    name: str
    source: Source
    origin: str
    plan: PlanCosts
    encode: TaskCosts
    decode: TaskCosts
    sharing: Annotated[float, Meta(ge=0, le=1)] = 1.0
    start_seconds: Seconds = 60.0
    num_blocks: Annotated[int, Meta(ge=2)]
    text_rows: Annotated[int, Meta(ge=1)]
    errors: dict[Lane, FitError] = {}
    residuals: dict[Lane, tuple[float, ...]] = {}
    segment: TaskCosts = TaskCosts()
    slowdowns: dict[Lane, dict[Lane, Annotated[float, Meta(ge=0)]]] = {}
    cores: dict[Lane, Annotated[float, Meta(ge=0)]] = {}

    def slowdown(self, lane: Lane, others: Iterable[Lane]) -> float:
        """Return how many times as long a lane takes while others are busy."""
        own = self.slowdowns.get(lane, {})
        return 1.0 + sum(
            own.get(other, 0.0 if "segment" in (lane, other) else self.sharing) for other in others
        )

    @classmethod
    def read(cls, path: Path) -> "DeviceCosts":
        """Read a file that `helios-serve simulate fit` wrote. Raises InvalidRequestError."""
        return read_json(path, cls, param="costs", flag="--costs")


class StepSize(NamedTuple):
    """What a step's cost depends on: the size of the video, its stage, and its branches."""

    geometry: Geometry
    stage: int
    branches: int


@lru_cache(maxsize=4096)
def step_flops(config: HeliosConfig, size: StepSize) -> Flops:
    """FLOPs of one step; guidance makes two branches."""
    flops = forward_flops(config, size.geometry, size.stage)
    return Flops(size.branches * flops.linear, size.branches * flops.attention)


class CostModel:
    """Predicts the seconds of plans and tasks that have a device for themselves."""

    def __init__(self, costs: DeviceCosts, config: HeliosConfig) -> None:
        self.costs = costs
        self.config = config
        stages = costs.plan.stages
        self._stages = (*stages, *(0.0,) * (config.stages - len(stages)))
        self._steps: dict[tuple[int, int, int], tuple[float, ...]] = {}

    def steps(self, height: int, width: int, branches: int) -> tuple[float, ...]:
        """Return what a step of a session adds to a plan, by stage."""
        key = (height, width, branches)
        if (known := self._steps.get(key)) is None:
            known = self._steps[key] = tuple(
                self._step(StepSize(Geometry(height, width), stage, branches))
                for stage in range(self.config.stages)
            )
        return known

    def plan(self, stages: Sequence[int], steps: float) -> float:
        """Return the seconds of a plan whose steps, at `stages`, add up to `steps` seconds."""
        if not stages:
            return 0.0
        begun = sum(self._stages[stage] for stage in sorted(set(stages)))
        return self.costs.plan.overhead + begun + steps

    def encode(self, task: EncodeTask) -> float:
        costs = self.costs.encode
        return costs.overhead + costs.pixel * encode_cost(len(task.prompts), task.seed_from)

    def decode(self, height: int, width: int) -> float:
        """A whole chunk is decoded, also where the video ends inside it."""
        costs = self.costs.decode
        return costs.overhead + costs.pixel * CHUNK_FRAMES * height * width

    def segment(self, height: int, width: int) -> float:
        """Return the seconds in which the host encodes a whole chunk."""
        costs = self.costs.segment
        return costs.overhead + costs.pixel * CHUNK_FRAMES * height * width

    def _step(self, size: StepSize) -> float:
        flops, costs = step_flops(self.config, size), self.costs.plan
        return costs.session + costs.linear * flops.linear + costs.attention * flops.attention


def slowdown_lines(costs: DeviceCosts) -> Iterator[str]:
    """Yield how lanes slow each other down, and how many cores they need, for people."""
    yield f"stages that run at the same time slow each other down by {costs.sharing:.0%}"
    for lane, own in costs.slowdowns.items():
        if own:
            parts = ", ".join(f"{value:.0%} beside {other}" for other, value in own.items())
            yield f"{lane} takes longer: {parts}"
    if costs.cores:
        parts = ", ".join(f"{lane} {value:.2f}" for lane, value in costs.cores.items())
        yield f"cores of the host that each keeps busy: {parts}"
