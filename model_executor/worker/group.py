"""A worker that is several processes: the first takes commands and hands its plans to the others.

Every process keeps every session and does the same arithmetic, but for the forwards, which they
share. So none can go on without the others: one that ends takes the whole worker with it, and the
engine starts another.
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

from helios_serve.errors import DeviceError
from helios_serve.messages import RunnerOutput, SchedulerOutput, WorkerDied
from helios_serve.model_config import HeliosConfig
from helios_serve.model_executor.exit_status import describe_exit
from helios_serve.model_executor.models.helios.exchange import Ranks
from helios_serve.options.workers import WorkerConfig

TELL_SECONDS = 1.0
"""For the engine to hear why a worker ends, before it does."""
NOTICE_SECONDS = 3.0
"""In which a process's end is noticed, after what it took part in has failed."""
LENGTH_BYTES = 8


class RankStart(msgspec.Struct, frozen=True):
    """What a process of the group begins with; `folder` is where the group meets."""

    config: WorkerConfig
    rank: int
    folder: str


def check_context_parallel(config: WorkerConfig, model: HeliosConfig) -> None:
    """Raise DeviceError for a number of ranks that cannot share this model's forwards."""
    ranks, heads = config.ranks, model.transformer.num_attention_heads
    if ranks < 1 or heads % ranks:
        raise DeviceError(
            f"got context parallel {ranks}, expected a number that divides the model's {heads} "
            "attention heads"
        )
    if ranks > 1 and config.offload:
        raise DeviceError(f"got offload with context parallel {ranks}, expected one of the two")


def check_thread(config: WorkerConfig) -> None:
    """Raise DeviceError for a worker of several processes that is to be a thread."""
    if config.ranks > 1:
        raise DeviceError(
            f"got context parallel {config.ranks} for a worker that is a thread, expected one that "
            "is a process: executor local or ray"
        )


def device_of(rank: int, device: torch.device) -> str:
    """Ranks take devices one after the other from the first on; on a CPU they share it."""
    return device.type if device.type == "cpu" else f"{device.type}:{(device.index or 0) + rank}"


def join_group(folder: Path, rank: int, size: int, device: torch.device) -> Ranks:
    """Meet the other processes; returns when all are there.

    They are on one machine, so that loopback will do for whatever is no accelerator's own link.
    """
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if sys.platform == "linux":
            os.environ.setdefault(variable, "lo")
    store = dist.FileStore(str(folder / "meeting"), size)  # type: ignore[attr-defined]
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index or 0)
    backend = dist.get_default_backend_for_device(device)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    assert dist.group.WORLD is not None
    return Ranks(rank, size, dist.group.WORLD, dist.new_group(backend="gloo"))


def write_frame(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> bytes | None:
    """None at the end of the pipe."""
    length = pipe.read(LENGTH_BYTES)
    if len(length) < LENGTH_BYTES:
        return None
    size = int.from_bytes(length, "big")
    data = pipe.read(size)
    return data if len(data) == size else None


class Followers:
    """The processes of ranks 1 and up, as rank 0 has them.

    When one of them ends, `tell` is given the reason, and this process ends too.
    """

    def __init__(
        self, config: WorkerConfig, device: torch.device, tell: Callable[[WorkerDied], None]
    ) -> None:
        self.size = config.context_parallel
        self._folder = tempfile.TemporaryDirectory(prefix="helios-ranks-")
        self._tell = tell
        self._is_closing = False
        self._is_meeting = threading.Event()
        self._has_ended = threading.Event()
        self._lock = threading.Lock()
        self.processes = [self._start(config, rank, device) for rank in range(1, self.size)]

    def join(self, device: torch.device) -> Ranks:
        """This process's place in the group, when it has loaded what it needs."""
        self._is_meeting.set()
        return join_group(Path(self._folder.name), 0, self.size, device)

    def share(
        self, plan: SchedulerOutput, execute: Callable[[SchedulerOutput], RunnerOutput]
    ) -> RunnerOutput:
        """Have the others run `plan` while this process does; raises what goes wrong with either.

        What comes of another process's end is not raised: that is told, and this process ends.
        """
        try:
            data = msgspec.msgpack.encode(plan)
            for process in self.processes:
                assert process.stdin is not None
                write_frame(process.stdin, data)
            return execute(plan)
        except Exception:
            if self._has_ended.wait(NOTICE_SECONDS):
                threading.Event().wait()
            raise

    def close(self) -> None:
        """Let the others end when they have done what they were given."""
        self._is_closing = True
        for process in self.processes:
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # it is gone already
                write_frame(process.stdin, b"")
        for process in self.processes:
            process.wait()
        dist.destroy_process_group()
        self._folder.cleanup()

    def _start(
        self, config: WorkerConfig, rank: int, device: torch.device
    ) -> "subprocess.Popen[bytes]":
        own = msgspec.structs.replace(config, device=device_of(rank, device), roles=("denoise",))
        start = RankStart(own, rank, self._folder.name)
        # -P: without it the working directory, which may hold anything, is where modules are from.
        command = [sys.executable, "-P", "-m", "helios_serve.model_executor.worker.follower"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        assert process.stdin is not None
        write_frame(process.stdin, msgspec.msgpack.encode(start))
        name = f"watch rank {rank}"
        threading.Thread(target=self._watch, args=(rank, process), name=name, daemon=True).start()
        return process

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        status = process.wait()
        self._is_meeting.wait()  # what one cannot load the other cannot either, and it says why
        with self._lock:
            if self._is_closing or self._has_ended.is_set():
                return
            self._has_ended.set()
        self._tell(WorkerDied(f"rank {rank} of {self.size}: {describe_exit(status)}"))
        self._folder.cleanup()
        time.sleep(TELL_SECONDS)
        os._exit(1)
