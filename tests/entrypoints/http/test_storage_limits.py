"""A server with a full disk, with --max-disk, or with --retention."""

import resource
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.support.api import error_of, frames_of
from tests.support.server import running_server

FLAGS = ("nano", "--device", "cpu", "--batch-invariant")
BODY = {"prompt": "waves", "num_frames": 33, "size": "64x64", "seed": 1}


def until(come: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not come():
        assert time.monotonic() < deadline, "it does not come to this"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_full_disk_stops_videos_and_nothing_else(tmp_path: Path) -> None:
    """The process may write no more bytes. When it may again, stopped videos resume."""
    with (
        running_server(tmp_path / "data", *FLAGS) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        long = BODY | {"num_frames": 33 * 30}
        video = http.post("/v1/videos", json=long).json()["id"]
        until(lambda: http.get(f"/v1/videos/{video}").json()["chunks_done"] >= 1)
        _, most = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, most))
        refused = http.post("/v1/videos", json=BODY)
        assert (refused.status_code, error_of(refused)["code"]) == (507, "storage")
        refused = http.post("/v1/files", data={"purpose": "batch"}, files={"file": b"x"})
        assert (refused.status_code, error_of(refused)["code"]) == (507, "storage")
        until(lambda: http.get(f"/v1/videos/{video}").json()["phase"] == "in_progress")
        stopped = http.get(f"/v1/videos/{video}").json()
        assert stopped["status"] == "in_progress"
        assert stopped["chunks_done"] < 30
        assert http.get("/health").status_code == 200
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (most, most))
        assert http.post("/v1/videos/sync", json=BODY).status_code == 200
        until(lambda: http.get(f"/v1/videos/{video}").json()["status"] == "completed")
        assert len(frames_of(http.get(f"/v1/videos/{video}/content").content)) == 33 * 30


def unnamed_files(pid: int) -> list[str]:
    """Return the number of unnamed files that a process has open."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.append(str(link.readlink()))
    return [name for name in found if name.endswith("(deleted)")]


def test_an_upload_has_its_room_in_the_data_folder_and_a_kill_leaves_nothing(
    tmp_path: Path,
) -> None:
    """One upload is beyond --max-disk; another is half sent when the server is killed."""
    head = 'content-disposition: form-data; name="file"; filename="x"\r\n\r\n'
    start = f"--B\r\n{head}".encode() + bytes(3 << 20)
    with running_server(tmp_path / "data", *FLAGS, "--max-disk", "16MB") as server:
        host, port = server.url.removeprefix("http://").split(":")
        with httpx.Client(base_url=server.url, timeout=60) as http:
            refused = http.post(
                "/v1/files", data={"purpose": "batch"}, files={"file": bytes(24 << 20)}
            )
        assert (refused.status_code, error_of(refused)["code"]) == (507, "storage")
        assert "--max-disk" in error_of(refused)["message"]
        with socket.create_connection((host, int(port)), timeout=60) as client:
            length = f"content-length: {8 << 20}\r\n"
            kind = "content-type: multipart/form-data; boundary=B\r\n"
            client.sendall(
                f"POST /v1/files HTTP/1.1\r\nhost: {host}\r\n{length}{kind}\r\n".encode()
            )
            client.sendall(start)
            incoming = str(tmp_path / "data" / "incoming")
            until(lambda: any(incoming in name for name in unnamed_files(server.process.pid)))
            server.process.kill()
            server.process.wait(60)
    assert list((tmp_path / "data" / "incoming").iterdir()) == []


@pytest.mark.slow
def test_videos_are_refused_beyond_a_limit_and_forgotten_when_old(tmp_path: Path) -> None:
    """How fast videos are made does not matter: they are kept until there are too many, and the
    server that is then started keeps them for no time."""
    folder = tmp_path / "data"
    with (
        running_server(folder, *FLAGS, "--max-disk", "1MB", "--retention", "1h") as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        answer = http.post("/v1/videos/sync", json=BODY)
        video = http.get(f"/v1/videos/{answer.headers['x-video-id']}").json()
        assert video["expires_at"] == pytest.approx(video["completed_at"] + 3600, abs=1)

        def is_full() -> bool:
            refused = http.post("/v1/videos/sync", json=BODY | {"num_frames": 330})
            return refused.status_code == 507 and "--max-disk" in error_of(refused)["message"]

        until(is_full)
    with (
        running_server(folder, *FLAGS, "--retention", "1s") as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        until(lambda: http.get(f"/v1/videos/{video['id']}").status_code == 404)
        until(lambda: not list((folder / "segments").glob(f"{video['id']}*")))
