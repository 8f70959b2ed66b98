"""What the VAE's decoder keeps of each session, so that a chunk continues the one before it."""

import time
from collections.abc import Callable
from typing import NamedTuple

from helios_serve.model_executor.models.wan_vae.causal_conv import CausalState

IDLE_SECONDS = 30.0
"""Time after which a state gives way to those of other sessions: its session may have ended."""


class HeldState(NamedTuple):
    """The state before `chunk`, and when it was left here, in seconds of any clock."""

    chunk: int
    state: CausalState
    since: float


class DecoderStates:
    """The decoder's state of each session after its last chunk, in `max_bytes` at most.

    Where there is no state, a chunk is decoded alone: after its session moved to this worker, after
    a restart, in a fork or an extension, and where a chunk failed. While all states are in use, a
    further session gets none: if it displaced another one, soon no chunk would find its state.
    One thread uses this.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = max_bytes
        self.clock = clock
        self._held: dict[str, HeldState] = {}
        """By session, the one that was left first at the front."""

    @property
    def num_bytes(self) -> int:
        return sum(held.state.num_bytes for held in self._held.values())

    def take(self, session_id: str, chunk: int) -> CausalState | None:
        """Remove and return the state before `chunk`; None if that is not here."""
        held = self._held.pop(session_id, None)
        return held.state if held is not None and held.chunk == chunk else None

    def keep(self, session_id: str, chunk: int, state: CausalState) -> None:
        """Keep the state before `chunk`, in place of an older one of its session, if there is room
        or another session has been idle."""
        self._held.pop(session_id, None)
        room, now = self.max_bytes - state.num_bytes, self.clock()
        while self.num_bytes > room:
            oldest = next(iter(self._held), None)
            if oldest is None or now - self._held[oldest].since < IDLE_SECONDS:
                return
            del self._held[oldest]
        self._held[session_id] = HeldState(chunk, state, now)
