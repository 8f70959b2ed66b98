"""The `helios-serve` command, which sends itself a signal at a chosen point.

    python -m tests.support.dying_server POINT COUNT SIGNAL ARGUMENTS...

SIGNAL, such as SIGKILL, is sent when POINT is reached for the COUNT-th time.
"""

import signal
import sys
from typing import Any

from helios_serve.engine.loop.decode_stage import ChunkAssembler
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.entrypoints.cli.main import main
from helios_serve.store.job_files import SegmentStore
from helios_serve.store.jobs import JobStore
from helios_serve.store.video_store import VideoStore
from tests.support.deaths import OBJECT_POINTS, dying

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


if __name__ == "__main__":
    point, count, kind, *arguments = sys.argv[1:]
    owner, name, behind = (POINTS | OBJECT_POINTS)[point]
    number = signal.Signals[kind]
    setattr(owner, name, dying(getattr(owner, name), int(count), number, behind=behind))
    sys.exit(main(arguments))
