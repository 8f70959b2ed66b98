"""Server-sent events of videos."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2 as httpx
import pytest

from helios_serve.entrypoints.http.live.events import EventPosition, events_after
from helios_serve.messages import Segment, Snapshot
from helios_serve.options.sampling import PromptSwitch, SamplingParams
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest
from tests.support.api import error_of
from tests.support.server import Server
from tests.support.sse import Event, events_in, lasting

SWITCHED = {
    "prompt": "waves",
    "num_frames": 80,
    "size": "64x64",
    "switches": [{"chunk": 1, "prompt": "a storm"}],
}


@pytest.fixture(scope="module")
def told(server: Server, http: httpx.Client) -> list[Event]:
    """The events of a video of three chunks, which starts when it is read."""
    with ExitStack() as opened:
        with server.workers_stopped():
            video = http.post("/v1/videos", json=SWITCHED).json()["id"]
            reading = http.stream("GET", f"/v1/videos/{video}/events")
            answer = opened.enter_context(reading)
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(events_in(answer.iter_lines()))


def events_of(http: httpx.Client, video: str, last: str | None = None) -> Iterator[Event]:
    headers = {} if last is None else {"last-event-id": last}
    with http.stream("GET", f"/v1/videos/{video}/events", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        yield from events_in(answer.iter_lines())


def id_of(event: Event) -> str:
    name: str = event.data["video_id"]
    return name


def test_a_video_tells_all_that_happens_to_it_once_and_in_order(told: list[Event]) -> None:
    events_after = lasting(told)
    assert [(event.number, event.name) for event in events_after] == [
        ("0", "video.chunk"),
        (events_after[1].number, "video.prompt_switched"),
        ("1", "video.chunk"),
        ("2", "video.chunk"),
        ("2:end", "video.completed"),
    ]
    assert all(event.data["type"] == event.name for event in events_after)
    frames = [
        (event.data["first_frame"], event.data["num_frames"])
        for event in (events_after[0], *events_after[2:4])
    ]
    assert frames == [(0, 33), (33, 33), (66, 14)]
    switch = events_after[1].data
    assert (switch["prompt"], switch["chunk"], switch["frame"]) == ("a storm", 1, 33)
    assert events_after[-1].data["video"]["status"] == "completed"
    assert told[-1] is events_after[-1]


def test_progress_is_told_as_it_is(http: httpx.Client, told: list[Event]) -> None:
    progress = [event.data for event in told if event.number is None]
    assert told[0].name in ("video.queued", "video.progress")
    assert {item["phase"] for item in progress} <= {"encoding", "queued", "denoising", "decoding"}
    percents = [item["progress"] for item in progress]
    assert percents == sorted(percents)
    made = [item["chunks_done"] for item in progress]
    assert made == sorted(made)
    body = {"prompt": "waves", "num_frames": 3300, "size": "64x64"}
    video = http.post("/v1/videos", json=body).json()["id"]
    halfway = (event.data for event in events_of(http, video) if event.name == "video.progress")
    assert any(0 < item["progress"] < 99 and item["eta_seconds"] for item in halfway)
    http.delete(f"/v1/videos/{video}")


def test_a_reader_that_comes_again_misses_nothing_and_sees_nothing_twice(
    http: httpx.Client, told: list[Event]
) -> None:
    events_after = lasting(told)
    video = id_of(events_after[0])
    for position, event in enumerate(events_after[:-1]):
        again = list(events_of(http, video, event.number))
        assert again == events_after[position + 1 :], event.number
    headers = {"last-event-id": events_after[-1].number or ""}
    assert http.get(f"/v1/videos/{video}/events", headers=headers).status_code == 204
    tail = http.get(f"/v1/videos/{video}/events?from_chunk=2").text
    assert lasting(events_in(tail.splitlines())) == events_after[3:]


def test_a_connection_that_breaks_again_and_again_tells_the_same_story(http: httpx.Client) -> None:
    """While the video is generated. Its prompt is switched, and then it is cancelled."""
    body = {"prompt": "waves", "num_frames": 3300, "size": "64x64"}
    video = http.post("/v1/videos", json=body).json()["id"]
    events_after: list[Event] = []
    while len(events_after) < 3:
        for event in events_of(http, video, events_after[-1].number if events_after else None):
            if event.number is not None:
                events_after.append(event)
                break
        if len(events_after) == 1:
            http.post(f"/v1/videos/{video}/prompt", json={"prompt": "a storm"})
    http.post(f"/v1/videos/{video}/cancel")
    events_after += lasting(events_of(http, video, events_after[-1].number))
    assert events_after == lasting(events_of(http, video))
    assert events_after[-1].name == "video.cancelled"
    chunks = [event.data["chunk"] for event in events_after if event.name == "video.chunk"]
    assert chunks == list(range(len(chunks)))


def test_a_switch_that_is_replaced_before_its_chunk_is_made_is_told_and_so_is_the_other(
    tmp_path: Path,
) -> None:
    """Two switches of a running video cannot be timed reliably: this one is only in the store."""
    store = VideoStore(tmp_path)
    asked = VideoRequest(
        request_id="a", prompt="waves", params=SamplingParams(num_frames=165), output="segment"
    )
    store.accept(asked, num_chunks=5)

    def commit(chunk: int) -> None:
        nothing = Snapshot(chunk + 1, b"", b"", b"", 19, "float32", 64, 64)
        assert store.commit("a", chunk, Segment(b"header", b"fragment"), ResumePoint(nothing))

    def switch(chunk: int, prompt: str) -> None:
        job = store.job("a")
        assert job is not None
        store.update_request(job.request.with_switch(PromptSwitch(chunk, prompt)))

    def told(position: EventPosition) -> list[str | int | None]:
        job = store.job("a")
        assert job is not None
        events = events_in("".join(events_after(job, position)).splitlines())
        return [event.data.get("prompt", event.data.get("chunk")) for event in events]

    position = EventPosition(-1)
    commit(0)
    switch(2, "a storm")
    assert told(position) == [0]  # the chunk before the switch was not made yet
    commit(1)
    assert told(position) == [1, "a storm"]
    assert told(position) == []
    before = EventPosition(1, position.marker)
    switch(2, "calm")
    assert told(position) == ["calm"]
    commit(2)
    switch(3, "night")
    assert told(position) == [2, "night"]
    assert told(before) == ["calm", 2, "night"]
    assert told(EventPosition(1)) == ["calm", 2, "night"]
    store.finish("a", "cancelled")
    assert told(EventPosition(2)) == []  # nothing turns to a prompt whose chunk will never be
    store.close()


def test_a_deleted_video_ends_its_streams(http: httpx.Client) -> None:
    body = {"prompt": "waves", "num_frames": 3300, "size": "64x64"}
    video = http.post("/v1/videos", json=body).json()["id"]
    events = events_of(http, video)
    next(events)
    http.delete(f"/v1/videos/{video}")
    # It is ended first: a reader hears of that or of the other, and then nothing more.
    assert [event.name for event in events][-1] in ("video.cancelled", "video.deleted")


@pytest.mark.parametrize("last", ["x", "3", "-2", "1:2", "0:END", ""])
def test_a_place_that_no_event_has_is_refused(
    http: httpx.Client, told: list[Event], last: str
) -> None:
    video = id_of(told[0])
    answer = http.get(f"/v1/videos/{video}/events", headers={"last-event-id": last})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "last-event-id"
    assert http.get(f"/v1/videos/{video}/events?from_chunk=3").status_code == 400
    assert http.get("/v1/videos/none/events").status_code == 404
