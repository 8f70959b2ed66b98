"""The memory of the host that this process may still take. Importing it needs no torch."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class Memory(NamedTuple):
    """Bytes of memory: `free` now, and `total` if nothing else used it."""

    free: int
    total: int


class CgroupFiles(NamedTuple):
    """Names of the files of a memory cgroup, and the key of its reclaimable page cache."""

    limit: str
    usage: str
    cache: str


V1 = CgroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = CgroupFiles("memory.max", "memory.current", "inactive_file")


def host_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> Memory:
    """Return the memory that the machine, and every cgroup of this process, leave to it.

    Page cache that can be dropped counts as free. Swap does not count. Sources: MemAvailable in
    proc(5); memory.max and memory.current in Linux' "Control Group v2".
    """
    amounts = [machine_memory(proc), *cgroup_memory(proc, cgroups)]
    return Memory(min(item.free for item in amounts), min(item.total for item in amounts))


def machine_memory(proc: Path) -> Memory:
    """Return the memory of the machine, by /proc/meminfo or, without it, by sysconf."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        return Memory(kilobytes["MemAvailable"] << 10, kilobytes["MemTotal"] << 10)
    except (OSError, KeyError, ValueError, IndexError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Memory(total, total)


def cgroup_memory(proc: Path, cgroups: Path) -> Iterator[Memory]:
    """Yield the memory of each cgroup of this process that has a limit."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield from limits_along(cgroups, path, V2)
            yield from limits_along(cgroups / "unified", path, V2)
        elif "memory" in controllers.split(","):
            yield from limits_along(cgroups / "memory", path, V1)


def limits_along(root: Path, path: str, files: CgroupFiles) -> Iterator[Memory]:
    """Yield the memory of a cgroup and of those that contain it, as far as they are visible.

    A container sees its own cgroup as `root`, while `path` may be the one outside.
    """
    folder = root / path.strip("/")
    for level in (folder, *folder.parents):
        if not level.is_relative_to(root):
            return
        try:
            limit = int((level / files.limit).read_text())
            usage = int((level / files.usage).read_text())
            stat = dict(line.split() for line in (level / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no limit ("max"), or not visible
            continue
        used = usage - int(stat.get(files.cache, 0))
        yield Memory(max(0, limit - used), limit)
