"""The process of a context-parallel worker's rank 1 or up: reads plans and executes them."""

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
    """Load the model, join the group and execute plans. Exits at once when rank 0 ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 ends its group itself
    begin = read_frame(sys.stdin.buffer)
    if begin is None:
        return
    start = msgspec.msgpack.decode(begin, type=RankStart)
    show_logs(start.log_level)
    plans: queue.SimpleQueue[SchedulerOutput | None] = queue.SimpleQueue()
    threading.Thread(target=read_plans, args=(plans, start.folder), daemon=True).start()
    try:
        folder, size = Path(start.folder), start.config.context_parallel
        worker = load_rank(
            start.config,
            lambda _: None,
            join=lambda device: join_group(folder, start.rank, size, device),
        )
        with worker.reports.running(interrupt=lambda: plans.put(None)):
            while (plan := plans.get()) is not None:
                worker.execute(plan)
        dist.destroy_process_group()
    except Exception as error:  # its exit ends the worker: rank 0 notices
        logger.error("rank %d failed", start.rank, exc_info=error)
        leave(start.folder)


def read_plans(plans: "queue.SimpleQueue[SchedulerOutput | None]", folder: str) -> None:
    """Queue plans as they arrive, even while one runs."""
    decoder = msgspec.msgpack.Decoder(SchedulerOutput)
    while data := read_frame(sys.stdin.buffer):
        plans.put(decoder.decode(data))
    if data is None:  # rank 0 ended
        leave(folder)
    plans.put(None)


def leave(folder: str) -> NoReturn:
    """Exit at once, whatever other threads are doing."""
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    main()
