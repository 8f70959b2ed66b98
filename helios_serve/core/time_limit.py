"""Videos some job of which no worker can finish in time."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from helios_serve.core.cost import SessionCost, encode_cost
from helios_serve.core.session import Session
from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import Geometry, HeliosConfig
from helios_serve.size import Size, nearest_size

HALVINGS = 12
"""Precision of the largest size that is named: the side of the requested one over 2 ** HALVINGS."""


class Speeds(NamedTuple):
    """What a worker does in a second at most: FLOPs of steps, and pixels that it encodes and
    decodes. 0 if that is not known."""

    denoise: float = 0.0
    encode: float = 0.0
    decode: float = 0.0


class LongestJobs(NamedTuple):
    """The longest jobs of a video that are not divided, in the units of `Speeds`: a step, encoding
    its prompts and its reference, and decoding a chunk."""

    denoise: float
    encode: float
    decode: float


class JobText(NamedTuple):
    """How an error describes a job that takes too long, and names the kind of it."""

    takes: str
    kind: str


JOB_TEXTS = {
    "denoise": JobText("one step of which takes at least {:.0f} s", "a step"),
    "encode": JobText("whose prompts and reference take at least {:.0f} s to encode", "encoding"),
    "decode": JobText("a chunk of which takes at least {:.0f} s to decode", "decoding a chunk"),
}


class RefusedSession(NamedTuple):
    """A session that cannot be made, and why."""

    session_id: str
    message: str


class TimeLimit:
    """Refuses videos some job of which takes longer than `deadline` seconds on every worker.

    A worker that exceeds the deadline is killed, so such a job would never end.
    """

    def __init__(self, config: HeliosConfig, deadline: float) -> None:
        self.config = config
        self.deadline = deadline

    def check(self, session: Session, speeds: Iterable[Speeds]) -> None:
        """Raise InvalidRequestError if no worker is fast enough, naming the largest size for one.

        Where no worker's speed is known, nothing is refused.
        """
        fastest = Speeds(*(max(rates) for rates in zip(Speeds(), *speeds, strict=True)))
        size = Size(session.params.width, session.params.height)
        seconds = self._seconds(session, size, fastest)
        stage = max(LongestJobs._fields, key=lambda name: getattr(seconds, name))
        longest = getattr(seconds, stage)
        if longest <= self.deadline:
            return
        largest = self._largest(session, size, fastest)
        expected = f"at most {largest}" if largest else "a faster worker"
        takes, kind = JOB_TEXTS[stage]
        raise InvalidRequestError(
            f"got size {size}, {takes.format(longest)} on any worker, expected {expected}: "
            f"{kind} may take {self.deadline:.0f} s",
            param="size",
        )

    def too_slow(
        self, sessions: Iterable[Session], speeds: Sequence[Speeds]
    ) -> Iterator[RefusedSession]:
        """Return those of some sessions that `check` refuses."""
        for session in list(sessions):
            try:
                self.check(session, speeds)
            except InvalidRequestError as error:
                yield RefusedSession(session.session_id, str(error))

    def _seconds(self, session: Session, size: Size, speeds: Speeds) -> LongestJobs:
        """Seconds that the jobs of a session take at least if it had another size."""
        jobs = self._jobs(session, size)
        return LongestJobs(
            *(work / speed if speed else 0.0 for work, speed in zip(jobs, speeds, strict=True))
        )

    def _jobs(self, session: Session, size: Size) -> LongestJobs:
        params = msgspec.structs.replace(session.params, width=size.width, height=size.height)
        cost = SessionCost(self.config, Geometry(size.height, size.width), params)
        request = msgspec.structs.replace(session.request, params=params)
        encode = encode_cost(len(session.prompts.missing), request if session.needs_seed else None)
        return LongestJobs(max(cost.steps), encode, cost.decode)

    def _largest(self, session: Session, size: Size, speeds: Speeds) -> Size | None:
        """The largest size of about the same shape whose jobs are short enough, if any is."""
        low, high, found = 0.0, 1.0, None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            smaller = nearest_size(
                int(size.width * middle), int(size.height * middle), self.config, math.floor
            )
            if max(self._seconds(session, smaller, speeds)) <= self.deadline:
                low, found = middle, smaller
            else:
                high = middle
        return found
