"""Limits on waiting and live sessions, overall and by tenant."""

from collections import Counter
from collections.abc import Collection, Iterable

from helios_serve.core.session import Session
from helios_serve.errors import CapacityError, InvalidRequestError, NotAllowedError
from helios_serve.options.scheduling import SchedulingConfig, TenantConfig
from helios_serve.size import Size
from helios_serve.video_request import VideoRequest


def check_allowed(request: VideoRequest, tenant: TenantConfig) -> None:
    """Check that the request's tenant may use its tier and its size.

    Raises NotAllowedError for the tier and InvalidRequestError for the size.
    """
    if tenant.tiers is not None and request.tier not in tenant.tiers:
        raise NotAllowedError(
            f"got service_tier {request.tier}, expected one that tenant {request.tenant} may "
            f"use: {', '.join(tenant.tiers)}",
            code="tier_not_allowed",
            param="service_tier",
        )
    size = request.shown_size or Size(request.params.width, request.params.height)
    if tenant.sizes is not None and str(size) not in tenant.sizes:
        raise InvalidRequestError(
            f"got size {size}, expected one that tenant {request.tenant} may use: "
            f"{', '.join(tenant.sizes)}",
            param="size",
        )


class Admission:
    """Counts live and waiting sessions, and refuses those that would exceed a limit."""

    def __init__(self, config: SchedulingConfig) -> None:
        self.config = config
        self._live: Counter[str] = Counter()
        self._queued: Counter[str] = Counter()
        self._waiting = 0

    def check(self, session: Session) -> None:
        """Raise CapacityError if one more session would exceed its tenant's limits or the total."""
        name = session.request.tenant
        tenant = self.config.tenant(name)
        quotas = (
            (self._live[name], tenant.max_sessions, "sessions"),
            (self._queued[name], tenant.max_queued, "waiting sessions"),
        )
        for count, limit, what in quotas:
            if limit is not None and count >= limit:
                raise CapacityError(
                    f"tenant {name} has reached its limit: {count} {what} (limit {limit})",
                    code="tenant_quota",
                )
        if self._waiting >= self.config.max_queued:
            raise CapacityError(
                f"queue is full: {self._waiting} sessions waiting (limit {self.config.max_queued})",
                code="queue_full",
            )

    def accept(self, session: Session) -> None:
        self._live[session.request.tenant] += 1
        self.requeue(session)

    def start(self, session: Session) -> None:
        """A waiting session runs."""
        self._queued[session.request.tenant] -= 1
        self._waiting -= 1

    def requeue(self, session: Session) -> None:
        """A running session waits again. It was accepted before, so no limit refuses it."""
        self._queued[session.request.tenant] += 1
        self._waiting += 1

    def finish(self, session: Session) -> None:
        """A running session has ended. It counts no more, whatever it still has in flight."""
        if session.is_counted:
            session.is_counted = False
            self._live[session.request.tenant] -= 1

    def check_integrity(self, live: Iterable[Session], queued: Collection[str]) -> None:
        """Raise AssertionError unless the counts are those of the `live` sessions.

        `queued` are the ids of those that wait.
        """
        sessions = [item for item in live if item.is_counted]
        assert +self._live == Counter(item.request.tenant for item in sessions)
        waiting = Counter(item.request.tenant for item in sessions if item.session_id in queued)
        assert +self._queued == waiting
        assert self._waiting == waiting.total()
