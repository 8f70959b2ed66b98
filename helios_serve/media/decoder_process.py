"""The decoder process: decodes one reference after another under resource limits.

It holds no requests, keys or sockets of the server. `decoder_pool` starts it with the limits as its
argument; it reads jobs from standard input and writes answers to standard output.
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
    LENGTH_PREFIX,
    DecodeAnswer,
    Decoded,
    DecodeJob,
    DecodeLimits,
    Ready,
    Refused,
    encode_message,
)
from helios_serve.media.references import load_reference


def main(limits_json: str) -> None:
    """Answer jobs until standard input is closed."""
    limits = msgspec.json.decode(limits_json, type=DecodeLimits)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, the server ends its processes itself
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None  # `references` has a lower limit and a better message
    answers = private_stdout()
    jobs: queue.SimpleQueue[DecodeJob] = queue.SimpleQueue()
    threading.Thread(target=read_jobs, args=(jobs,), name="read jobs", daemon=True).start()
    apply_limits(limits)
    send(answers, Ready())
    while True:
        job = jobs.get()
        extend_cpu_limit(limits.cpu_seconds)
        send(answers, decode(job))


def private_stdout() -> BinaryIO:
    """Take over standard output and redirect prints of libraries to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def read_jobs(jobs: "queue.SimpleQueue[DecodeJob]") -> None:
    """Queue jobs as they arrive. When the server closes the pipe, exit at once, even in a job."""
    while len(prefix := sys.stdin.buffer.read(LENGTH_PREFIX.size)) == LENGTH_PREFIX.size:
        data = sys.stdin.buffer.read(LENGTH_PREFIX.unpack(prefix)[0])
        jobs.put(msgspec.msgpack.decode(data, type=DecodeJob))
    os._exit(0)


def apply_limits(limits: DecodeLimits) -> None:
    """Set the limits of this process, except CPU time, which is per job."""
    for kind, limit in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, limits.result_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (bound, bound))


def extend_cpu_limit(seconds: int) -> None:
    """Allow `seconds` more of CPU time; beyond them the system sends SIGXCPU."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    until = int(usage.ru_utime + usage.ru_stime) + 1 + seconds
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (until, hard))


def decode(job: DecodeJob) -> DecodeAnswer:
    """Run a job. Any exception is blamed on the file, because only files differ between jobs."""
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
        return Refused(f"got {what}, expected a valid image or video")
    return Decoded(kind, frames.count, frames.skipped)


def send(answers: BinaryIO, message: DecodeAnswer | Ready) -> None:
    answers.write(encode_message(message))
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
