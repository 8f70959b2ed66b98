"""The loop that all stages share: seeded steps, a log, and states to resume from."""

import json
import time
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from helios_serve.errors import CheckpointError
from helios_serve.logger import logger
from helios_serve.model_executor.training.state_file import load_state, save_state

REPORT_EVERY = 25
"""Steps between two lines on the console; the log file has every step."""


class Stage(Protocol):
    """A stage of the training. What a step does depends only on its index and the tensors."""

    name: str
    steps: int

    def step(self, index: int) -> dict[str, float]:
        """Run an optimizer step and return its figures, "loss" among them."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return the state to save."""
        ...

    def restore(self, tensors: dict[str, Tensor]) -> None: ...

    def sheet(self, path: Path) -> dict[str, float]:
        """Write a contact sheet and return the figures of what it shows."""
        ...


class Intervals(NamedTuple):
    """How often a stage saves its state and writes a contact sheet, in steps."""

    save_every: int
    sheet_every: int


def run_stage(
    stage: Stage, folder: Path, intervals: Intervals, *, cpu_seconds: float | None = None
) -> bool:
    """Run a stage from its last saved state; return whether it is finished.

    With `cpu_seconds` it saves and stops once this process has spent as many on it. Raises
    CheckpointError if the saved state is damaged or does not fit.
    """
    folder = folder / stage.name
    path, log = folder / "state.safetensors", folder / "log.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    done, spent = 0, 0.0
    if path.exists():
        done, spent = resume(stage, path)
    keep_lines(log, done)
    if done >= stage.steps:
        return True
    logger.info("%s: step %d of %d, %.0f CPU-seconds spent", stage.name, done, stage.steps, spent)
    started = time.process_time()
    for index in range(done, stage.steps):
        figures = stage.step(index)
        used = time.process_time() - started
        line = {"step": index + 1, "cpu_seconds": round(spent + used, 1)} | figures
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        report(stage, line)
        stops = cpu_seconds is not None and used >= cpu_seconds
        last = index + 1 == stage.steps
        if stops or last or (index + 1) % intervals.save_every == 0:
            save_state(path, stage.tensors(), {"step": index + 1, "cpu_seconds": spent + used})
        if last or (index + 1) % intervals.sheet_every == 0:
            seen = stage.sheet(folder / "sheets" / f"{index + 1:06d}.png")
            logger.info("%s: sheet at step %d: %s", stage.name, index + 1, rounded(seen))
        if stops:
            return last
    return True


def resume(stage: Stage, path: Path) -> tuple[int, float]:
    """Restore a stage; return its steps and CPU-seconds so far."""
    tensors, values = load_state(path)
    try:
        stage.restore(tensors)
        return int(values["step"]), float(values["cpu_seconds"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not fit the recipe; delete it to restart the stage: {error}"
        ) from error


def keep_lines(log: Path, steps: int) -> None:
    """Drop the lines of steps that were not saved: they are run again."""
    if log.exists():
        lines = log.read_text().splitlines(keepends=True)[:steps]
        log.write_text("".join(lines))


def report(stage: Stage, line: dict[str, float]) -> None:
    if int(line["step"]) % REPORT_EVERY == 0:
        logger.info("%s: %s", stage.name, rounded(line))


def rounded(figures: dict[str, float]) -> str:
    return " ".join(
        f"{name} {value if isinstance(value, int) else format(value, '.4g')}"
        for name, value in figures.items()
    )
