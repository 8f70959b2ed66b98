"""Files and batches through OpenAI's own client."""

import io
import json
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image

from tests.support.api import error_of, frames_of, openai
from tests.support.broken_media import picture, sound
from tests.support.picture_files import encoded
from tests.support.server import Server, running_server
from tests.support.video_files import counted, video

BODY = {"prompt": "waves", "num_frames": 33, "size": "64x64"}


def line(custom_id: str, **fields: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/videos", "body": BODY | fields}


def upload(client: openai.OpenAI, *lines: Any) -> str:
    data = "\n".join(item if isinstance(item, str) else json.dumps(item) for item in lines)
    return client.files.create(file=("lines.jsonl", data.encode()), purpose="batch").id


def start(client: openai.OpenAI, *lines: Any) -> Any:
    return client.batches.create(
        input_file_id=upload(client, *lines),
        endpoint="/v1/videos",
        completion_window="24h",
        metadata={"for": "test"},
    )


def ended(client: openai.OpenAI, batch_id: str) -> Any:
    deadline = time.monotonic() + 60
    while (batch := client.batches.retrieve(batch_id)).status in (
        "validating",
        "in_progress",
        "finalizing",
        "cancelling",
    ):
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
    return batch


def completed(client: openai.OpenAI, batch_id: str) -> int:
    """Return the number of completed lines."""
    counts = client.batches.retrieve(batch_id).request_counts
    assert counts is not None
    return counts.completed


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(text) for text in client.files.content(file_id).read().splitlines()]


def test_files_are_kept_listed_and_deleted(client: openai.OpenAI) -> None:
    first = client.files.create(file=("../a.jsonl", b"one"), purpose="batch")
    second = client.files.create(file=("b.png", io.BytesIO(b"two")), purpose="user_data")
    assert (first.filename, first.bytes, first.object) == ("a.jsonl", 3, "file")
    assert client.files.retrieve(first.id) == first
    assert client.files.wait_for_processing(second.id) == second
    assert client.files.content(second.id).read() == b"two"
    assert [file.id for file in client.files.list(limit=1)][:2] == [second.id, first.id]
    assert second.id not in [file.id for file in client.files.list(purpose="batch")]
    assert client.files.delete(first.id).deleted
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.files.content(first.id)


def test_a_batch_makes_a_video_of_each_line(client: openai.OpenAI) -> None:
    batch = start(
        client,
        line("sea", seed=1),
        "",
        line("too large", size="100x100"),
        line("two chunks", seed=2, num_frames=40),
    )
    assert (batch.object, batch.metadata) == ("batch", {"for": "test"})
    assert batch.expires_at - batch.created_at == 24 * 3600
    done = ended(client, batch.id)
    assert done.status == "completed"
    assert done.in_progress_at <= done.finalizing_at <= done.completed_at
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
    sea, chunks = lines_of(client, done.output_file_id)
    assert (sea["custom_id"], chunks["custom_id"]) == ("sea", "two chunks")
    video = chunks["response"]["body"]
    assert (chunks["response"]["status_code"], video["status"]) == (200, "completed")
    assert len(frames_of(client.videos.download_content(video["id"]).read())) == 40
    (refused,) = lines_of(client, done.error_file_id)
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("too large", 400)
    assert refused["error"]["code"] == "invalid_size"
    assert batch.id in [item.id for item in client.batches.list(limit=1)]


def test_a_bad_reference_ends_its_line_only(client: openai.OpenAI) -> None:
    """Images and videos that cannot be read, each with an error that names the fault."""
    whole = video(counted(), muxer={"movflags": "faststart"})
    nan = encoded(Image.fromarray(np.full((64, 64), np.nan, np.float32)), "TIFF")
    references = {
        "cut picture": ("image_url", picture()[:3000], "got image file is truncated"),
        "no range": ("image_url", nan, "got pixels that are NaN or infinite"),
        "cut video": ("video_url", whole[:-10], "this one was cut off"),
        "song": ("video_url", sound(), "got a file without a video track"),
    }
    lines = [
        line(name, input_reference={kind: f"data:a/b;base64,{b64encode(data).decode()}"})
        for name, (kind, data, _) in references.items()
    ]
    done = ended(client, start(client, line("first"), *lines, line("last")).id)
    assert done.status == "completed"
    made = lines_of(client, done.output_file_id)
    assert [item["custom_id"] for item in made] == ["first", "last"]
    refused = {item["custom_id"]: item for item in lines_of(client, done.error_file_id)}
    assert refused.keys() == references.keys()
    for name, (_, _, message) in references.items():
        assert refused[name]["response"]["status_code"] == 400
        assert message in refused[name]["error"]["message"]


@pytest.mark.parametrize(
    ("lines", "code", "at", "message"),
    [
        ([line("a"), "nonsense"], "invalid_json_line", 2, "invalid request: JSON is malformed"),
        (
            [line("a"), line("a")],
            "duplicate_custom_id",
            2,
            "got duplicate custom_id 'a', first used in line 1",
        ),
        ([line("a") | {"url": "/v1/images"}], "invalid_url", 1, "expected POST /v1/videos"),
        ([""], "empty_file", None, "at least one"),
    ],
)
def test_a_bad_file_fails_its_batch(
    client: openai.OpenAI, lines: list[Any], code: str, at: int | None, message: str
) -> None:
    done = ended(client, start(client, *lines).id)
    assert (done.status, done.output_file_id) == ("failed", None)
    (error,) = done.errors.data
    assert (error.code, error.line) == (code, at)
    assert message in error.message


def test_a_cancelled_batch_keeps_what_was_made(client: openai.OpenAI) -> None:
    lines = [line("short")] + [line(f"long {index}", num_frames=33 * 300) for index in range(3)]
    batch = start(client, *lines)
    deadline = time.monotonic() + 60
    while completed(client, batch.id) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = ended(client, batch.id)
    assert (done.status, done.request_counts.completed) == ("cancelled", 1)
    (made,) = lines_of(client, done.output_file_id)
    assert made["custom_id"] == "short"
    assert {video.status for video in client.videos.list()} <= {"completed", "failed"}


def test_batches_that_cannot_be_made_are_refused(http: httpx.Client, client: openai.OpenAI) -> None:
    good = {"input_file_id": upload(client, line("a"))}
    good |= {"endpoint": "/v1/videos", "completion_window": "24h"}
    picture = client.files.create(file=("b.png", b"two"), purpose="vision").id
    for change, status, param in (
        ({"input_file_id": "file-none"}, 404, None),
        ({"input_file_id": picture}, 400, "input_file_id"),
        ({"endpoint": "/v1/images"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"metadata": {"k" * 65: "v"}}, 400, "metadata"),
    ):
        answer = http.post("/v1/batches", json=good | change)
        assert answer.status_code == status, answer.text
        assert error_of(answer)["param"] == param, answer.text
    assert http.get("/v1/batches/none").status_code == 404
    assert http.post("/v1/files", data={"purpose": "batch"}).status_code == 400
    answer = http.post("/v1/files", data={"purpose": "other"}, files={"file": b"x"})
    assert error_of(answer)["param"] == "purpose"


@pytest.mark.slow
def test_a_batch_outlives_the_server(tmp_path: Path) -> None:
    """The server is killed after some lines. In the end, each line was generated once."""
    folder = tmp_path / "data"
    names = [f"line {index}" for index in range(12)]

    def client_of(server: Server) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")

    with running_server(folder, "nano", "--device", "cpu") as server, client_of(server) as client:
        batch = start(client, *(line(name, seed=index) for index, name in enumerate(names)))
        deadline = time.monotonic() + 60
        while completed(client, batch.id) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        server.kill()
    with running_server(folder, "nano", "--device", "cpu") as server, client_of(server) as client:
        done = ended(client, batch.id)
        assert (done.status, done.request_counts.completed) == ("completed", len(names))
        lines = lines_of(client, done.output_file_id)
        assert [item["custom_id"] for item in lines] == names
        assert len(list(client.videos.list())) == len(names)
