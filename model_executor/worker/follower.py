"""The life of a process behind another one's worker: plans go in, nothing comes out."""

import os
import queue
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

import msgspec
import torch.distributed as dist

from helios_serve.logger import logger, show_logs
from helios_serve.messages import SchedulerOutput
from helios_serve.model_executor.worker.group import RankStart, join_group, read_frame
from helios_serve.model_executor.worker.worker import load_rank


def main() -> None:
    """Load the model, meet the others, and run what comes; ends at once when rank 0 is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides when its group ends
    show_logs()
    begin = read_frame(sys.stdin.buffer)
    if begin is None:
        return
    start = msgspec.msgpack.decode(begin, type=RankStart)
    plans: queue.SimpleQueue[SchedulerOutput | None] = queue.SimpleQueue()
    threading.Thread(target=read_plans, args=(plans, start.folder), daemon=True).start()
    try:
        folder, size = Path(start.folder), start.config.context_parallel
        worker = load_rank(
            start.config,
            lambda _: None,
            join=lambda device: join_group(folder, start.rank, size, device),
        )
        while (plan := plans.get()) is not None:
            worker.execute(plan)
        dist.destroy_process_group()
    except Exception as error:  # the others cannot go on without this one, and learn of its end
        logger.error("rank %d failed", start.rank, exc_info=error)
        leave(start.folder)


def read_plans(plans: "queue.SimpleQueue[SchedulerOutput | None]", folder: str) -> None:
    """Take plans as they come, also while one runs."""
    decoder = msgspec.msgpack.Decoder(SchedulerOutput)
    while data := read_frame(sys.stdin.buffer):
        plans.put(decoder.decode(data))
    if data is None:  # rank 0 is gone
        leave(folder)
    plans.put(None)


def leave(folder: str) -> NoReturn:
    """End at once, whatever other threads are at."""
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    main()
