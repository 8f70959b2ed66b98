"""A measured figure and its limit."""

from collections.abc import Sequence
from typing import NamedTuple


class Figure(NamedTuple):
    """A measured value. It passes at or above `limit`, or at or below it if not `at_least`."""

    gate: str
    name: str
    value: float
    limit: float
    at_least: bool = True

    @property
    def passes(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def as_table(figures: Sequence[Figure]) -> str:
    """Return figures as a Markdown table."""
    lines = ["| gate | figure | value | limit | |", "|---|---|---|---|---|"]
    for item in figures:
        sign = ">=" if item.at_least else "<="
        verdict = "passes" if item.passes else "MISSES"
        lines.append(
            f"| {item.gate} | {item.name} | {item.value:.3g} | {sign} {item.limit:g} | {verdict} |"
        )
    return "\n".join(lines)
