"""What happens to a video, as server-sent events."""

from collections.abc import Iterator

import httpx2 as httpx
import pytest
from api import error_of
from sse import Event, events_in, lasting

from helios_serve.entrypoints.openai.event_position import EventPosition
from helios_serve.entrypoints.openai.events import story
from helios_serve.sampling_params import PromptSwitch, SamplingParams, VideoRequest
from helios_serve.store.jobs import JobStatus, StoredJob

SWITCHED = {
    "prompt": "waves",
    "num_frames": 80,
    "size": "64x64",
    "switches": [{"chunk": 1, "prompt": "a storm"}],
}


@pytest.fixture(scope="module")
def told(http: httpx.Client) -> list[Event]:
    """All events of a video of three chunks, read while it was made."""
    video = http.post("/v1/videos", json=SWITCHED).json()["id"]
    with http.stream("GET", f"/v1/videos/{video}/events") as answer:
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
    story = lasting(told)
    assert [(event.number, event.name) for event in story] == [
        ("0", "video.chunk"),
        (story[1].number, "video.prompt_switched"),
        ("1", "video.chunk"),
        ("2", "video.chunk"),
        ("2:end", "video.completed"),
    ]
    assert all(event.data["type"] == event.name for event in story)
    frames = [
        (event.data["first_frame"], event.data["num_frames"]) for event in (story[0], *story[2:4])
    ]
    assert frames == [(0, 33), (33, 33), (66, 14)]
    switch = story[1].data
    assert (switch["prompt"], switch["chunk"], switch["frame"]) == ("a storm", 1, 33)
    assert story[-1].data["video"]["status"] == "completed"
    assert told[-1] is story[-1]


def test_progress_is_told_as_it_is(told: list[Event]) -> None:
    progress = [event.data for event in told if event.number is None]
    assert told[0].name in ("video.queued", "video.progress")
    assert {item["phase"] for item in progress} <= {"encoding", "queued", "denoising", "decoding"}
    percents = [item["progress"] for item in progress]
    assert percents == sorted(percents)
    assert any(0 < percent < 100 for percent in percents)
    assert any(item["eta_seconds"] for item in progress)
    made = [item["chunks_done"] for item in progress]
    assert made == sorted(made)


def test_a_reader_that_comes_again_misses_nothing_and_sees_nothing_twice(
    http: httpx.Client, told: list[Event]
) -> None:
    story = lasting(told)
    video = id_of(story[0])
    for position, event in enumerate(story[:-1]):
        again = list(events_of(http, video, event.number))
        assert again == story[position + 1 :], event.number
    headers = {"last-event-id": story[-1].number or ""}
    assert http.get(f"/v1/videos/{video}/events", headers=headers).status_code == 204
    tail = http.get(f"/v1/videos/{video}/events?from_chunk=2").text
    assert lasting(events_in(tail.splitlines())) == story[3:]


def test_a_connection_that_breaks_again_and_again_tells_the_same_story(http: httpx.Client) -> None:
    """While the video is made; its prompt is switched in between, and then it is cancelled."""
    body = {"prompt": "waves", "num_frames": 3300, "size": "64x64"}
    video = http.post("/v1/videos", json=body).json()["id"]
    story: list[Event] = []
    while len(story) < 3:
        for event in events_of(http, video, story[-1].number if story else None):
            if event.number is not None:
                story.append(event)
                break
        if len(story) == 1:
            http.post(f"/v1/videos/{video}/prompt", json={"prompt": "a storm"})
    http.post(f"/v1/videos/{video}/cancel")
    story += lasting(events_of(http, video, story[-1].number))
    assert story == lasting(events_of(http, video))
    assert story[-1].name == "video.cancelled"
    chunks = [event.data["chunk"] for event in story if event.name == "video.chunk"]
    assert chunks == list(range(len(chunks)))


def test_a_switch_that_is_replaced_before_its_chunk_is_made_is_told_and_so_is_the_other() -> None:
    """Nobody comes between two switches of a running video for sure: the store's row stands in."""

    def job(
        next_chunk: int, *switches: PromptSwitch, status: JobStatus = "in_progress"
    ) -> StoredJob:
        request = VideoRequest(
            request_id="a", prompt="waves", params=SamplingParams(num_frames=165, switches=switches)
        )
        return StoredJob(
            id="a",
            tenant="default",
            request=request,
            status=status,
            error=None,
            created_at=0,
            updated_at=0,
            completed_at=None,
            first_chunk=0,
            next_chunk=next_chunk,
            num_chunks=5,
            has_media=False,
            kept_chunk=None,
        )

    def names(job: StoredJob, last: str) -> list[str | int]:
        events = events_in("".join(story(job, position_at(last))).splitlines())
        return [event.data.get("prompt", event.data.get("chunk")) for event in events]

    def position_at(last: str) -> EventPosition:
        number, _, behind = last.partition(":")
        return EventPosition(int(number), behind or None)

    storm, calm = PromptSwitch(2, "a storm"), PromptSwitch(2, "calm")
    later = PromptSwitch(3, "night")
    position = EventPosition(-1)
    assert len(list(story(job(1, storm), position))) == 1  # chunk 0: it is not the next one yet
    assert str(position) == "0"
    assert len(list(story(job(2, storm), position))) == 2
    told = str(position)
    assert names(job(2, storm), told) == []
    assert names(job(2, calm), told) == ["calm"]
    assert names(job(4, storm, later), told) == [2, "night", 3]
    assert names(job(4, calm, later), told) == ["calm", 2, "night", 3]
    # Nothing turns to a prompt whose chunk will never be.
    assert names(job(2, storm, status="cancelled"), "1") == []


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
