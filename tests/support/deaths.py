"""Signals that a process sends itself at a chosen call, and the points of an object store."""

import os
import signal
from collections.abc import Callable
from functools import wraps
from typing import Any

from helios_serve.store.objects.object_store import ObjectStore
from helios_serve.store.objects.uploads import Uploads

OBJECT_POINTS: dict[str, tuple[Any, str, bool]] = {
    "before upload": (ObjectStore, "put", False),
    "before record": (Uploads, "add_chunk", False),
    "before record of MP4": (Uploads, "add_video", False),
    "before drop": (Uploads, "drop", False),
    "after drop": (Uploads, "drop", True),
    "during deletion": (ObjectStore, "delete", False),
    "after deletion": (Uploads, "forget", False),
}
"""The class and the method of each point, and whether the signal comes after the call."""


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
