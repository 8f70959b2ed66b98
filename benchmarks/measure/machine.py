"""The machine that a benchmark ran on."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import msgspec


class Machine(msgspec.Struct, frozen=True):
    """CPU, cores that this process may use, GPUs and their driver."""

    cpu: str
    cores: int
    memory_gib: float | None
    gpus: list[str]
    driver: str | None
    python: str
    system: str


def this_machine() -> Machine:
    gpus, driver = nvidia()
    return Machine(
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        memory_gib=memory_gib(),
        gpus=gpus,
        driver=driver,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
    )


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def memory_gib() -> float | None:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    return round(size / 2**30, 1)


def nvidia() -> tuple[list[str], str | None]:
    """Return the names of this machine's GPUs and the driver's version, by nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], None
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    rows = [line.split(", ") for line in done.stdout.splitlines() if ", " in line]
    return [row[0] for row in rows], rows[0][1] if rows else None
