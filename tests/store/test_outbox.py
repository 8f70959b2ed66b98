"""Events of ended videos: exactly one each."""

import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from helios_serve.store.jobs import EndStatus
from helios_serve.store.outbox import Outbox
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest

WRITER = Path(__file__).with_name("writer.py")
writer = SimpleNamespace(**runpy.run_path(str(WRITER)))

FINISH = """
import sys
from pathlib import Path
from helios_serve.store.outbox import Outbox
from helios_serve.store.video_store import VideoStore
store = VideoStore(Path(sys.argv[1]))
outbox = Outbox(store.database)
for number in range(10_000):
    store.finish(str(number), "completed")
    print(number, flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VideoStore]:
    with closing(VideoStore(tmp_path, clock=lambda: 100.0)) as store:
        yield store


def accept(store: VideoStore, *names: str) -> None:
    for name in names:
        store.accept(VideoRequest(request_id=name, prompt="a dog"), num_chunks=1)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("completed", "video.completed"),
        ("failed", "video.failed"),
        ("cancelled", "video.failed"),
    ],
)
def test_a_video_that_ends_has_one_event(store: VideoStore, status: EndStatus, kind: str) -> None:
    outbox = Outbox(store.database)
    accept(store, "a")
    assert outbox.due(1000, 10) == []
    store.finish("a", status)
    store.finish("a", "cancelled")  # it has ended already
    (event,) = outbox.due(100, 10)
    assert (event.type, event.video_id, event.created_at, event.attempts) == (kind, "a", 100, 0)
    assert event.id.startswith("evt_")


def test_commits_and_deletions_are_no_ends(store: VideoStore) -> None:
    outbox = Outbox(store.database)
    store.accept(writer.request("a"), num_chunks=2)
    writer.commit(store, 0, "a")
    store.delete("a")
    store.finish("a", "completed")
    assert outbox.due(1000, 10) == []


def test_an_event_outlives_its_video_and_its_process(tmp_path: Path) -> None:
    with closing(VideoStore(tmp_path)) as store:
        outbox = Outbox(store.database)
        accept(store, "a", "b")
        store.finish("a", "completed")
        store.delete("a")
        (event,) = outbox.due(1e12, 10)
    with closing(VideoStore(tmp_path)) as store:
        assert Outbox(store.database).due(1e12, 10) == [event]


def test_events_are_postponed_and_forgotten(store: VideoStore) -> None:
    outbox = Outbox(store.database)
    accept(store, "a", "b", "c")
    for name in ("a", "b", "c"):
        store.finish(name, "completed")
    first, second, third = outbox.due(100, 10)
    outbox.postpone(first.id, until=200)
    outbox.forget(second.id)
    assert outbox.due(100, 10) == [third]
    assert outbox.due(100, 10, exclude=(third.id,)) == []
    assert [event.attempts for event in outbox.due(200, 10)] == [0, 1]
    assert len(outbox.due(200, 1)) == 1


def test_a_server_without_webhooks_keeps_no_events(store: VideoStore) -> None:
    Outbox(store.database)
    accept(store, "a", "b", "c")
    store.finish("a", "completed")
    Outbox.drop(store.database)
    store.finish("b", "completed")
    outbox = Outbox(store.database)
    store.finish("c", "completed")
    assert [event.video_id for event in outbox.due(1000, 10)] == ["c"]


@pytest.mark.parametrize("after", [1, 7])
def test_no_end_is_without_its_event_after_a_kill(tmp_path: Path, after: int) -> None:
    with closing(VideoStore(tmp_path)) as store:
        Outbox(store.database)
        accept(store, *map(str, range(300)))
    with subprocess.Popen(
        [sys.executable, "-c", FINISH, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(after):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    with closing(VideoStore(tmp_path)) as store:
        ended = {job.id for job in store.jobs() if job.is_finished}
        events = Outbox(store.database).due(1e12, 1000)
        assert len(ended) >= after
        assert {event.video_id for event in events} == ended
        assert len(events) == len(ended)
