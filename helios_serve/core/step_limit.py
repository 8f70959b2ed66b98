"""Sizes whose denoise steps no worker can finish in time."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from helios_serve.core.cost import SessionCost
from helios_serve.core.session import Session
from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import Geometry, HeliosConfig
from helios_serve.size import Size, nearest_size

HALVINGS = 12
"""Precision of the largest size that is named: the side of the requested one over 2 ** HALVINGS."""


class RefusedSession(NamedTuple):
    """A session that cannot be made, and why."""

    session_id: str
    message: str


class StepLimit:
    """Refuses videos one of whose steps takes longer than `deadline` seconds on every worker.

    A worker that exceeds the deadline is killed, so such a step would never end.
    """

    def __init__(self, config: HeliosConfig, deadline: float) -> None:
        self.config = config
        self.deadline = deadline

    def check(self, session: Session, rates: Iterable[float]) -> None:
        """Raise InvalidRequestError if no worker is fast enough, naming the largest size for one.

        `rates` are the FLOP/s of the workers. Without any of them, nothing is known.
        """
        rate = max(rates, default=0.0)
        seconds = max(session.cost.steps) / rate if rate else 0.0
        if seconds <= self.deadline:
            return
        size = Size(session.params.width, session.params.height)
        largest = self._largest(session, size, rate)
        expected = f"at most {largest}" if largest else "a faster worker"
        raise InvalidRequestError(
            f"got size {size}, one step of which takes at least {seconds:.0f} s on any worker, "
            f"expected {expected}: a step may take {self.deadline:.0f} s",
            param="size",
        )

    def too_slow(
        self, sessions: Iterable[Session], rates: Sequence[float]
    ) -> Iterator[RefusedSession]:
        """Return those of some sessions that `check` refuses."""
        for session in list(sessions):
            try:
                self.check(session, rates)
            except InvalidRequestError as error:
                yield RefusedSession(session.session_id, str(error))

    def _largest(self, session: Session, size: Size, rate: float) -> Size | None:
        """The largest size of about the same shape whose steps are short enough, if any is."""
        low, high, found = 0.0, 1.0, None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            smaller = nearest_size(
                int(size.width * middle), int(size.height * middle), self.config, math.floor
            )
            cost = SessionCost(self.config, Geometry(smaller.height, smaller.width), session.params)
            if max(cost.steps) <= rate * self.deadline:
                low, found = middle, smaller
            else:
                high = middle
        return found
