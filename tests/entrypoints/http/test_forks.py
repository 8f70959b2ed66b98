"""Forks: several continuations of one video, each with its own prompt and its own noise."""

import time
from itertools import combinations
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest

from tests.support.api import error_of, frames_of

CHUNK = 33
SMALL = {"prompt": "a dog runs", "size": "64x64", "seed": 3}


def wait_for(http: httpx.Client, video_id: str, field: str, least: Any) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (video := http.get(f"/v1/videos/{video_id}").json())[field] < least:
        assert video["status"] != "failed", video
        assert time.monotonic() < deadline, video
        time.sleep(0.05)
    return dict(video)


def content(http: httpx.Client, video_id: str) -> np.ndarray:
    return frames_of(http.get(f"/v1/videos/{video_id}/content").content)


def test_a_running_video_is_continued_in_several_ways(http: httpx.Client) -> None:
    """All three are cancelled when each has a chunk of its own, because none ends by itself."""
    parent = http.post("/v1/videos", json=SMALL | {"num_frames": 3300}).json()["id"]
    wait_for(http, parent, "chunks_done", 1)
    answer = http.post(f"/v1/videos/{parent}/fork", json={"prompts": [None, "a cat sleeps"]}).json()
    assert answer["object"] == "list"
    first = answer["data"][0]["chunks_done"]
    assert first > 0, "it begins with the chunks that were there"
    for child in answer["data"]:
        assert (child["relation"], child["parent_video_id"]) == ("fork", parent)
        assert (child["num_frames"], child["prompt"]) == (3300, "a dog runs")
        assert child["chunks_done"] == first
    videos = [parent, *(child["id"] for child in answer["data"])]
    for video in videos:
        wait_for(http, video, "chunks_done", first + 1)
        http.post(f"/v1/videos/{video}/cancel")
    common = first * CHUNK
    original, same, other = (content(http, video)[: common + CHUNK] for video in videos)
    assert len(original) == len(same) == len(other) == common + CHUNK
    assert np.array_equal(original[:common], same[:common])
    assert np.array_equal(original[:common], other[:common])
    for one, two in combinations((original, same, other), 2):
        assert not np.array_equal(one[common:], two[common:])


def test_a_finished_video_is_forked_for_more_seconds(http: httpx.Client, finished: Any) -> None:
    url = f"/v1/videos/{finished.id}/fork"
    answer = http.post(url, json={"prompts": [None], "seconds": 1})
    (child,) = answer.json()["data"]
    assert child["num_frames"] == 2 * CHUNK + 24
    wait_for(http, child["id"], "progress", 100)
    original, longer = content(http, finished.id), content(http, child["id"])
    assert len(longer) == 2 * CHUNK + 24
    assert np.array_equal(longer[:CHUNK], original[:CHUNK])
    # The last chunk was cut. The child has all of it, encoded anew.
    difference = longer[CHUNK : len(original)].astype(int) - original[CHUNK:]
    assert np.abs(difference).mean() < 1


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompts": []}, "prompts", "expected `array` of length >= 1"),
        ({"prompts": ["x"] * 17}, "prompts", "expected `array` of length <= 16"),
        ({"prompts": ["x", " "], "seconds": 1}, "prompts[1]", "prompts"),
        ({"prompts": ["x"]}, "seconds", "got a finished video without seconds"),
        ({"prompts": ["x"], "seconds": -1}, "seconds", "got -1"),
        ({"prompts": ["x", "x" * 40_000], "seconds": 1}, "prompt", "32768"),
    ],
)
def test_what_cannot_be_forked_is_refused(
    http: httpx.Client, finished: Any, body: dict[str, Any], param: str, message: str
) -> None:
    newest = http.get("/v1/videos").json()["first_id"]
    answer = http.post(f"/v1/videos/{finished.id}/fork", json=body)
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (400, param)
    assert message in error["message"]
    assert http.get("/v1/videos").json()["first_id"] == newest, "none was made"


def test_a_video_without_a_chunk_and_an_unknown_one_are_refused(http: httpx.Client) -> None:
    slow = {"num_frames": 33, "size": "256x256", "steps": [1000, 1000, 1000]}
    video = http.post("/v1/videos", json=SMALL | slow).json()["id"]
    answer = http.post(f"/v1/videos/{video}/fork", json={"prompts": ["x"]})
    assert (answer.status_code, error_of(answer)["code"]) == (409, "not_ready")
    http.delete(f"/v1/videos/{video}")
    assert http.post(f"/v1/videos/{video}/fork", json={"prompts": ["x"]}).status_code == 404
