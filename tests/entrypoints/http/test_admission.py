"""Refused requests leave no trace, accepted ones stay, and ended ones take no capacity."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from websockets.sync.client import connect

from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.service.tenants import read_tenants
from helios_serve.store.keys import KeyStore
from tests.support.api import error_of
from tests.support.quick_server import quick_server
from tests.support.realtime import RealtimeClient

LIMITS = """
[tenants.twins]
max_sessions = 2
[tenants.forks]
max_sessions = 3
[tenants.one]
max_sessions = 1
[tenants.files]
max_file_bytes = 100
"""
SMALL = {"prompt": "waves", "size": "64x64", "steps": [1, 1, 1], "seed": 1}
LONG = SMALL | {"num_frames": 33 * 200}


class Crowd:
    """A server, with a client for each tenant."""

    def __init__(self, folder: Path, url: str, keys: dict[str, str], opened: ExitStack) -> None:
        self.folder = folder
        self.url = url
        self.keys = keys
        self.opened = opened

    def __getitem__(self, tenant: str) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.keys[tenant]}"}
        return self.opened.enter_context(
            httpx.Client(base_url=self.url, headers=headers, timeout=120)
        )

    def realtime(self, tenant: str) -> RealtimeClient:
        address = f"{self.url.replace('http', 'ws', 1)}/v1/realtime/video"
        headers = {"authorization": f"Bearer {self.keys[tenant]}"}
        socket = self.opened.enter_context(
            connect(address, additional_headers=headers, max_size=None)
        )
        return RealtimeClient(socket)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    root = tmp_path_factory.mktemp("admission")
    folder, file = root / "data", root / "tenants.toml"
    file.write_text(LIMITS)
    with closing(KeyStore(folder)) as store:
        keys = {name: store.create(name).secret for name in ("twins", "forks", "one", "files")}
    limits = read_tenants(file)
    scheduling = SchedulingConfig(tenants=limits.tenants, tenant_defaults=limits.defaults)
    with quick_server(folder, scheduling=scheduling) as url, ExitStack() as opened:
        yield Crowd(folder, url, keys, opened)


def clear(http: httpx.Client) -> None:
    for video in http.get("/v1/videos", params={"limit": 100}).json()["data"]:
        assert http.delete(f"/v1/videos/{video['id']}").status_code == 200


def test_twins_get_the_same_answer(crowd: Crowd) -> None:
    """Each request is sent twice at the same time, while two of thirty fit."""
    http = crowd["twins"]

    def order(number: int) -> httpx.Response:
        key = {"idempotency-key": f"twin-{number // 2}"}
        return http.post("/v1/videos", json=LONG, headers=key)

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(order, range(60)))
    good = {
        number // 2: answer.json()["id"]
        for number, answer in enumerate(answers)
        if answer.status_code == 200
    }
    assert {answer.status_code for answer in answers} == {200, 429}
    assert len(good) == 2
    listed = {video["id"] for video in http.get("/v1/videos").json()["data"]}
    assert listed == set(good.values())
    for first, second in zip(answers[::2], answers[1::2], strict=True):
        assert first.status_code == second.status_code
    clear(http)


def test_forks_are_seen_together_or_not_at_all(crowd: Crowd) -> None:
    http = crowd["forks"]
    parent = http.post("/v1/videos", json=LONG).json()["id"]
    while not http.get(f"/v1/videos/{parent}").json()["chunks_done"]:
        time.sleep(0.01)
    seen: set[str] = set()
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(
            http.post, f"/v1/videos/{parent}/fork", json={"prompts": ["a", "b", "c"]}
        )
        while not asking.done():
            seen |= {video["id"] for video in http.get("/v1/videos").json()["data"]}
        refused = asking.result()
    assert (refused.status_code, error_of(refused)["code"]) == (429, "tenant_quota")
    assert seen == {parent}
    answer = http.post(f"/v1/videos/{parent}/fork", json={"prompts": ["a", "b"]})
    assert answer.status_code == 200, answer.text
    clear(http)


def test_forks_have_seeds_of_their_own_which_they_show(crowd: Crowd) -> None:
    http = crowd["forks"]
    parent = http.post("/v1/videos", json=SMALL | {"num_frames": 33}).json()["id"]
    while http.get(f"/v1/videos/{parent}").json()["status"] != "completed":
        time.sleep(0.01)
    body = {"prompts": [None], "seconds": 1}
    seeds = [SMALL["seed"]]
    for _ in range(2):  # at the same chunk
        (child,) = http.post(f"/v1/videos/{parent}/fork", json=body).json()["data"]
        seeds.append(http.get(f"/v1/videos/{child['id']}").json()["seed"])
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 1 << 31 for seed in seeds if isinstance(seed, int))
    clear(http)


@pytest.mark.parametrize("ending", ["cancel", "delete"])
def test_a_video_that_has_ended_takes_no_room(crowd: Crowd, ending: str) -> None:
    """Even while its last step is in flight."""
    http = crowd["one"]
    for _ in range(10):
        answer = http.post("/v1/videos", json=LONG)
        assert answer.status_code == 200, answer.text
        url = f"/v1/videos/{answer.json()['id']}"
        while http.get(url).json()["phase"] != "denoising":
            time.sleep(0.01)
        ended = http.post(f"{url}/cancel") if ending == "cancel" else http.delete(url)
        assert ended.status_code == 200
    clear(http)


def test_a_deleted_order_can_be_repeated_at_once(crowd: Crowd) -> None:
    http, key = crowd["one"], {"idempotency-key": "again"}
    ids = set()
    for _ in range(8):
        answer = http.post("/v1/videos", json=LONG, headers=key)
        assert answer.status_code == 200, answer.text
        ids.add(answer.json()["id"])
        assert http.get(f"/v1/videos/{answer.json()['id']}").status_code == 200
        assert http.delete(f"/v1/videos/{answer.json()['id']}").status_code == 200
    assert len(ids) == 1


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_session_can_be_started_as_soon_as_the_last_one_is_done(
    crowd: Crowd, is_stopped: bool
) -> None:
    client = crowd.realtime("one")
    for number in range(12):
        frames = 3300 if is_stopped else 1
        client.say("session.start", **SMALL | {"num_frames": frames, "seed": number})
        client.started()
        if is_stopped:
            client.say("session.stop")
        _, messages = client.rest()
        assert [message["type"] for message in messages] == ["session.done"]
        assert messages[0]["stopped"] is is_stopped


def test_files_count_in_a_tenants_quota(crowd: Crowd) -> None:
    http = crowd["files"]

    def upload(size: int) -> httpx.Response:
        return http.post(
            "/v1/files", data={"purpose": "vision"}, files={"file": ("x", b"x" * size)}
        )

    def used() -> dict[str, Any]:
        quota: dict[str, Any] = http.get("/v1/usage").json()["files"]
        return quota

    first = upload(60)
    assert first.status_code == 200
    refused = upload(41)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "tenant_quota")
    assert "expected at most 40" in error_of(refused)["message"]
    assert used() == {"bytes": 60, "max_file_bytes": 100}
    assert http.delete(f"/v1/files/{first.json()['id']}").status_code == 200
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(upload, [40] * 8))
    assert sorted(answer.status_code for answer in answers) == [200] * 2 + [429] * 6
    assert used()["bytes"] == 80
    assert len(list((crowd.folder / "files").iterdir())) == 2
