"""Makes a video in a store.

As a script, it reads a folder, a target and a call as JSON from each line of standard input, and
makes the video in a child process that kills itself at this call of the target. It prints the
child's exit status.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest import mock

from helios_serve.messages import Segment, Snapshot
from helios_serve.stage_seconds import StageSeconds
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import Frames, VideoRequest

JOB = "job"
CHUNKS = 2
SECONDS = 0.25
"""Time of workers for each chunk."""
SPENT = StageSeconds(denoise=SECONDS)


def request(job_id: str = JOB) -> VideoRequest:
    return VideoRequest(request_id=job_id, prompt="a dog", image=Frames(b"pixels", 1, 384, 640))


def kept_at(chunk: int) -> ResumePoint:
    """Return the state from which a job resumes at `chunk`."""
    snapshot = Snapshot(
        chunk=chunk,
        rng=b"rng",
        anchor=b"anchor",
        frames=b"frames up to %d" % chunk,
        num_frames=19,
        dtype="float32",
        height=384,
        width=640,
    )
    return ResumePoint(snapshot)


def commit(store: VideoStore, chunk: int, job_id: str = JOB) -> None:
    segment = Segment(b"header", b"fragment %d" % chunk)
    assert store.commit(job_id, chunk, segment, kept_at(chunk + 1), SPENT)


def make_video(store: VideoStore) -> None:
    """Accept the video unless it exists, and commit all chunks, also those already committed."""
    if store.job(JOB) is None:
        store.accept(request(), num_chunks=CHUNKS)
    for chunk in range(CHUNKS):
        commit(store, chunk)


def killed_at(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """`function`, except that this process dies instead of calling it for the `call`th time."""
    calls = iter(range(1, call))

    def run(*args: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)

    return run


def main(folder: str, target: str, call: int) -> None:
    owner, _, name = target.rpartition(".")
    function = killed_at(resolve_name(target), call)
    with mock.patch.object(resolve_name(owner), name, function):
        make_video(VideoStore(Path(folder)))


if __name__ == "__main__":
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            main(*json.loads(line))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
