"""Context-parallel workers, which consist of one process per device.

Rank 0 receives the commands and forwards its plans to the other ranks (followers). All ranks hold
all sessions and compute the same results, except for forwards, which they share. If one process
ends, the whole worker ends, and the engine starts another one.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec
import torch
import torch.distributed as dist

from helios_serve.logger import logger
from helios_serve.messages import SchedulerOutput, WorkerDied
from helios_serve.model_executor.exit_status import describe_exit
from helios_serve.model_executor.models.helios.exchange import Ranks
from helios_serve.model_executor.worker.chunk_end import LaunchedPlan
from helios_serve.options.workers import WorkerConfig

REPORT_SECONDS = 1.0
"""Time between reporting the reason for a worker's end and exiting."""
EXIT_NOTICE_SECONDS = 3.0
"""Time to wait, after a plan failed, for a follower's end as the possible cause."""
LENGTH_BYTES = 8
"""Bytes of a frame's length prefix."""


class RankStart(msgspec.Struct, frozen=True):
    """The first message to a follower. The ranks rendezvous through a file in `folder`."""

    config: WorkerConfig
    rank: int
    folder: str
    log_level: int


def device_of(rank: int, device: torch.device) -> str:
    """Return the device of a rank: consecutive ones, starting at rank 0's `device`; or the CPU."""
    return device.type if device.type == "cpu" else f"{device.type}:{(device.index or 0) + rank}"


def join_group(folder: Path, rank: int, size: int, device: torch.device) -> Ranks:
    """Join the process group through `folder`. Returns when all ranks have joined.

    All ranks are on one machine, so the loopback interface is used for all traffic that does not go
    through direct links between accelerators.
    """
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if sys.platform == "linux":
            os.environ.setdefault(variable, "lo")
    store = dist.FileStore(str(folder / "rendezvous"), size)  # type: ignore[attr-defined]
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index or 0)
    backend = dist.get_default_backend_for_device(device)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    assert dist.group.WORLD is not None
    return Ranks(rank, size, dist.group.WORLD, dist.new_group(backend="gloo"))


def write_frame(pipe: IO[bytes], data: bytes) -> None:
    """Write a message with its length prefix."""
    pipe.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> bytes | None:
    """Read a message. Returns None at the end of the pipe."""
    length = pipe.read(LENGTH_BYTES)
    if len(length) < LENGTH_BYTES:
        return None
    size = int.from_bytes(length, "big")
    data = pipe.read(size)
    return data if len(data) == size else None


class Followers:
    """The processes of ranks 1 and up, started and controlled by rank 0.

    When one of them ends, the reason is passed to `emit`, and this process exits too.
    """

    def __init__(
        self, config: WorkerConfig, device: torch.device, emit: Callable[[WorkerDied], None]
    ) -> None:
        self.size = config.context_parallel
        self._folder = tempfile.TemporaryDirectory(prefix="helios-ranks-")
        self._emit = emit
        self._is_closing = False
        self._is_joining = threading.Event()
        self._has_ended = threading.Event()
        self._lock = threading.Lock()
        self.processes = [self._start(config, rank, device) for rank in range(1, self.size)]

    def join(self, device: torch.device) -> Ranks:
        """Join the group as rank 0. Call it once the model is loaded."""
        self._is_joining.set()
        return join_group(Path(self._folder.name), 0, self.size, device)

    def share(
        self, plan: SchedulerOutput, launch: Callable[[SchedulerOutput], LaunchedPlan]
    ) -> LaunchedPlan:
        """Launch a plan on all ranks and return what this rank has launched.

        Raises the exceptions of `launch`, unless a follower has ended: then this never returns,
        since the end is reported to the engine and this process exits.
        """
        try:
            data = msgspec.msgpack.encode(plan)
            for process in self.processes:
                assert process.stdin is not None
                write_frame(process.stdin, data)
            return launch(plan)
        except Exception:
            if self._has_ended.wait(EXIT_NOTICE_SECONDS):
                threading.Event().wait()
            raise

    def close(self) -> None:
        """Stop the followers once they have executed their plans."""
        self._is_closing = True
        for process in self.processes:
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # it has ended already
                write_frame(process.stdin, b"")
        for process in self.processes:
            process.wait()
        dist.destroy_process_group()
        self._folder.cleanup()

    def _start(
        self, config: WorkerConfig, rank: int, device: torch.device
    ) -> "subprocess.Popen[bytes]":
        own = msgspec.structs.replace(config, device=device_of(rank, device), roles=("denoise",))
        start = RankStart(own, rank, self._folder.name, logger.level)
        # -P: do not import modules from the working directory, which may contain anything.
        command = [sys.executable, "-P", "-m", "helios_serve.model_executor.worker.follower"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        assert process.stdin is not None
        write_frame(process.stdin, msgspec.msgpack.encode(start))
        name = f"watch rank {rank}"
        threading.Thread(target=self._watch, args=(rank, process), name=name, daemon=True).start()
        return process

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        status = process.wait()
        self._is_joining.wait()  # if loading fails here too, rank 0 reports that reason instead
        with self._lock:
            if self._is_closing or self._has_ended.is_set():
                return
            self._has_ended.set()
        self._emit(WorkerDied(f"rank {rank} of {self.size}: {describe_exit(status)}"))
        self._folder.cleanup()
        time.sleep(REPORT_SECONDS)
        os._exit(1)
