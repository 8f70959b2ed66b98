"""Decodes references, one after another, in a process that may crash, hang or grow alone.

Nothing of the server is in it: no requests, no keys, no sockets. It is started by `decoder_pool`
with the limits as its argument; jobs come by standard input and answers go to standard output.
"""

import os
import queue
import resource
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import BinaryIO

import msgspec
from PIL import Image

from helios_serve.errors import InvalidRequestError
from helios_serve.media.decode_job import (
    HEAD,
    DecodeAnswer,
    Decoded,
    DecodeJob,
    DecodeLimits,
    Ready,
    Refused,
    packed,
)
from helios_serve.media.references import load_reference


def main(limits_json: str) -> None:
    """Serve until standard input ends."""
    limits = msgspec.json.decode(limits_json, type=DecodeLimits)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides when its children end
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None  # our own limit is lower, and says so
    answers = private_stdout()
    jobs: queue.SimpleQueue[DecodeJob] = queue.SimpleQueue()
    threading.Thread(target=read_jobs, args=(jobs,), name="read jobs", daemon=True).start()
    confine(limits)
    say(answers, Ready())
    while True:
        job = jobs.get()
        allow_more_time(limits.cpu_seconds)
        say(answers, answer(job))


def private_stdout() -> BinaryIO:
    """What a library prints must not get between the answers."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def read_jobs(jobs: "queue.SimpleQueue[DecodeJob]") -> None:
    """Take jobs as they come, and end the process when nobody is left to give any."""
    while len(head := sys.stdin.buffer.read(HEAD.size)) == HEAD.size:
        data = sys.stdin.buffer.read(HEAD.unpack(head)[0])
        jobs.put(msgspec.msgpack.decode(data, type=DecodeJob))
    os._exit(0)


def confine(limits: DecodeLimits) -> None:
    """From here on, what exceeds a limit fails or ends this process."""
    for kind, most in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, limits.result_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bound, bound))


def allow_more_time(seconds: int) -> None:
    """The system ends the process by SIGXCPU when it has used that much more."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    until = int(usage.ru_utime + usage.ru_stime) + 1 + seconds
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (until, hard))


def answer(job: DecodeJob) -> DecodeAnswer:
    """Whatever a decoder raises is the file's fault: it alone differs from job to job."""
    path = Path(job.path)
    try:
        kind, frames = load_reference(path, width=job.width, height=job.height, kind=job.kind)
        Path(job.result).write_bytes(frames.data)
    except InvalidRequestError as error:
        return Refused(str(error).removeprefix(f"{path}: "))
    except MemoryError:
        return Refused("got a file that takes too much memory to decode, expected a smaller one")
    except Exception as error:
        what = f"{type(error).__name__} while decoding"
        return Refused(f"got {what}, expected a picture or a video that is whole")
    return Decoded(kind, frames.count, frames.skipped)


def say(answers: BinaryIO, message: DecodeAnswer | Ready) -> None:
    answers.write(packed(message))
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
