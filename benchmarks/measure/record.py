"""Session records: what the client observed of each session. Each is a line of sessions.jsonl."""

from typing import Literal, NamedTuple

import msgspec

from helios_serve.benchmarks.load.request import SessionRequest

Outcome = Literal["completed", "failed", "refused", "timed_out", "cancelled"]
"""How a session ended: `refused` with 429 or 503, `cancelled` by this client."""


class ChunkRecord(NamedTuple):
    """A chunk: when its last byte arrived, in seconds since the start of the load, its frames and
    its bytes.
    """

    at: float
    frames: int
    size: int


class SwitchRecord(msgspec.Struct):
    """A prompt switch: when it was sent, and when the first chunk that it affects had arrived.

    `chunk` is the number of that chunk in the session's chunks, once it is known.
    """

    event_id: str
    sent: float
    seen: float | None = None
    chunk: int | None = None


class SessionRecord(msgspec.Struct, kw_only=True):
    """One session. Times are seconds since the start of the load, of one monotonic clock.

    - `intended`: when it was to start. Every latency counts from here.
    - `released`: when the client could send it: later than `intended` only if the client limits
      its concurrency.
    - `sent`, `accepted`: when the request was sent, and answered.
    - `polled`: with polling, the last poll that found it unfinished was sent, and the first that
      found it finished was answered. Its end lies between them.
    - `slo_ms`: the session's own bound of its end-to-end latency, from a trace.
    - `is_counted`: whether it belongs to the measurement, and not to the warm-up.
    """

    id: int
    tenant: str
    tier: str | None
    shape: str
    num_frames: int
    fps: int
    intended: float
    released: float
    sent: float | None = None
    accepted: float | None = None
    ended: float | None = None
    outcome: Outcome | None = None
    code: str | None = None
    error: str | None = None
    video_id: str | None = None
    chunks: list[ChunkRecord] = []
    polled: tuple[float, float] | None = None
    switches: list[SwitchRecord] = []
    is_counted: bool = True
    slo_ms: float | None = None

    @classmethod
    def of(cls, request: SessionRequest, number: int, intended: float) -> "SessionRecord":
        """Return the record of a session that has not started."""
        return cls(
            id=number,
            tenant=request.tenant,
            tier=request.tier,
            shape=request.shape,
            num_frames=request.num_frames,
            fps=request.fps,
            intended=intended,
            released=intended,
            slo_ms=request.slo_ms,
            chunks=[],
            switches=[],
        )

    @property
    def deliveries(self) -> list[ChunkRecord]:
        """The chunks; with polling, the whole video when it was found finished."""
        if self.polled is None or self.outcome != "completed":
            return self.chunks
        return [ChunkRecord(self.polled[1], self.num_frames, 0)]

    @property
    def frames(self) -> int:
        """Frames that arrived."""
        return sum(chunk.frames for chunk in self.chunks)

    @property
    def is_served(self) -> bool:
        """Whether its chunks count as samples of the server's speed.

        They do not if the server cut the session short.
        """
        return self.outcome in ("completed", "cancelled")

    def end(self, outcome: Outcome, code: str | None = None, error: str | None = None) -> None:
        self.outcome, self.code, self.error = outcome, code, error
