"""Reservations in the engine for requests that are not stored yet."""

import asyncio
import threading
from typing import Any

import pytest

from helios_serve.engine.loop.submission import Submission
from helios_serve.errors import CapacityError, InvalidRequestError, StorageError
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.store.video_store import VideoStore
from tests.support.engines import core, engine_of, quick_model, read, request, run, until

ONE = SchedulingConfig(max_queued=1)
FULL = "queue is full: 1 sessions waiting"


def submission(name: str) -> Submission:
    wanted = request(name)
    return Submission(wanted, wanted.resolve(quick_model().config))


def test_a_reservation_takes_room_and_starts_nothing() -> None:
    own = core(scheduling=ONE)
    own.reserve(submission("a"))
    assert (own.has_unfinished, own.stats().encoding) == (False, 0)
    with pytest.raises(CapacityError, match=FULL):
        own.reserve(submission("b"))
    with pytest.raises(InvalidRequestError, match="got request id 'a', which is in use"):
        own.reserve(submission("a"))
    own.abort("a")
    own.reserve(submission("b"))
    own.start(submission("b"))
    assert (own.has_unfinished, own.stats().encoding) == (True, 1)
    own.scheduler.check_integrity()
    own.executor.shutdown()


@pytest.mark.parametrize("ending", ["stored", "cancelled", "failed"])
def test_a_request_is_started_when_it_is_stored(
    ending: str, store: VideoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then it only reserves capacity, which is released if the write fails."""
    own, may_write, accept = core(scheduling=ONE), threading.Event(), VideoStore.accept_all

    def write(*args: Any, **options: Any) -> None:
        may_write.wait(60)
        if ending == "failed":
            raise StorageError("cannot write: No space left on device")
        accept(*args, **options)

    async def main() -> None:
        async with engine_of(own, store) as engine:
            with monkeypatch.context() as patch:
                patch.setattr(VideoStore, "accept_all", write)
                submitting = asyncio.create_task(engine.submit(request("a", 33)))
                await until(lambda: "a" in own.scheduler.sessions)
                assert (own.has_unfinished, own.stats().encoding) == (False, 0)
                with pytest.raises(CapacityError, match=FULL):
                    await engine.submit(request("b", 33))
                if ending == "cancelled":
                    submitting.cancel()
                may_write.set()
                outcomes = await asyncio.gather(submitting, return_exceptions=True)
            kinds = {"stored": type(None), "failed": StorageError}
            assert isinstance(outcomes[0], kinds.get(ending, asyncio.CancelledError))
            if ending == "stored":
                assert len(await read(engine, "a")) == 1
                return
            if ending == "cancelled":  # too late: what is stored is accepted
                assert len(await read(engine, "a")) == 1
                return
            assert (list(own.scheduler.sessions), store.jobs()) == ([], [])
            await engine.submit(request("b", 33))
            assert len(await read(engine, "b")) == 1

    run(main())
