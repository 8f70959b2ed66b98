"""A server with an object store is killed: nothing is lost, and nothing stays that was deleted."""

from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.support.api import frames_of
from tests.support.edge_server import wait_for
from tests.support.objects import Bucket, files_of
from tests.support.server import Server, running_server, start_server

PATIENCE = 240.0
FLAGS = ("nano", "--device", "cpu", "--object-store-drop-local")
BODY = {"prompt": "waves", "num_frames": 99, "size": "64x64", "seed": 1, "steps": [1, 1, 1]}


def flags_of(bucket: Bucket) -> tuple[str, ...]:
    return (*FLAGS, "--object-store", bucket.url, "--object-store-endpoint", bucket.endpoint)


def settled(http: httpx.Client, video: str) -> bool:
    """Whether the video has ended and nothing waits for the object store."""
    state = http.get("/health").json()["object_store"]
    found = http.get(f"/v1/videos/{video}").json()
    ended = found.get("status") in ("completed", None)
    return ended and state["uploads"] + state["deletions"] == 0


def create(server: Server) -> str:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        video: str = http.post("/v1/videos", json=BODY).json()["id"]
    return video


def delete(server: Server, videos: list[str]) -> list[str]:
    """Delete the videos when they are uploaded. Returns those that were deleted before it died."""
    done = []
    with suppress(httpx.TransportError), httpx.Client(base_url=server.url, timeout=60) as http:
        for video in videos:
            wait_for(partial(settled, http, video), PATIENCE)
            assert http.delete(f"/v1/videos/{video}").status_code == 200
            done.append(video)
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "count"), [("before record", 2), ("after drop", 1), ("during deletion", 2)]
)
def test_a_kill_loses_no_object_and_leaves_none(
    point: str, count: int, tmp_path: Path, bucket: Bucket
) -> None:
    """Other points: tests/service/test_uploader_kills.py."""
    folder = tmp_path / "data"
    is_deletion = "deletion" in point
    with start_server(folder, *flags_of(bucket), dying=(point, str(count))) as server:
        videos = [create(server)]
        deleted = delete(server, videos) if is_deletion else []
        assert server.process.wait(PATIENCE) == -9
    with (
        running_server(folder, *flags_of(bucket)) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        if is_deletion:
            assert deleted
            for video in videos:
                status = http.delete(f"/v1/videos/{video}").status_code
                assert status == (404 if video in deleted else 200)
        for video in videos:
            wait_for(partial(settled, http, video), PATIENCE)
        if is_deletion:
            assert bucket.names() == []
            return
        assert bucket.names() == sorted(name for video in videos for name in files_of(video, 3))
        for video in videos:
            whole = http.get(f"/v1/videos/{video}/content", follow_redirects=True).content
            assert len(frames_of(whole)) == 99
            assert whole == bucket.get(f"{video}/video.mp4").content
            stream = http.get(f"/v1/videos/{video}/stream").content
            assert len(frames_of(stream)) == 99
            assert not (folder / "segments" / video).exists()
