"""Realtime sessions over WebSocket, with the real client, against a server as users start it."""

import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed

from helios_serve.options.sampling import PromptSwitch, SamplingParams
from helios_serve.service.protocol import ExtendVideo
from helios_serve.service.realtime.sessions import RealtimeSession
from helios_serve.service.videos.requests import extension, remix
from helios_serve.video_request import VideoRequest
from tests.support.api import frames_of, played
from tests.support.realtime import Chunk, data_of, realtime_client
from tests.support.server import Server, running_server
from tests.support.sse import events_in

LONG: dict[str, Any] = {"num_frames": 3300, "seed": 5}


def video_of(http: httpx.Client, name: str) -> dict[str, Any]:
    video: dict[str, Any] = http.get(f"/v1/videos/{name}").json()
    return video


def wait_until(http: httpx.Client, name: str, phase: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (video := video_of(http, name))["phase"] != phase:
        assert time.monotonic() < deadline, video
        time.sleep(0.02)
    return video


def test_a_client_of_vllm_omni_gets_its_chunks_and_switches_the_prompt(
    server: Server, http: httpx.Client
) -> None:
    """With vLLM-Omni's exact messages. All readers of the video get the same frames."""
    with realtime_client(server.url) as client:
        start = {
            "model": "nano",
            "prompt": "waves",
            "width": 64,
            "height": 64,
            "fps": 16,
            "num_frames": 150,
            "num_inference_steps": 50,
            "guidance_scale": 1.0,
            "seed": 42,
            "format": "m4s",
            "extra_params": {
                "is_enable_stage2": True,
                "pyramid_num_stages": 3,
                "pyramid_num_inference_steps_list": [1, 1, 1],
                "is_amplify_first_chunk": True,
            },
        }
        client.say("session.start", **start)
        client.interact("a storm", event_id="storm", transition_chunks=1)
        started = client.started()
        video = started["request_id"]
        assert started["format"] == "m4s"
        assert started["config"]["steps"] == [1, 1, 1]
        assert (started["config"]["num_frames"], started["config"]["fps"]) == (150, 16)
        chunks, messages = client.rest()
    assert messages == [
        {"type": "session.interaction.queued", "request_id": video, "event_id": "storm"},
        {"type": "session.done", "request_id": video, "chunks": 5, "stopped": False},
    ]
    told = [chunk.metadata for chunk in chunks]
    assert [item["kind"] for item in told] == ["media"] * 5
    assert [item["num_frames"] for item in told] == [33, 33, 33, 33, 18]
    for key in ("generation_chunk_index", "transport_chunk_index"):
        assert [item[key] for item in told] == list(range(5))
    storm = [index for index, item in enumerate(told) if item["started_event_ids"] == ["storm"]]
    assert len(storm) == 1
    for key in ("active_event_ids", "completed_event_ids"):
        assert [index for index, item in enumerate(told) if item[key] == ["storm"]] == storm
    frames = frames_of(data_of(chunks))
    assert len(frames) == 150
    for path in ("stream", "content"):
        assert (frames_of(http.get(f"/v1/videos/{video}/{path}").content) == frames).all()
    assert (played(f"{server.url}/v1/videos/{video}/hls/index.m3u8") == frames).all()


def test_first_media_comes_before_the_second_chunk_is_computed(
    server: Server, http: httpx.Client
) -> None:
    """The second chunk takes long enough to check that the first was sent before."""
    with realtime_client(server.url) as client:
        video = client.start(num_frames=66, steps=[60, 60, 60], max_lead_chunks=1)
        assert isinstance(client.hear(), Chunk)
        now = video_of(http, video)
        assert (now["status"], now["chunks_done"]) == ("in_progress", 1)
        assert now["progress"] < 75
        http.delete(f"/v1/videos/{video}")


def test_no_message_kills_the_connection(server: Server) -> None:
    with realtime_client(server.url) as client:
        for text, code, message in (
            ("{", "invalid_json", "is not valid JSON"),
            ("[]", "invalid_json", "got a JSON list, expected an object"),
            (b"\x00", "invalid_message", "binary"),
            (
                '{"type": "session.end"}',
                "invalid_message",
                "'session.end', expected one of: session",
            ),
            ('{"type": "session.strat"}', "invalid_message", "did you mean session.start?"),
            ('{"type": 5}', "invalid_message", "got type 5, expected one of: session.start, "),
            ("{}", "invalid_message", "got type None, expected one of: session.start, "),
            ('{"type": "session.ping", "x": 1}', "invalid_message", "unknown field `x`"),
            ('{"type": "session.stop"}', "no_session", "expected session.start first"),
            (interaction("a storm"), "no_session", "expected session.start first"),
            (interaction(" "), "invalid_message", "an empty prompt"),
            (interaction("x", transition_chunks=-1), "invalid_message", "expected 0 to 100"),
            (interaction("x", event_id=""), "invalid_message", "0 characters"),
            ('{"type": "session.interaction"}', "invalid_message", "interaction"),
            (interaction("x" * 200_000), "message_too_large", "expected at most 131072"),
            (start(prompt="x" * 5_000_000), "message_too_large", "expected at most 4194304"),
            (start(prompt=None), "invalid_value", "prompt"),
            (start(size="63x64"), "invalid_size", "got size 63x64"),
            (start(format="mp4"), "invalid_value", "expected m4s"),
            (start(model="sora"), "model_not_found", "one of: nano"),
            (start(nonsense=1), "invalid_value", "nonsense"),
            (start(max_lead_chunks=0), "invalid_value", "expected 1 to 32"),
            (start(pacing="slow"), "invalid_value", "expected media or reader"),
            (start(extra_params={"pyramid_num_stages": 2}), "invalid_value", "expected 3: "),
            (start(extra_params={"is_enable_stage2": False}), "invalid_value", "expected True"),
            (start(extra_params={"other": 1}), "invalid_value", "other"),
            (start(sampling_params=[1]), "invalid_value", "expected an object"),
            (
                start(image_reference={"image_url": "http://x/y.png"}),
                "invalid_value",
                "allowed-media",
            ),
            (
                '{"type": "session.resume", "session_id": "none"}',
                "not_found",
                "video 'none' not found",
            ),
        ):
            client.socket.send(text)
            answer = client.hear()
            assert isinstance(answer, dict)
            assert (answer["type"], answer["code"]) == ("error", code), answer
            assert message in answer["message"]
        assert client.ask("session.ping") == {"type": "session.pong"}
        client.start(num_frames=3)
        chunks, messages = client.rest()
        assert len(frames_of(data_of(chunks))) == 3
        assert messages[-1]["stopped"] is False


def interaction(prompt: str, **fields: Any) -> str:
    body = {"event": {"prompt": prompt}, **fields}
    return json.dumps({"type": "session.interaction", "interaction": body})


def start(**fields: Any) -> str:
    wanted: dict[str, Any] = {"type": "session.start", "prompt": "waves", "size": "64x64"}
    return json.dumps(wanted | fields)


def test_a_connection_has_one_session_at_a_time_and_several_one_after_another(
    server: Server, http: httpx.Client
) -> None:
    """The second session starts from an image."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    picture = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    with realtime_client(server.url) as client:
        first = client.start(**LONG)
        refused = client.ask("session.start", prompt="more")
        assert (refused["type"], refused["code"]) == ("error", "session_active")
        client.interact("a storm", event_id="one", transition_chunks=0)
        assert client.hear_text()["type"] == "session.interaction.queued"
        client.interact("a storm", event_id="one", transition_chunks=0)
        assert client.hear_text()["event_id"] == "one"
        client.interact("calm", event_id="one", transition_chunks=0)
        assert client.hear_text()["code"] == "event_id_conflict"
        queue = client.ask("queue.status")
        assert (queue["type"], queue["request_id"]) == ("queue.status", first)
        assert queue["phase"] in ("encoding", "queued", "denoising", "paused")
        assert queue["sessions_running"] + queue["sessions_waiting"] >= 1
        client.say("session.stop")
        chunks, messages = client.rest()
        done = messages[-1]
        assert (done["request_id"], done["stopped"], done["chunks"]) == (first, True, len(chunks))
        ended = video_of(http, first)
        assert ended["error"]["code"] == "cancelled"
        # A chunk that is stored while the session stops is kept, but not sent.
        assert ended["chunks_done"] - len(chunks) in (0, 1)
        second = client.start(
            video_params={"num_frames": 33}, image_reference={"image_url": picture}
        )
        assert second != first
        chunks, messages = client.rest()
        assert len(frames_of(data_of(chunks))) == 33
        assert messages[-1]["stopped"] is False


def test_a_session_that_is_stopped_has_all_that_was_made(
    server: Server, http: httpx.Client
) -> None:
    with realtime_client(server.url) as client:
        video = client.start(**LONG)
        chunks = [client.hear_chunk()]
        client.say("session.stop")
        rest, messages = client.rest()
    assert [chunk.metadata["generation_chunk_index"] for chunk in rest] == [
        number + 1 for number in range(len(rest))
    ]
    assert 1 <= len(rest) < 99
    assert messages[-1]["stopped"] is True
    content = http.get(f"/v1/videos/{video}/content").content
    assert (frames_of(data_of([*chunks, *rest])) == frames_of(content)).all()


def test_chunks_name_the_interactions_that_they_are_made_under() -> None:
    """A transition lasts for its chunks, unless another one starts during it."""
    session = RealtimeSession("a")
    switches = (PromptSwitch(2, "storm", 3), PromptSwitch(6, "calm"), PromptSwitch(7, "night", 0))
    for name, switch in zip(("one", "two", "three"), switches, strict=True):
        session.record_switch(name, switch)
    params = SamplingParams(switches=(*switches, PromptSwitch(8, "by another way")))
    assert [session.events_at(chunk, params) for chunk in range(1, 9)] == [
        ([], [], []),
        (["one"], ["one"], []),
        ([], ["one"], []),
        ([], ["one"], ["one"]),
        ([], [], []),
        (["two"], ["two"], []),
        (["three"], ["three"], ["three"]),
        ([], [], []),
    ]


def test_what_is_made_from_a_sessions_video_waits_for_no_reader() -> None:
    params = SamplingParams(num_frames=33)
    asked = VideoRequest(
        request_id="a", prompt="waves", params=params, max_lead_chunks=2, pacing="media"
    )
    longer = extension(asked, "b", body=ExtendVideo(video={"id": "a"}))
    for made in (remix(asked, "c", prompt="a storm"), longer):
        assert (made.max_lead_chunks, made.pacing) == (None, "reader")


def test_a_session_on_the_media_clock_stays_close_to_its_viewer(
    server: Server, http: httpx.Client
) -> None:
    """At one frame a second, none of its chunks is seen within this test."""
    with realtime_client(server.url) as client:
        client.say("session.start", prompt="waves", size="64x64", num_frames=330, fps=1,
                   pacing="media", max_lead_chunks=2)  # fmt: skip
        started = client.started()
        video, config = started["request_id"], started["config"]
        assert (config["pacing"], config["max_lead_chunks"]) == ("media", 2)
        assert [client.hear_chunk().metadata["generation_chunk_index"] for _ in range(2)] == [0, 1]
        assert wait_until(http, video, "paused")["chunks_done"] == 2
        switch = http.post(f"/v1/videos/{video}/prompt", json={"prompt": "a storm"}).json()
        assert switch["chunk"] in (2, 3)
        client.say("session.ping")
        assert client.hear() == {"type": "session.pong"}
        http.delete(f"/v1/videos/{video}")
        client.rest()


def test_a_session_waits_for_its_client_and_goes_on_where_it_was(
    server: Server, http: httpx.Client, finished: Any
) -> None:
    with realtime_client(server.url) as client:
        video = client.start(**LONG, max_lead_chunks=1)
        chunks = [client.hear_chunk()]
    made = wait_until(http, video, "paused")["chunks_done"]
    assert made < 100
    with realtime_client(server.url) as client:
        client.say("session.resume", session_id=video, from_chunk=made + 50)
        assert client.hear_text()["code"] == "invalid_value"
        client.say("session.resume", session_id=video, from_chunk=1, header=False)
        assert client.started()["from_chunk"] == 1
        rest = [client.hear_chunk() for _ in range(made)]
        assert rest[-1].metadata["generation_chunk_index"] == made, "it does not go on"
        client.say("session.stop")
        last, (done,) = client.rest()
        rest += last
        assert done == {
            "type": "session.done",
            "request_id": video,
            "chunks": len(rest),
            "stopped": True,
        }
        frames = frames_of(data_of([*chunks, *rest]))
        content = http.get(f"/v1/videos/{video}/content").content
        assert (frames == frames_of(content)).all()
        # A video can be read when it is over, and one that was not made in a session too.
        client.say("session.resume", session_id=video, from_chunk=1)
        assert client.started()["request_id"] == video
        assert [chunk.data for chunk in client.rest()[0]][1:] == [chunk.data for chunk in rest[1:]]
        client.say("session.resume", session_id=finished.id, from_chunk=1)
        assert client.started()["request_id"] == finished.id
        again, _ = client.rest()
        tail = http.get(f"/v1/videos/{finished.id}/stream?from_chunk=1").content
        assert data_of(again) == tail


def test_a_session_that_is_resumed_elsewhere_is_taken_from_the_first_connection(
    server: Server,
) -> None:
    with realtime_client(server.url) as old, realtime_client(server.url) as new:
        video = old.start(**LONG)
        first = old.hear()
        new.say("session.resume", session_id=video)
        assert new.started()["request_id"] == video
        with pytest.raises(ConnectionClosed) as closed:
            old.rest()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4409
        again = new.hear()
        assert again == first
        new.say("session.stop")
        new.rest()


def test_deleting_a_video_ends_its_session(server: Server, http: httpx.Client) -> None:
    with realtime_client(server.url) as client:
        video = client.start(**LONG)
        client.hear()
        http.delete(f"/v1/videos/{video}")
        _, messages = client.rest()
        assert messages[-1]["stopped"] is True
        assert client.ask("session.ping") == {"type": "session.pong"}


@pytest.mark.slow
def test_a_session_ends_when_its_client_stays_away(tmp_path: Path) -> None:
    flags = ("nano", "--device", "cpu", "--session-grace", "1")
    with (
        running_server(tmp_path / "data", *flags) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        with realtime_client(server.url) as client:
            video = client.start(**LONG, max_lead_chunks=32)
            chunks = [client.hear_chunk()]
            going = time.monotonic()
        ended = wait_until(http, video, "failed")
        assert time.monotonic() - going > 1
        assert ended["chunks_done"] < 100
        assert ended["error"]["code"] == "cancelled"
        with realtime_client(server.url) as client:  # what was made is kept
            client.say("session.resume", session_id=video)
            client.started()
            again, messages = client.rest()
            assert again[: len(chunks)] == chunks
            assert messages[-1]["stopped"] is True


@pytest.mark.slow
def test_a_session_can_be_resumed_when_the_server_was_killed(tmp_path: Path) -> None:
    """One of two sessions is resumed. The other one's client does not return, and it ends."""
    folder = tmp_path / "data"
    flags = ("nano", "--device", "cpu", "--batch-invariant", "--session-grace", "5")
    with (
        running_server(folder, *flags) as server,
        realtime_client(server.url) as other,
        realtime_client(server.url) as client,
    ):
        lost = other.start(**LONG)
        video = client.start(num_frames=132, seed=5)
        chunks = [client.hear_chunk()]
        server.kill()
    with (
        running_server(folder, *flags) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
        realtime_client(server.url) as client,
    ):
        client.say("session.resume", session_id=video, from_chunk=1, header=False)
        client.started()
        rest, messages = client.rest()
        assert messages[-1]["stopped"] is False
        body = {"prompt": "waves", "size": "64x64", "num_frames": 132, "seed": 5}
        whole = http.post("/v1/videos/sync", json=body).content
        assert (frames_of(data_of([*chunks, *rest])) == frames_of(whole)).all()
        assert wait_until(http, lost, "failed")["error"]["code"] == "cancelled"
        assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.alone
def test_a_connection_that_says_nothing_is_closed(server: Server) -> None:
    started = time.monotonic()
    with realtime_client(server.url) as client:
        client.say("session.ping")
        assert client.hear_text() == {"type": "session.pong"}
        answer = client.hear_text()
        assert answer["code"] == "timeout"
        assert time.monotonic() - started >= 10
        with pytest.raises(ConnectionClosed) as closed:
            client.hear()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


@pytest.mark.slow
def test_a_server_that_is_to_end_does_not_wait_for_its_streams(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    flags = ("nano", "--device", "cpu", "--drain-timeout", "3600")
    with (
        running_server(folder, *flags) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
        realtime_client(server.url) as client,
    ):
        video = client.start(**LONG)
        with http.stream("GET", f"/v1/videos/{video}/events") as answer:
            events = events_in(answer.iter_lines())
            while next(events).name != "video.chunk":
                pass
            assert server.stop() == 0
            assert all(event.name != "video.cancelled" for event in events)
        with pytest.raises(ConnectionClosed) as closed:
            client.rest()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    with running_server(folder, *flags) as server, realtime_client(server.url) as client:
        client.say("session.resume", session_id=video)
        client.started()
        assert isinstance(client.hear(), Chunk)
        client.say("session.stop")
        client.rest()
