"""The CPU time of this machine, and of some of its processes."""

import os
from pathlib import Path
from typing import NamedTuple

TICK = 1 / os.sysconf("SC_CLK_TCK")
BUSY = (0, 1, 2, 5, 6, 7)
"""Columns of /proc/stat that are not idle: user, nice, system, interrupts, and what the hypervisor
took."""


class CpuTime(NamedTuple):
    """CPU seconds up to now: of the machine, and of a process with all its descendants."""

    machine: float
    own: float

    @classmethod
    def of(cls, pid: int) -> "CpuTime":
        return cls(machine_seconds(), tree_seconds(pid))

    def others(self, before: "CpuTime", seconds: float) -> float:
        """Return the share of the machine's CPU time that other processes took since `before`."""
        used = (self.machine - before.machine) - (self.own - before.own)
        return max(0.0, used) / (seconds * (os.cpu_count() or 1))


def machine_seconds() -> float:
    columns = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return TICK * sum(int(columns[index]) for index in BUSY)


def tree_seconds(root: int) -> float:
    """Return the CPU seconds of a process and its descendants, with those that they waited for."""
    parents, seconds = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                text = (folder / "stat").read_text()
            except OSError:  # it has ended
                continue
            fields = text[text.rindex(")") + 2 :].split()
            parents[int(folder.name)] = int(fields[1])
            seconds[int(folder.name)] = TICK * sum(map(int, fields[11:15]))
    found, todo = 0.0, [root]
    while todo:
        pid = todo.pop()
        found += seconds.get(pid, 0.0)
        todo += [child for child, parent in parents.items() if parent == pid]
    return found
