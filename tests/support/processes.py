"""Child processes of a process, from /proc."""

from contextlib import suppress
from pathlib import Path


def children(pid: int) -> list[int]:
    """Return the ids of a process's children; none if it has ended."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def parent(pid: int) -> int:
    """Return the process id of its parent; the process must exist."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def is_python_child(pid: int) -> bool:
    """Return whether `multiprocessing` started the process to run a function."""
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
