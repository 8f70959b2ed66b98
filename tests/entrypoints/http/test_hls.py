"""HLS playlists as players read them, against a server as users start it."""

import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.api import error_of, frames_of, played
from tests.support.server import running_server


def test_a_finished_video_is_a_playlist_with_an_end(http: httpx.Client, finished: Any) -> None:
    folder = f"/v1/videos/{finished.id}/hls"
    playlist = http.get(f"{folder}/index.m3u8")
    assert playlist.headers["content-type"] == "application/vnd.apple.mpegurl"
    assert playlist.headers["cache-control"] == "no-cache"
    assert playlist.text.splitlines() == [
        "#EXTM3U",
        "#EXT-X-VERSION:7",
        "#EXT-X-TARGETDURATION:2",
        "#EXT-X-PLAYLIST-TYPE:EVENT",
        "#EXT-X-MEDIA-SEQUENCE:0",
        "#EXT-X-INDEPENDENT-SEGMENTS",
        "#EXT-X-START:TIME-OFFSET=0",
        '#EXT-X-MAP:URI="init.mp4"',
        "#EXTINF:1.375000,",
        "0.m4s",
        "#EXTINF:0.291667,",
        "1.m4s",
        "#EXT-X-ENDLIST",
    ]
    parts = [http.get(f"{folder}/{name}") for name in ("init.mp4", "0.m4s", "1.m4s")]
    assert [part.headers["content-type"] for part in parts] == [
        "video/mp4",
        "video/iso.segment",
        "video/iso.segment",
    ]
    assert all("immutable" in part.headers["cache-control"] for part in parts)
    stream = http.get(f"/v1/videos/{finished.id}/stream").content
    assert b"".join(part.content for part in parts) == stream
    content = http.get(f"/v1/videos/{finished.id}/content").content
    assert (played(f"{http.base_url}{folder}/index.m3u8") == frames_of(content)).all()


def test_a_playlist_grows_with_its_video_and_ends_with_it(http: httpx.Client) -> None:
    """It is requested at once: the response comes with the first chunk."""
    body = {"prompt": "waves", "num_frames": 3300, "size": "64x64", "fps": 16}
    video = http.post("/v1/videos", json=body).json()["id"]
    address = f"/v1/videos/{video}/hls/index.m3u8"
    early = http.get(address).text
    assert "0.m4s" in early
    assert "\n99.m4s\n" not in early
    assert "ENDLIST" not in early
    http.post(f"/v1/videos/{video}/cancel")
    late = http.get(address).text
    assert late.startswith(early.rstrip())
    assert late.endswith("#EXT-X-ENDLIST\n")
    made = frames_of(http.get(f"/v1/videos/{video}/content").content)
    assert len(made) == 33 * late.count(".m4s")
    assert (played(f"{http.base_url}{address}") == made).all()


@pytest.mark.slow
def test_a_playlist_can_be_played_while_the_video_is_made(http: httpx.Client) -> None:
    body = {"prompt": "waves", "num_frames": 75, "size": "64x64", "fps": 60}
    video = http.post("/v1/videos", json=body).json()["id"]
    while not http.get(f"/v1/videos/{video}").json()["chunks_done"]:
        time.sleep(0.02)
    frames = played(f"{http.base_url}/v1/videos/{video}/hls/index.m3u8")
    assert (frames == frames_of(http.get(f"/v1/videos/{video}/content").content)).all()
    assert len(frames) == 75


def test_what_is_not_there_is_not_found(http: httpx.Client, finished: Any) -> None:
    for name in ("2.m4s", "-1.m4s", "x.m4s", "other"):
        answer = http.get(f"/v1/videos/{finished.id}/hls/{name}")
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "not_found"
    for name in ("index.m3u8", "init.mp4", "0.m4s"):
        answer = http.get(f"/v1/videos/none/hls/{name}")
        assert answer.status_code == 404
        assert "video 'none'" in error_of(answer)["message"]


def test_a_video_that_ended_before_its_first_chunk_has_no_playlist(http: httpx.Client) -> None:
    body = {"prompt": "waves", "num_frames": 33, "size": "256x256", "steps": [1000, 1000, 1000]}
    video = http.post("/v1/videos", json=body).json()["id"]
    assert http.get(f"/v1/videos/{video}/hls/init.mp4").status_code == 404
    assert http.post(f"/v1/videos/{video}/cancel").json()["chunks_done"] == 0
    answer = http.get(f"/v1/videos/{video}/hls/index.m3u8")
    assert answer.status_code == 409
    assert error_of(answer)["code"] == "not_ready"


@pytest.mark.slow
def test_a_player_that_comes_much_too_early_is_told_to_come_again(tmp_path: Path) -> None:
    """The only worker is stopped."""
    with (
        running_server(tmp_path / "data", "nano", "--device", "cpu") as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
        server.workers_stopped(),
    ):
        body = {"prompt": "waves", "num_frames": 33, "size": "64x64"}
        video = http.post("/v1/videos", json=body).json()["id"]
        answer = http.get(f"/v1/videos/{video}/hls/index.m3u8")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert error_of(answer)["code"] == "not_ready"
