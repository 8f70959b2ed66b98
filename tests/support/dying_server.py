"""`helios-serve serve` that is killed by its own hand, at one of several points of its work.

    python -m tests.support.dying_server POINT COUNT FLAGS...

SIGKILL comes when POINT is reached for the COUNT-th time.
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
"""What is called there, and whether it is killed behind the call or before it."""


def dying(call: Callable[..., Any], count: int, *, behind: bool) -> Callable[..., Any]:
    calls = 0

    @wraps(call)
    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and not behind:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*arguments, **named)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return counted


if __name__ == "__main__":
    point, count, *flags = sys.argv[1:]
    owner, name, behind = POINTS[point]
    setattr(owner, name, dying(getattr(owner, name), int(count), behind=behind))
    sys.exit(main(flags))
