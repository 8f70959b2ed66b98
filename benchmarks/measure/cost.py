"""What a run cost, at the price of a GPU hour."""

import msgspec

from helios_serve.benchmarks.measure.load_run import LoadRun


class Cost(msgspec.Struct, frozen=True):
    """What the window cost, at the price of a GPU hour, and per minute of delivered video."""

    gpu_hour_price: float
    num_gpus: int
    total: float
    per_video_minute: float | None


def cost_of(run: LoadRun, frames: int) -> Cost | None:
    """Return the cost of the window; None without a price or a number of GPUs.

    `frames` were delivered in the window.
    """
    price, gpus = run.report.gpu_hour_price, run.report.num_gpus
    if price is None or gpus is None:
        return None
    total = price * gpus * (run.window[1] - run.window[0]) / 3600
    fps = {record.fps for record in run.records}
    minutes = frames / fps.pop() / 60 if len(fps) == 1 else 0.0
    return Cost(price, gpus, total, total / minutes if minutes else None)
