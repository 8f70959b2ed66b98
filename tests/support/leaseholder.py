"""A process that holds a data folder with a lease, and commits chunks when it is told to.

    python -m tests.support.leaseholder FOLDER SECONDS end|stay

Prints `held` and its token. Each line of standard input is the number of a chunk and the text of
its segment; it prints `committed`, or why not. If it loses the lease, it ends, or with `stay` goes
on, so that only the guard of the store keeps it from writing.
"""

import sys
from pathlib import Path

from helios_serve.errors import StorageError
from helios_serve.messages import Segment, Snapshot
from helios_serve.store.lease import end_process, kept, wait_for_lease
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest

JOB = "job"


def stay(reason: str) -> None:
    """Do not end."""


def state_after(chunk: int) -> ResumePoint:
    return ResumePoint(Snapshot(chunk + 1, b"rng", b"anchor", b"frames", 19, "float32", 384, 640))


def main(folder: Path, seconds: float, at_loss: str) -> None:
    lease = wait_for_lease(folder, seconds)
    with kept(lease, end_process if at_loss == "end" else stay):
        store = VideoStore(folder, lease=lease)
        if store.job(JOB) is None:
            store.accept(VideoRequest(request_id=JOB, prompt="a dog"), num_chunks=9)
        print(f"held {lease.token}", flush=True)
        for line in sys.stdin:
            chunk, text = line.split()
            segment = Segment(b"header", text.encode())
            try:
                store.commit(JOB, int(chunk), segment, state_after(int(chunk)))
                print("committed", flush=True)
            except StorageError as error:
                print(error, flush=True)
        store.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
