"""A real server, and malicious clients."""

import base64
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2 as httpx
import psutil
import pytest

from helios_serve.store.checked_files import write_checked
from tests.support.api import wait_until_ready
from tests.support.broken_media import corpus, long_movie, movie, picture
from tests.support.server import Server

FIELDS = {"prompt": "a dog runs", "num_frames": 33, "size": "64x64", "seed": 3}
MARKER = "xyzzy-secret"


def refused(answer: httpx.Response, param: str | None, status: int = 400) -> str:
    """Return the message of an error response, and check that it names the field."""
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), answer.text
    assert answer.headers["x-request-id"]
    assert error.keys() == {"message", "type", "param", "code"}
    message: str = error["message"]
    return message


def upload(http: httpx.Client, data: bytes, kind: str = "", field: str = "") -> httpx.Response:
    file = ("mine", data, kind) if kind else ("mine", data)
    path = "/v1/videos/edits" if field == "video" else "/v1/videos"
    fields = {name: str(value) for name, value in FIELDS.items()}
    return http.post(path, data=fields, files={field or "input_reference": file})


def decoders(server: Server) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(server.process.pid).children():
        with suppress(psutil.NoSuchProcess):  # killed, and not reaped yet
            if "decoder_process" in " ".join(child.cmdline()):
                found.append(child)
    return found


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_broken_media_is_refused_by_the_field_it_came_in(
    http: httpx.Client, server: Server
) -> None:
    """At once: none takes as long as a decoder may."""
    for name, data in corpus().items():
        kind = name.split()[0]
        reference = {f"{'video' if kind in ('mp4', 'mkv') else 'image'}_url": data_url(data)}
        answers = [
            (upload(http, data), "mine", "input_reference"),
            (upload(http, data, field="video"), "mine", "video"),
            (
                http.post("/v1/videos", json=FIELDS | {"input_reference": reference}),
                "_url",
                "input_reference",
            ),
        ]
        for answer, told, param in answers:
            message = refused(answer, param)
            assert f"{told}: got " in message, name
            assert "takes more than" not in message, name
    wait_until_ready(http)
    assert not list((server.folder / "incoming").iterdir())


@pytest.mark.parametrize("container", ["mp4", "matroska", "webm", "avi"])
def test_containers_that_browsers_and_cameras_make_are_read(
    http: httpx.Client, container: str
) -> None:
    codec = {"webm": "libvpx", "avi": "mpeg4"}.get(container, "libx264")
    made = upload(http, movie(container, codec))
    assert made.status_code == 200, made.text
    http.delete(f"/v1/videos/{made.json()['id']}")


def reference_of(server: Server, http: httpx.Client, made: httpx.Response) -> bytes:
    """Return the stored frames of a reference, without waiting for the video."""
    assert made.status_code == 200, made.text
    video: str = made.json()["id"]
    stored = (server.folder / "inputs" / video / "media.msgpack").read_bytes()
    http.delete(f"/v1/videos/{video}")
    return stored


def test_an_image_may_come_in_many_ways_and_is_the_same(http: httpx.Client, server: Server) -> None:
    data = picture()
    url = data_url(data)
    text = {name: str(value) for name, value in FIELDS.items()}
    forms: list[dict[str, Any]] = [
        {"data": text, "files": {"input_reference": ("mine.png", data, "image/png")}},
        {"data": text, "files": {"input_reference": ("mine", data)}},
        {"json": FIELDS | {"input_reference": {"image_url": url}}},
        {"json": FIELDS | {"input_reference": {"image_url": "data:," + quote(data)}}},
        {"data": text | {"input_reference[image_url]": url}},
        {"data": text | {"input_reference": f'{{"image_url": "{url}"}}'}},
    ]
    kept = http.post("/v1/files", data={"purpose": "vision"}, files={"file": data}).json()["id"]
    forms.append({"json": FIELDS | {"input_reference": {"file_id": kept}}})
    made = [http.post("/v1/videos", **form) for form in forms]
    assert len({reference_of(server, http, answer) for answer in made}) == 1


def test_a_video_may_come_in_many_ways_and_is_the_same(http: httpx.Client, server: Server) -> None:
    url = {"video_url": data_url(movie(), "video/mp4")}
    made = [
        http.post("/v1/videos", json=FIELDS | {"input_reference": url}),
        http.post("/v1/videos/edits", json=FIELDS | {"video": url}),
        upload(http, movie()),
        upload(http, movie(), "video/mp4", field="video"),
    ]
    assert len({reference_of(server, http, answer) for answer in made}) == 1


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"image_url": "https://example.com/a.png"}, "expected one of --allowed-media-domains"),
        ({"image_url": "http://localhost/a.png"}, "localhost has an address that is not public"),
        ({"image_url": "http://a.invalid/a.png"}, "a.invalid cannot be resolved"),
        ({"image_url": "file:///etc/passwd"}, "got URL scheme 'file', expected https or http"),
        ({"image_url": "/etc/passwd"}, "got URL scheme ''"),
        ({"video_url": "concat:/etc/passwd"}, "got URL scheme 'concat'"),
        ({"image_url": "data:image/png;base64,%%%"}, "without two hexadecimal digits"),
        ({"image_url": "data:image/png;base64,abc"}, "content is not valid base64"),
        ({"image_url": "data:image/png;base64"}, "expected data:TYPE;base64,DATA"),
        ({"image_url": "data:,\xff"}, "got non-ASCII characters"),
        ({"image_url": ""}, "invalid URL: expected 1 to 4096 printable"),
        ({"image_url": 3}, "got image_url of type int, expected a string"),
        (
            {"image_url": data_url(movie(), "video/mp4")},
            "image_url: got an unsupported file format",
        ),
        ({"video_url": data_url(picture())}, "video_url: got "),
        ({"image_url": "data:,", "video_url": "data:,"}, "with keys (image_url, video_url)"),
        ({"file_id": "file_1"}, "file 'file_1' not found"),
        ({"path": "/etc/passwd"}, "with keys (path)"),
        ({}, "got input_reference with keys ()"),
        ("/etc/passwd", "got input_reference of type str"),
        (["/etc/passwd"], "got input_reference of type list"),
    ],
)
def test_other_references_are_refused(http: httpx.Client, reference: Any, message: str) -> None:
    answer = http.post("/v1/videos", json=FIELDS | {"input_reference": reference})
    assert message in refused(answer, "input_reference")
    field = "video" if reference else "input_reference"  # an edit without a video is another error
    if isinstance(reference, dict) and "image_url" not in reference and reference:
        answer = http.post("/v1/videos/edits", json=FIELDS | {field: reference})
        assert message in refused(answer, field)


def test_bodies_are_bounded(http: httpx.Client) -> None:
    json = {"content-type": "application/json"}
    deep = b'{"prompt": ' + 100_000 * b"[" + 100_000 * b"]" + b"}"
    assert "nested" in refused(http.post("/v1/videos", content=deep, headers=json), None)
    long = {"prompt": "a" * 40_000}
    assert "got text of 40000" in refused(http.post("/v1/videos", json=FIELDS | long), "prompt")
    brackets = {"prompt": "a", "video" + 5000 * "[a]": "b"}
    assert "got field 'video[a][a]" in refused(http.post("/v1/videos", data=brackets), None)
    text = {"prompt": "a", "switches": 50_000 * "["}
    assert http.post("/v1/videos", data=text).status_code == 400

    def pieces() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(65):
            yield bytes(1 << 20)

    answer = http.post("/v1/videos", content=pieces(), headers=json)
    assert "at most 67108864 bytes" in refused(answer, None, 413)


@pytest.mark.slow
def test_a_killed_decoder_costs_one_request_at_most(http: httpx.Client, server: Server) -> None:
    assert upload(http, picture()).status_code == 200
    for process in decoders(server):
        process.kill()
    assert upload(http, picture()).status_code == 200  # by a new one
    with ThreadPoolExecutor() as threads:
        for kills, status in ((1, 200), (2, 400)):
            while any(map(is_at_work, decoders(server))):  # the last one tidies up
                time.sleep(0.01)
            answer = threads.submit(upload, http, long_movie(60))
            for _ in range(kills):
                kill_at_work(server, answer)
            assert upload(http, picture()).status_code == 200
            assert answer.result().status_code == status
    assert "crashes the decoder process (SIGKILL)" in answer.result().text


def kill_at_work(server: Server, answer: Future[httpx.Response]) -> None:
    """Kill the decoder process that decodes the reference of a request.

    It is stopped first, so that it cannot finish between the check and the kill.
    """
    while not answer.done():
        for process in decoders(server):
            if is_at_work(process):
                process.suspend()
                if is_at_work(process):
                    process.kill()
                    process.wait(60)
                    return
                process.resume()
        time.sleep(0.01)
    pytest.fail(f"the reference was decoded before a process was killed: {answer.result()}")


def is_at_work(process: psutil.Process) -> bool:
    """Return whether a decoder process has a reference open."""
    try:
        return any("/incoming/" in file.path for file in process.open_files())
    except psutil.Error:  # it was killed
        return False


def test_logs_tell_nothing_of_what_users_send(
    http: httpx.Client, server: Server, log: Path
) -> None:
    """No prompts, keys, names or URLs: after successes, rejections and internal errors."""
    before = len(log.read_text())
    secret: dict[str, Any] = FIELDS | {"prompt": MARKER}
    headers = {"authorization": f"Bearer {MARKER}", "cookie": MARKER}
    video = http.post("/v1/videos", json=secret, headers=headers).json()["id"]
    assert http.get(f"/v1/videos/{video}/stream", headers=headers).status_code == 200
    refusals: list[dict[str, Any]] = [
        {"json": secret | {"size": MARKER}},
        {"json": secret | {MARKER: MARKER}},
        {"json": secret | {"input_reference": {"image_url": f"https://localhost/a?b={MARKER}"}}},
        {"json": secret | {"input_reference": {"image_url": f"data:,{MARKER}"}}},
        {"content": f'{{"prompt": "{MARKER}"'.encode()},
        {"data": {"prompt": MARKER}, "files": {"input_reference": (MARKER, MARKER.encode())}},
        {"json": secret | {"prompt": f"{MARKER}\x00" * 4000}},
    ]
    for refusal in refusals:
        answer = http.post("/v1/videos", headers=headers, **refusal)
        assert answer.status_code == 400, answer.text
    assert http.get(f"/v1/videos/{MARKER}?after={MARKER}").status_code == 404
    fragment = next((server.folder / "segments" / video).glob("*.m4s"))
    write_checked(fragment, MARKER.encode() * 100)  # whole, but no MP4
    assert http.get(f"/v1/videos/{video}/content").status_code == 500
    said = text_with(log, "a request failed", since=before)
    assert "finished_files.py" in said
    assert server.process.stdout is not None
    os.set_blocking(server.process.stdout.fileno(), False)
    with suppress(BlockingIOError):
        said += os.read(server.process.stdout.fileno(), 1 << 20).decode()
    assert MARKER not in said


def text_with(path: Path, text: str, *, since: int) -> str:
    """Wait until `text` is in the file after position `since`, and return the file from there."""
    until = time.monotonic() + 30
    pause = threading.Event()
    while text not in (found := path.read_text()[since:]):
        assert time.monotonic() < until, found
        pause.wait(0.05)
    return found
