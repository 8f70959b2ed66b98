"""The video API through OpenAI's own client, unchanged, against a server as users start it."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image

from tests.support.api import SHORT, error_of, frames_of, openai, wait_until_ready
from tests.support.server import running_server


def test_a_video_is_created_polled_and_downloaded(client: openai.OpenAI, finished: Any) -> None:
    assert (finished.object, finished.progress, finished.error) == ("video", 100, None)
    assert (finished.size, finished.model, finished.seconds) == ("64x64", "nano", "1.66667")
    assert finished.completed_at >= finished.created_at
    assert client.videos.retrieve(finished.id) == finished
    data = client.videos.download_content(finished.id).read()
    assert frames_of(data).shape == (40, 64, 64, 3)


def test_a_video_says_where_its_time_went(http: httpx.Client, finished: Any) -> None:
    answers = [http.get(f"/v1/videos/{finished.id}{part}") for part in ("", "/content")]
    spent = {
        name: float(text.removeprefix("dur=")) / 1000
        for name, text in (
            entry.split(";") for entry in answers[0].headers["server-timing"].split(", ")
        )
    }
    assert answers[1].headers["server-timing"] == answers[0].headers["server-timing"]
    assert list(spent) == ["queue", "encode", "denoise", "decode", "total"]
    assert min(spent["encode"], spent["denoise"], spent["decode"]) > 0
    assert spent["queue"] + spent["encode"] + spent["denoise"] < spent["total"]
    assert answers[0].json()["inference_time_s"] == pytest.approx(spent["total"], abs=0.001)


def test_a_video_in_the_making_has_no_inference_time(http: httpx.Client) -> None:
    body = {"prompt": "waves", "num_frames": 3300, "size": "64x64"}
    made = http.post("/v1/videos", json=body)
    assert made.json()["inference_time_s"] is None
    assert "server-timing" not in made.headers
    ended = http.post(f"/v1/videos/{made.json()['id']}/cancel").json()
    assert ended["inference_time_s"] >= 0


def test_pictures_of_a_video_can_be_had(client: openai.OpenAI, finished: Any) -> None:
    first = Image.open(
        io.BytesIO(client.videos.download_content(finished.id, variant="thumbnail").read())
    )
    sheet = Image.open(
        io.BytesIO(client.videos.download_content(finished.id, variant="spritesheet").read())
    )
    assert (first.format, first.size) == ("WEBP", (64, 64))
    assert (sheet.format, sheet.size) == ("JPEG", (800, 640))


def test_content_is_served_in_ranges(http: httpx.Client, finished: Any) -> None:
    path = f"/v1/videos/{finished.id}/content"
    whole = http.get(path)
    part = http.get(path, headers={"range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(whole.content)}"


def test_a_stream_has_the_frames_of_the_file(http: httpx.Client, finished: Any) -> None:
    streamed = frames_of(http.get(f"/v1/videos/{finished.id}/stream").content)
    assert (streamed == frames_of(http.get(f"/v1/videos/{finished.id}/content").content)).all()
    tail = frames_of(http.get(f"/v1/videos/{finished.id}/stream?from_chunk=1").content)
    assert (tail == streamed[33:]).all()


def test_a_stream_gives_each_chunk_as_soon_as_it_is_made(http: httpx.Client) -> None:
    body = {"prompt": "waves", "num_frames": 3300, "size": "64x64"}
    video = http.post("/v1/videos", json=body).json()
    seen = []
    with http.stream("GET", f"/v1/videos/{video['id']}/stream") as answer:
        for _ in answer.iter_raw():
            now = http.get(f"/v1/videos/{video['id']}").json()
            seen.append((now["status"], now["chunks_done"], now["progress"]))
            if len(seen) == 2:
                break
    assert seen[0][0] == "in_progress"
    assert 1 <= seen[0][1] < 100
    assert 0 < seen[0][2] < 100
    assert http.delete(f"/v1/videos/{video['id']}").json()["deleted"] is True


def test_json_and_multipart_make_the_same_video(http: httpx.Client, finished: Any) -> None:
    fields = {"prompt": "a dog runs", "num_frames": 40, "seed": 3, "size": "64x64"}
    by_json = http.post("/v1/videos/sync", json=fields)
    form = {name: str(value) for name, value in fields.items()} | {"steps[]": ["2", "2", "2"]}
    by_form = http.post("/v1/videos/sync", data=form)
    ours = http.get(f"/v1/videos/{finished.id}/content")
    assert by_json.content == by_form.content == ours.content
    assert http.get(f"/v1/videos/{by_json.headers['x-video-id']}").json()["status"] == "completed"


def test_an_image_and_a_video_are_references(
    http: httpx.Client, client: openai.OpenAI, finished: Any
) -> None:
    still = client.videos.create_and_poll(
        prompt="it moves", input_reference=("red.png", picture("red")), **SHORT
    )
    assert still.status == "completed"
    data = client.videos.download_content(finished.id).read()
    onward = client.videos.create_and_poll(
        prompt="it moves", input_reference=("dog.mp4", data, "video/mp4"), **SHORT
    )
    assert onward.status == "completed"
    fields = {"prompt": "it moves", "video[id]": finished.id, "seed": "3"}
    edit = http.post("/v1/videos/edits", data=fields | {"num_frames": "40", "size": "64x64"}).json()
    assert client.videos.poll(edit["id"], poll_interval_ms=100).status == "completed"
    contents = [client.videos.download_content(name).read() for name in (edit["id"], onward.id)]
    assert contents[0] == contents[1]


def test_a_remix_keeps_all_but_the_prompt(client: openai.OpenAI, finished: Any) -> None:
    same = client.videos.remix(finished.id, prompt="a dog runs")
    other = client.videos.remix(finished.id, prompt="a cat sleeps")
    assert same.remixed_from_video_id == finished.id
    contents = [
        client.videos.download_content(client.videos.poll(video.id, poll_interval_ms=100).id).read()
        for video in (finished, same, other)
    ]
    assert contents[0] == contents[1] != contents[2]


def test_an_extension_is_the_longer_video(
    http: httpx.Client, client: openai.OpenAI, finished: Any
) -> None:
    """The frames that were cut from the first video's last chunk are delivered, without a jump."""
    fields: dict[str, Any] = {"prompt": "a dog runs", "seconds": "2", "video[id]": finished.id}
    longer = http.post("/v1/videos/extensions", data=fields).json()
    assert longer["seconds"] == "3.66667"
    assert client.videos.poll(longer["id"], poll_interval_ms=100).status == "completed"
    got = frames_of(client.videos.download_content(longer["id"]).read())
    fields = {"prompt": "a dog runs", "num_frames": 88, "seed": 3, "size": "64x64"}
    whole = frames_of(http.post("/v1/videos/sync", json=fields).content)
    assert got.shape == whole.shape
    assert (got == whole).all()


def test_an_extension_by_what_was_made_already_is_refused(
    http: httpx.Client, finished: Any
) -> None:
    """40 frames are in two chunks, whose 66 frames were all generated."""
    fields = {"prompt": "a cat", "seconds": "1", "video[id]": finished.id}
    refused = http.post("/v1/videos/extensions", data=fields)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "seconds")
    assert "expected at least 1.12" in error_of(refused)["message"]


def test_what_has_no_state_is_gone_on_with_from_its_frames(
    http: httpx.Client, client: openai.OpenAI, finished: Any
) -> None:
    """An uploaded video, and a cancelled one: the result equals that of an edit."""
    data = client.videos.download_content(finished.id).read()
    fields = {"prompt": "it moves", "seconds": "1", "seed": "3", "size": "64x64"}
    files = {"video": ("dog.mp4", data, "video/mp4")}
    onward = http.post("/v1/videos/extensions", data=fields, files=files).json()
    assert (onward["relation"], onward["parent_video_id"]) == ("continuation", None)
    assert onward["num_frames"] == 24
    edited = http.post("/v1/videos/edits", data=fields | {"video[id]": finished.id}).json()
    assert (edited["relation"], edited["parent_video_id"]) == ("edit", finished.id)
    body = {"prompt": "waves", "num_frames": 3300, "size": "64x64", "seed": 3}
    cancelled = http.post("/v1/videos", json=body).json()["id"]
    with http.stream("GET", f"/v1/videos/{cancelled}/stream") as answer:
        next(answer.iter_raw())
    http.post(f"/v1/videos/{cancelled}/cancel")
    rest = http.post(
        "/v1/videos/extensions", json={"video": {"id": cancelled}, "seconds": 1}
    ).json()
    assert (rest["relation"], rest["parent_video_id"]) == ("continuation", cancelled)
    for video in (onward, edited, rest):
        assert client.videos.poll(video["id"], poll_interval_ms=100).status == "completed"
    contents = [client.videos.download_content(item["id"]).read() for item in (onward, edited)]
    assert contents[0] == contents[1]


def test_a_size_that_no_model_makes_is_scaled_and_cut(client: openai.OpenAI) -> None:
    fit = SHORT["extra_body"] | {"size_policy": "fit"}
    even: Any = "90x150"
    video = client.videos.create_and_poll(
        prompt="a dog runs", poll_interval_ms=100, size=even, extra_body=fit
    )
    assert (video.status, video.size) == ("completed", "90x150")
    frames = frames_of(client.videos.download_content(video.id).read())
    assert frames.shape == (40, 150, 90, 3)
    odd: Any = "91x150"
    with pytest.raises(openai.BadRequestError, match="expected WIDTHxHEIGHT with even sides"):
        client.videos.create(prompt="x", size=odd, extra_body=fit)


def test_an_order_that_is_repeated_is_made_once(http: httpx.Client) -> None:
    def order(key: str, **fields: Any) -> httpx.Response:
        form = {"prompt": "waves", "num_frames": "33", "size": "64x64"} | fields
        files = {"input_reference": ("red.png", picture("red"), "image/png")}
        return http.post("/v1/videos", data=form, files=files, headers={"idempotency-key": key})

    first = order("a")
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(order, ["a", "a", "b", "b"]))
    assert first.status_code == 200
    ids = [answer.json()["id"] for answer in again]
    assert ids[:2] == [first.json()["id"]] * 2
    assert ids[2] == ids[3] != ids[0]
    other = order("a", prompt="other waves")
    assert (other.status_code, error_of(other)["code"]) == (400, "idempotency_mismatch")
    assert error_of(order("k" * 256))["code"] == "invalid_idempotency_key"
    for name in set(ids):
        http.delete(f"/v1/videos/{name}")


def picture(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_pages_of_the_list_hold_every_video_once(client: openai.OpenAI, finished: Any) -> None:
    ids = [video.id for video in client.videos.list(limit=2)]
    assert len(ids) == len(set(ids)) > 2
    assert finished.id in ids
    assert [video.id for video in client.videos.list(limit=3, order="asc")] == ids[::-1]


def test_a_cancelled_video_keeps_what_was_made(http: httpx.Client) -> None:
    body = {"prompt": "waves", "num_frames": 3300, "size": "64x64"}
    video = http.post("/v1/videos", json=body).json()["id"]
    with http.stream("GET", f"/v1/videos/{video}/stream") as answer:
        next(answer.iter_raw())
    cancelled = http.post(f"/v1/videos/{video}/cancel").json()
    assert (cancelled["status"], cancelled["error"]["code"]) == ("failed", "cancelled")
    made = frames_of(http.get(f"/v1/videos/{video}/content").content)
    assert len(made) == 33 * cancelled["chunks_done"] > 0


def test_a_deleted_video_is_gone(client: openai.OpenAI) -> None:
    video = client.videos.create(prompt="waves", **SHORT)
    deleted = client.videos.delete(video.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (video.id, "video.deleted", True)
    for call in (client.videos.retrieve, client.videos.delete, client.videos.download_content):
        with pytest.raises(openai.NotFoundError, match="not found"):
            call(video.id)


def test_a_prompt_is_switched_while_the_video_is_made(http: httpx.Client) -> None:
    body = {"prompt": "waves", "num_frames": 3300, "size": "64x64"}
    video = http.post("/v1/videos", json=body).json()["id"]
    answer = http.post(f"/v1/videos/{video}/prompt", json={"prompt": "a storm"}).json()
    assert answer["prompt"] == "a storm"
    assert answer["frame"] == 33 * answer["chunk"] > 0
    http.delete(f"/v1/videos/{video}")


def test_an_adapter_is_named_by_the_request(http: httpx.Client, style: Path) -> None:
    body = {"prompt": "a dog", "num_frames": 5, "size": "64x64", "seed": 3}
    plain, weak, strong = (
        frames_of(http.post("/v1/videos/sync", json=body | lora).content)
        for lora in ({}, {"lora": "style", "lora_scale": 0}, {"lora": "style"})
    )
    assert np.array_equal(plain, weak)
    assert not np.array_equal(plain, strong)
    assert style.name not in http.get("/v1/videos").text


@pytest.mark.parametrize(
    ("body", "status", "code", "param", "message"),
    [
        ({}, 400, "invalid_value", "prompt", "missing required field `prompt`"),
        ({"prompt": 3}, 400, "invalid_value", "prompt", "expected `str`, got `int`"),
        ({"prompt": "x", "nonsense": 1}, 400, "invalid_value", "nonsense", "unknown field"),
        (
            {"prompt": "x", "size": "720x1280"},
            400,
            "invalid_size",
            "size",
            "such as 704x1280 or 768",
        ),
        ({"prompt": "x", "size": "big"}, 400, "invalid_size", "size", "got size 'big', expected W"),
        ({"prompt": "x", "model": "sora-2"}, 404, "model_not_found", "model", "one of: nano"),
        (
            {"prompt": "x", "seconds": 0},
            400,
            "invalid_value",
            "seconds",
            "expected more than 0 seconds",
        ),
        ({"prompt": "x", "seconds": 2, "num_frames": 9}, 400, "invalid_value", "seconds", "both"),
        ({"prompt": "x", "guidance_scale": 9}, 400, "invalid_value", "guidance_scale", "at most 1"),
        (
            {"prompt": "x", "fps": 500},
            400,
            "invalid_value",
            "fps",
            "got fps 500, expected 1 to 120",
        ),
        *(
            ({"prompt": "x", "fps": fps}, 400, "invalid_value", "fps", "an integer (1 to 120)")
            for fps in (29.97, "23.976", True, [24])
        ),
        (
            {"prompt": "x", "steps": "1,1,1"},
            400,
            "invalid_value",
            "steps",
            "got steps '1,1,1', expected a list of numbers (1 to 1000)",
        ),
        ({"prompt": "x", "fps": "500"}, 400, "invalid_value", "fps", "'500', expected 1 to 120"),
        ({"prompt": "x", "modle": 1}, 400, "invalid_value", "modle", "did you mean model?"),
        (
            {"prompt": "x", "zero_steps": -1},
            400,
            "invalid_value",
            "zero_steps",
            "expected 0 to 1000",
        ),
        ({"prompt": "x", "lora": "/etc"}, 404, "lora_not_found", "lora", "expected one of: style"),
        ({"prompt": "x", "steps": [1]}, 400, "invalid_value", "steps", "got 1 step counts"),
        ({"prompt": "\ud800"}, 400, "invalid_json", None, "not valid JSON"),
    ],
)
def test_bad_fields_are_refused_by_name(
    http: httpx.Client, body: dict[str, Any], status: int, code: str, param: str, message: str
) -> None:
    data = json.dumps(body).encode()
    answer = http.post("/v1/videos", content=data, headers={"content-type": "application/json"})
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert message in error["message"]
    assert answer.headers["x-should-retry"] == "false"


def test_bad_bodies_and_routes_have_the_same_envelope(http: httpx.Client) -> None:
    plain = {"content-type": "text/plain"}
    for answer, status in (
        (http.post("/v1/videos", content=b"x", headers=plain), 415),
        (http.post("/v1/videos", content=b"[]"), 400),
        (http.post("/v1/videos", content=b"{"), 400),
        (http.post("/v1/videos", files={"other": b"x"}, data={"prompt": "x"}), 400),
        (http.post("/v1/videos", files={"input_reference": b"x"}, data={"prompt": "x"}), 400),
        (http.get("/v1/videos/none"), 404),
        (http.get("/v1/videos?limit=0"), 400),
        (http.get("/v1/videos?after=none"), 404),
        (http.get("/nothing"), 404),
        (http.put("/v1/videos"), 405),
        (http.post("/v1/videos/characters"), 501),
    ):
        assert answer.status_code == status, answer.text
        assert error_of(answer)["message"]


def test_the_server_says_what_it_serves(http: httpx.Client, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["nano", "style"]
    assert client.models.retrieve("nano").object == "model"
    with pytest.raises(openai.NotFoundError, match="expected one of: nano, style"):
        client.models.retrieve("other")
    wait_until_ready(http)
    assert http.get("/health").json() == {
        "status": "ok",
        "workers": {"nano": 1},
        "failed_workers": {"nano": 0},
        "errors": {},
    }
    assert http.post("/ping").json() == http.get("/ping").json() == http.get("/health").json()
    assert http.get("/version").json()["version"]


@pytest.mark.slow
def test_videos_outlive_the_server(tmp_path: Path) -> None:
    """The server is killed during one video, with another one complete and a third one waiting."""
    folder = tmp_path / "data"
    flags = ("nano", "--device", "cpu", "--batch-invariant")
    bodies = [
        {"prompt": f"video {index}", "num_frames": frames, "size": "64x64", "seed": index}
        for index, frames in enumerate((33, 198, 66))
    ]
    with (
        running_server(folder, *flags) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        names = [http.post("/v1/videos", json=body).json()["id"] for body in bodies]
        with http.stream("GET", f"/v1/videos/{names[1]}/stream") as answer:
            next(answer.iter_raw())
        server.kill()
    with (
        running_server(folder, *flags) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        for name, body in zip(names, bodies, strict=True):
            got = http.get(f"/v1/videos/{name}/stream").content
            again = http.post("/v1/videos/sync", json=body)
            assert (frames_of(got) == frames_of(again.content)).all()
            assert http.get(f"/v1/videos/{name}").json()["status"] == "completed"
        assert server.stop() == 0
