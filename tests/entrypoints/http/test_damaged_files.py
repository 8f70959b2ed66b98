"""Stored data that is missing or damaged: every reader gets an error, never wrong frames."""

import os
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from helios_serve.store.files import DamagedFileError
from tests.support.api import error_of, frames_of
from tests.support.realtime import realtime_client
from tests.support.server import Server

BODY = {"prompt": "waves", "size": "64x64", "num_frames": 99, "seed": 1, "steps": [1, 1, 1]}


def make(http: httpx.Client) -> str:
    answer = http.post("/v1/videos/sync", json=BODY)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-video-id"])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)


def check_refused(answer: httpx.Response, server: Server, code: str = "damaged") -> None:
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (500, code)
    assert str(server.folder) not in error["message"]
    assert "/" not in error["message"]


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_no_reader_gets_other_frames(http: httpx.Client, server: Server, damage: Any) -> None:
    video = make(http)
    (server.folder / f"finished/{video}.mp4").unlink()
    damage(server.folder / f"segments/{video}/00001.m4s")
    url = f"/v1/videos/{video}"
    for path in ("content", "content?variant=thumbnail", "stream", "stream?from_chunk=1"):
        check_refused(http.get(f"{url}/{path}"), server)
    playlist = http.get(f"{url}/hls/index.m3u8").text
    segments = [line for line in playlist.splitlines() if line and not line.startswith("#")]
    answers = [http.get(f"{url}/hls/{name}") for name in segments]
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    check_refused(answers[1], server)
    assert http.get(f"{url}/stream?from_chunk=2").status_code == 200
    with realtime_client(server.url) as client:
        client.say("session.resume", session_id=video)
        client.started()
        chunks, messages = client.rest()
    assert len(chunks) == 1
    assert messages[0]["code"] == "damaged"
    assert messages[-1]["type"] == "session.done"
    assert http.delete(url).status_code == 200


def test_a_damaged_snapshot_stops_what_continues_the_video(
    http: httpx.Client, server: Server
) -> None:
    video = make(http)
    flip(server.folder / f"snapshots/{video}/00003.msgpack")
    fork = http.post(f"/v1/videos/{video}/fork", json={"prompts": ["x"], "seconds": 1})
    check_refused(fork, server)
    extension = {"video": {"id": video}, "seconds": 1, "prompt": "x"}
    check_refused(http.post("/v1/videos/extensions", json=extension), server)
    assert len(frames_of(http.get(f"/v1/videos/{video}/content").content)) == 99
    assert http.delete(f"/v1/videos/{video}").status_code == 200


def test_a_damaged_upload_is_not_used(http: httpx.Client, server: Server) -> None:
    picture = b"x" * 300
    file = http.post("/v1/files", data={"purpose": "vision"}, files={"file": ("a", picture)}).json()
    (server.folder / f"files/{file['id']}").write_bytes(picture[:100])
    check_refused(http.get(f"/v1/files/{file['id']}/content"), server)
    body = BODY | {"input_reference": {"file_id": file["id"]}}
    check_refused(http.post("/v1/videos", json=body), server)
    (server.folder / f"files/{file['id']}").unlink()
    check_refused(http.get(f"/v1/files/{file['id']}/content"), server)
    assert http.delete(f"/v1/files/{file['id']}").status_code == 200


def test_messages_name_no_path_of_the_server(http: httpx.Client, server: Server) -> None:
    """When a folder cannot be written, on all code paths that write to it."""
    before = http.get("/v1/videos").json()
    folders = [server.folder / name for name in ("files", "segments", "inputs", "snapshots")]
    renamed = [(folder, folder.with_name(f"{folder.name}-away")) for folder in folders]
    for folder, away in renamed:
        os.rename(folder, away)
        folder.write_bytes(b"a file where a folder was")
    try:
        answers = [
            http.post("/v1/files", data={"purpose": "batch"}, files={"file": b"x"}),
            http.post(
                "/v1/videos",
                json=BODY | {"input_reference": {"image_url": f"data:image/bmp;base64,{BITMAP}"}},
            ),
            http.post("/v1/videos", json=BODY),
        ]
    finally:
        for folder, away in renamed:
            folder.unlink()
            os.rename(away, folder)
    for answer in answers:
        assert answer.status_code == 507, answer.text
        message = error_of(answer)["message"]
        assert str(server.folder) not in message
        assert "Not a directory" in message
    assert http.get("/v1/videos").json() == before, "one was accepted"
    assert http.post("/v1/videos/sync", json=BODY).status_code == 200


BITMAP = (
    "Qk1GAAAAAAAAADYAAAAoAAAAAgAAAAIAAAABABgAAAAAABAAAAATCwAAEwsAAAAAAAAAAAAA////AAAAAAAA////AAAA"
    "AAA="
)


def test_a_public_message_has_the_last_parts_of_paths() -> None:
    error = DamagedFileError("/data/segments/video_1/00001.m4s is damaged: got 3 of 4 bytes")
    assert str(error).startswith("/data/")
    assert error.public == "stored data is missing or damaged"
