"""The `helios-serve` command, which sends itself a signal at a chosen point.

    python -m tests.support.dying_server POINT COUNT SIGNAL ARGUMENTS...

SIGNAL, such as SIGKILL, is sent when POINT is reached for the COUNT-th time.
"""

import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from helios_serve.engine.loop.decode_stage import ChunkAssembler
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.entrypoints.cli.main import main
from helios_serve.store.job_files import SegmentStore
from helios_serve.store.jobs import JobStore
from helios_serve.store.objects.object_store import ObjectStore
from helios_serve.store.objects.uploads import Uploads
from helios_serve.store.video_store import VideoStore

POINTS: dict[str, tuple[Any, str, bool]] = {
    "accepted": (VideoStore, "accept_all", True),
    "first step": (EngineCore, "_on_steps", True),
    "chunk end": (ChunkAssembler, "receive", True),
    "segment written": (SegmentStore, "put", True),
    "before commit": (JobStore, "advance", False),
    "after commit": (JobStore, "advance", True),
    "during restart": (EngineCore, "add", True),
}
"""The class and the method of each point, and whether the signal comes after the call."""
OBJECT_POINTS: dict[str, tuple[Any, str, bool]] = {
    "before upload": (ObjectStore, "put", False),
    "before record": (Uploads, "add_chunk", False),
    "before record of MP4": (Uploads, "add_video", False),
    "before drop": (Uploads, "drop", False),
    "after drop": (Uploads, "drop", True),
    "during deletion": (ObjectStore, "delete", False),
    "after deletion": (Uploads, "forget", False),
}
"""Points of a server with an object store."""


def dying(
    call: Callable[..., Any], count: int, number: signal.Signals, *, behind: bool
) -> Callable[..., Any]:
    calls = 0

    @wraps(call)
    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        is_time = calls == count
        if is_time and not behind:
            os.kill(os.getpid(), number)
        result = call(*arguments, **named)
        if is_time and behind:
            os.kill(os.getpid(), number)
        return result

    return counted


if __name__ == "__main__":
    point, count, kind, *arguments = sys.argv[1:]
    owner, name, behind = (POINTS | OBJECT_POINTS)[point]
    number = signal.Signals[kind]
    setattr(owner, name, dying(getattr(owner, name), int(count), number, behind=behind))
    sys.exit(main(arguments))
