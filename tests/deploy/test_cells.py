"""Three cells behind a real HAProxy and a real nginx, with the configurations of `deploy`."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2 as httpx
import pytest

from helios_serve.service.ids import cell_of
from helios_serve.store.keys import KeyStore
from tests.support.api import SHORT, error_of, frames_of, openai, wait_until_ready
from tests.support.balancers import ROOT, free_port, running_haproxy, running_nginx
from tests.support.realtime import data_of, realtime_client
from tests.support.server import Server, running_server, start_server
from tests.support.sse import events_in

pytestmark = [pytest.mark.slow, pytest.mark.alone]

CELLS = ("a", "b", "c")
FLAGS = ("nano", "--device", "cpu", "--public-metrics", "--batch-invariant")
BALANCERS = {"haproxy": running_haproxy, "nginx": running_nginx}
PATIENCE = 300.0


class Fleet(NamedTuple):
    """Three cells, the ports of their stand-bys, which run in `opened`, and the keys of a small and
    of a large tenant.
    """

    servers: dict[str, Server]
    stand_bys: dict[str, int]
    opened: ExitStack
    small: str
    large: str

    @property
    def addresses(self) -> dict[str, str]:
        """What takes the place of the addresses in the configurations."""
        places = {}
        for number, cell in enumerate(CELLS, 1):
            own = self.servers[cell].url.removeprefix("http://")
            places[f"10.0.0.{number}:8000"] = own
            places[f"10.0.1.{number}:8000"] = f"127.0.0.1:{self.stand_bys[cell]}"
        return places


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    root = tmp_path_factory.mktemp("cells")
    secrets: dict[str, str] = {}
    for cell in CELLS:
        with closing(KeyStore(root / cell)) as keys:
            for tenant in ("small", "large"):
                if tenant in secrets:
                    keys.add(tenant, secrets[tenant])
                else:
                    secrets[tenant] = keys.create(tenant).secret
    with ExitStack() as opened:
        servers = {}
        for cell in CELLS:
            started = running_server(root / cell, *FLAGS, "--cell", cell, log=root / f"{cell}.log")
            servers[cell] = opened.enter_context(started)
        for server in servers.values():
            with httpx.Client(base_url=server.url) as http:
                wait_until_ready(http, PATIENCE)
        yield Fleet(servers, {cell: free_port() for cell in CELLS}, opened, **secrets)


@pytest.fixture(scope="module", params=BALANCERS)
def url(
    request: pytest.FixtureRequest, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The balancer."""
    folder = tmp_path_factory.mktemp("balancer") / request.param
    with BALANCERS[request.param](folder, fleet.addresses, [fleet.large]) as started:
        if request.param == "haproxy":
            wait_for_loads(started, fleet.large)
        yield started


@contextmanager
def client_of(url: str, key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key) as client:
        yield client


@contextmanager
def http_of(url: str, key: str) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE) as http:
        yield http


def wait_for_loads(url: str, key: str, cells: Iterable[str] = CELLS) -> None:
    """Wait until HAProxy has asked all `cells`, so that each of them gets new videos.

    Requests are sent slowly: HAProxy counts them as videos until it asks the cell again.
    """
    deadline, seen = time.monotonic() + PATIENCE, set[str]()
    with http_of(url, key) as http:
        while not seen.issuperset(cells):
            assert time.monotonic() < deadline, seen
            answer = http.post("/v1/videos", json={"prompt": " "})  # refused, but sent to a cell
            assert answer.status_code == 400
            seen.add(answer.headers["x-helios-cell"])
            time.sleep(0.5)


def body(**fields: Any) -> dict[str, Any]:
    return {"prompt": "waves", "size": "64x64", "num_frames": 40, "seed": 3} | fields


def completed(http: httpx.Client, video: str) -> dict[str, Any]:
    """The video, once it is completed. It may take as long as a stand-by takes to start."""
    deadline = time.monotonic() + PATIENCE
    while True:
        assert time.monotonic() < deadline, video
        try:
            answer = http.get(f"/v1/videos/{video}")
        except httpx.TransportError:
            answer = None
        if answer is not None and answer.status_code == 200:
            found: dict[str, Any] = answer.json()
            assert found["status"] != "failed", found
            if found["status"] == "completed":
                return found
        elif answer is not None:
            assert answer.status_code in (502, 503), answer.text
        time.sleep(0.1)


def test_a_large_tenant_uses_every_cell_with_the_openai_client(fleet: Fleet, url: str) -> None:
    with client_of(url, fleet.large) as client:
        made = [client.videos.create(prompt="waves", **SHORT) for _ in range(12)]
        assert {cell_of(video.id) for video in made} == set(CELLS)
        done = [client.videos.poll(video.id, poll_interval_ms=100) for video in made]
        assert {video.status for video in done} == {"completed"}
        files = {client.videos.download_content(video.id).read() for video in made}
        assert len(files) == 1  # one seed, one video, in every cell
        listed = listed_in_all_cells(url, fleet.large)
        assert set(listed) >= {video.id for video in made}
        remixed = client.videos.remix(made[0].id, prompt="a storm")
        assert cell_of(remixed.id) == cell_of(made[0].id)
        client.videos.poll(remixed.id, poll_interval_ms=100)
        for video in (*made, remixed):
            assert client.videos.delete(video.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(made[0].id)


def listed_in_all_cells(url: str, key: str) -> list[str]:
    """Ids as examples/list_cells.py prints them."""
    command = [sys.executable, str(ROOT / "examples/list_cells.py"), "--url", url, "--limit", "99"]
    environment = os.environ | {"OPENAI_API_KEY": key, "PYTHONWARNINGS": "ignore"}
    printed = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    rows = [line.split() for line in printed.stdout.splitlines()]
    seconds = [int(row[0]) for row in rows]
    assert seconds == sorted(seconds, reverse=True)
    return [row[1] for row in rows]


def test_a_small_tenant_is_pinned(fleet: Fleet, url: str) -> None:
    with client_of(url, fleet.small) as client:
        made = [client.videos.create(prompt="waves", **SHORT).id for _ in range(4)]
        assert len({cell_of(video) for video in made}) == 1
        assert {video.id for video in client.videos.list(limit=100)} >= set(made)
        for video in made:
            client.videos.delete(video)


def test_a_repeated_request_finds_the_cell_of_the_first(fleet: Fleet, url: str) -> None:
    with http_of(url, fleet.large) as http:
        cells = set()
        for number in range(8):
            key = {"idempotency-key": f"order {number} of {url}"}
            first, again = (
                http.post("/v1/videos", json=body(), headers=key).json()["id"] for _ in range(2)
            )
            assert first == again
            cells.add(cell_of(first))
            http.delete(f"/v1/videos/{first}")
        assert len(cells) > 1


def test_what_is_streamed_passes(fleet: Fleet, url: str) -> None:
    """The growing file, HLS, events and ranges have what the file has."""
    with http_of(url, fleet.large) as http:
        video = http.post("/v1/videos", json=body(num_frames=99)).json()["id"]
        folder = f"/v1/videos/{video}"
        with http.stream("GET", f"{folder}/events") as answer:
            assert answer.headers["x-helios-cell"] == cell_of(video)
            names = [event.name for event in events_in(answer.iter_lines())]
        assert names[-1] == "video.completed"
        assert names.count("video.chunk") == 3
        stream = http.get(f"{folder}/stream").content
        playlist = http.get(f"{folder}/hls/index.m3u8").text
        segments = [line for line in playlist.splitlines() if line.endswith(".m4s")]
        assert playlist.endswith("#EXT-X-ENDLIST\n")
        parts = [http.get(f"{folder}/hls/{name}").content for name in ("init.mp4", *segments)]
        assert b"".join(parts) == stream
        whole = http.get(f"{folder}/content").content
        part = http.get(f"{folder}/content", headers={"range": "bytes=100-299"})
        assert (part.status_code, part.content) == (206, whole[100:300])
        assert len(frames_of(whole)) == 99


def test_a_chunk_passes_before_the_next_one_is_made(fleet: Fleet, url: str) -> None:
    """A balancer that buffers would deliver all of them at the end."""
    with http_of(url, fleet.large) as http:
        video = http.post("/v1/videos", json=body(num_frames=3300)).json()["id"]
        with http.stream("GET", f"/v1/videos/{video}/stream") as answer:
            assert next(answer.iter_bytes())
            assert http.get(f"/v1/videos/{video}").json()["status"] == "in_progress"
            http.post(f"/v1/videos/{video}/cancel")


def test_a_websocket_session_is_resumed_in_its_cell(fleet: Fleet, url: str) -> None:
    with realtime_client(url, key=fleet.large) as client:
        session = client.start(num_frames=99, seed=5)
        first = client.hear_chunk()
    query = f"?cell={cell_of(session)}"
    with realtime_client(url, query, fleet.large) as client:
        client.say("session.resume", session_id=session, from_chunk=1, header=False)
        client.started()
        chunks, messages = client.rest()
    assert messages[-1]["type"] == "session.done"
    assert len(frames_of(data_of([first, *chunks]))) == 99
    other = next(cell for cell in CELLS if cell != cell_of(session))
    with realtime_client(url, f"?cell={other}", fleet.large) as client:
        error = client.ask("session.resume", session_id=session)
        assert (error["code"], error["type"]) == ("other_cell", "error")


def test_a_cell_says_that_an_id_is_of_another_one(fleet: Fleet, url: str) -> None:
    with http_of(url, fleet.large) as http:
        video = http.post("/v1/videos", json=body()).json()["id"]
        other = next(cell for cell in CELLS if cell != cell_of(video))
        answer = http.get(f"/v1/videos/{video}", headers={"x-helios-cell": other})
        assert (answer.status_code, answer.headers["x-helios-cell"]) == (421, other)
        assert error_of(answer)["code"] == "other_cell"
        assert f"x-helios-cell: {cell_of(video)}" in error_of(answer)["message"]
    with http_of(fleet.servers[other].url, fleet.large) as http:
        answer = http.get(f"/v1/videos?cell={cell_of(video)}")
        assert answer.status_code == 421


def test_haproxy_sends_new_videos_to_the_least_loaded_cell(fleet: Fleet, tmp_path: Path) -> None:
    """Cell a has much to do; b and c share what comes."""
    with http_of(fleet.servers["a"].url, fleet.large) as direct:
        busy = [direct.post("/v1/videos", json=body(num_frames=6600)) for _ in range(8)]
        haproxy = running_haproxy(tmp_path / "haproxy", fleet.addresses, [fleet.large])
        with haproxy as url, http_of(url, fleet.large) as http:
            wait_for_loads(url, fleet.large, "bc")
            made = [http.post("/v1/videos", json=body(num_frames=330)).json() for _ in range(6)]
            assert {cell_of(video["id"]) for video in made} == {"b", "c"}
            for video in (*made, *(answer.json() for answer in busy)):
                http.delete(f"/v1/videos/{video['id']}")


@pytest.mark.parametrize("balancer", BALANCERS)
def test_a_cell_that_is_killed_loses_nothing_and_disturbs_no_other(
    fleet: Fleet, balancer: str, tmp_path: Path, record_property: Any
) -> None:
    """Its data folder is taken by a stand-by, which its clients reach by the same ids."""
    victim = dict(zip(BALANCERS, ("b", "c"), strict=True))[balancer]
    with (
        BALANCERS[balancer](tmp_path / "balancer", fleet.addresses, [fleet.large]) as url,
        http_of(url, fleet.large) as http,
        ThreadPoolExecutor(4) as pool,
    ):
        if balancer == "haproxy":
            wait_for_loads(url, fleet.large)
        made = [http.post("/v1/videos", json=body(num_frames=330, seed=1)) for _ in range(12)]
        ids = [answer.json()["id"] for answer in made]
        by_cell = {cell: [one for one in ids if cell_of(one) == cell] for cell in CELLS}
        assert by_cell[victim]
        going = by_cell[victim][0]
        with http.stream("GET", f"/v1/videos/{going}/stream") as stream:
            next(stream.iter_bytes())  # its first chunk is committed
        with start_server(fleet.servers[victim].folder, *FLAGS) as second:
            assert not second.url or second.process.wait(30) == 2  # fenced by the folder's lock
        killed = time.monotonic()
        fleet.servers[victim].kill()
        others = [one for one in ids if cell_of(one) != victim]
        assert http.get(f"/v1/videos/{others[0]}").status_code == 200
        port = fleet.stand_bys[victim]
        folder, log = fleet.servers[victim].folder, tmp_path / "log"
        stand_by = fleet.opened.enter_context(start_server(folder, *FLAGS, port=port, log=log))
        assert stand_by.url
        while True:
            answer = http.get(f"/v1/videos/{going}")
            if answer.status_code == 200:
                break
            assert answer.status_code in (502, 503)
            assert time.monotonic() < killed + PATIENCE
            time.sleep(0.1)
        record_property("seconds until the stand-by answers", time.monotonic() - killed)
        found = list(pool.map(lambda one: completed(http, one), ids))
        assert {video["seconds"] for video in found} == {"13.75"}
        files = {http.get(f"/v1/videos/{one}/content").content for one in ids}
        assert len(files) == 1  # also those that were cut
        new = http.post("/v1/videos", json=body(), headers={"x-helios-cell": victim}).json()
        assert cell_of(new["id"]) == victim  # the folder's name, which no flag gave
