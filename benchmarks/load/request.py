"""The request for one session: a line of trace.jsonl."""

from typing import Any

import msgspec

from helios_serve.options.benchmarks import Task

DEFAULT_TENANT = "default"


class SessionRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The request for one session. Times are milliseconds from its intended start.

    - `timestamp`: the intended start, in milliseconds since the start of the load.
    - `width`, `height`, `steps`, `tier`: None leaves the choice to the server.
    - `image`, `video`: a path of a reference.
    - `switches`: prompt switches, as (time, prompt).
    - `stop_after_ms`: when the client leaves.
    - `slo_ms`: a bound of its end-to-end latency, which a good session meets.
    - `extra`: unknown keys of the line, which are kept but not sent.
    """

    timestamp: float = msgspec.field(default=0.0)
    prompt: str
    width: int | None = None
    height: int | None = None
    num_frames: int
    fps: int = 24
    steps: tuple[int, ...] | None = None
    seed: int | None = None
    task: Task = "t2v"
    tenant: str = DEFAULT_TENANT
    tier: str | None = None
    image: str | None = None
    video: str | None = None
    switches: tuple[tuple[float, str], ...] = ()
    stop_after_ms: float | None = None
    slo_ms: float | None = None
    extra: dict[str, Any] = {}

    @property
    def intended(self) -> float:
        """Intended start, in seconds since the start of the load."""
        return self.timestamp / 1000

    @property
    def shape(self) -> str:
        """Size, length and steps, by which results are grouped."""
        size = f"{self.width}x{self.height}" if self.width and self.height else "default size"
        parts = [size, f"{self.num_frames} frames"]
        if self.steps:
            parts.append(f"steps {','.join(map(str, self.steps))}")
        if self.task != "t2v":
            parts.append(self.task)
        return ", ".join(parts)


KNOWN_KEYS = frozenset(SessionRequest.__struct_fields__) - {"extra"}
