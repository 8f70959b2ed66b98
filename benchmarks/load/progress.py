"""The live line of a run."""

import asyncio
import sys
from collections import Counter
from typing import TextIO

from helios_serve.benchmarks.load.clock import LoadClock
from helios_serve.benchmarks.load.generator import LoadGenerator

PERIOD = 0.5
PLAIN_PERIOD = 10.0
"""Seconds between lines if the output is not a terminal."""


class ProgressLine:
    """Shows the progress of a run: one updated line on a terminal, else a line every 10 s."""

    def __init__(self, load: LoadGenerator, clock: LoadClock, output: TextIO | None = None) -> None:
        self._load = load
        self._clock = clock
        self._output = sys.stderr if output is None else output

    async def run(self) -> None:
        """Show the line until cancelled."""
        is_terminal = self._output.isatty()
        try:
            while True:
                await asyncio.sleep(PERIOD if is_terminal else PLAIN_PERIOD)
                start, end = ("\r\x1b[2K", "") if is_terminal else ("", "\n")
                self._output.write(f"{start}{self.text()}{end}")
                self._output.flush()
        finally:
            if is_terminal:
                self._output.write("\r\x1b[2K")

    def text(self) -> str:
        records = self._load.records
        ends = Counter(record.outcome for record in records)
        planned = "" if self._load.workload.is_closed else f"/{len(self._load.workload.requests)}"
        frames = sum(record.frames for record in records)
        seconds = max(self._clock.now(), 1e-9)
        bad = "".join(
            f", {ends[outcome]} {outcome.replace('_', ' ')}"
            for outcome in ("failed", "refused", "timed_out", "cancelled")
            if ends[outcome]
        )
        return (
            f"{seconds:6.0f} s: {len(records)}{planned} sessions started, {ends[None]} running, "
            f"{ends['completed']} completed{bad}; {frames / seconds:.1f} frames/s"
        )
