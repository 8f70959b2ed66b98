"""Several tenants on one server, each with keys and limits of its own."""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from starlette.routing import Route
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.entrypoints.cli.main import main
from helios_serve.entrypoints.http.app import make_app
from helios_serve.entrypoints.http.authentication import KEY_PROTOCOL
from helios_serve.store.keys import KeyStore
from helios_serve.store.video_store import VideoStore
from tests.support.api import error_of, openai, wait_until_ready
from tests.support.realtime import RealtimeClient
from tests.support.server import Server, running_server

LIMITS = """
[defaults]
loras = []

[tenants.none]
max_sessions = 0

[tenants.later]
max_queued = 0

[tenants.small]
tiers = ["flex"]
sizes = ["64x64"]

[tenants.painter]
loras = ["style", "missing"]

[tenants.steady]
tiers = ["default", "priority"]

[tenants.counted]
frames_per_day = 100

[tenants.reloaded]
frames_per_day = 100
"""
NAMES = ("acme", "other", "none", "later", "small", "painter", "steady", "counted", "reloaded")
SECRET_PROMPT = "a prompt that is nobody's business"
BODY: dict[str, Any] = {"prompt": SECRET_PROMPT, "size": "64x64", "num_frames": 33}
PATIENCE = 20.0


class Tenants:
    """A server, with a client for each tenant."""

    def __init__(self, server: Server, keys: dict[str, str], opened: ExitStack) -> None:
        self.server = server
        self.keys = keys
        self.clients = {
            name: opened.enter_context(
                httpx.Client(
                    base_url=server.url, timeout=60, headers={"authorization": f"Bearer {key}"}
                )
            )
            for name, key in keys.items()
        }
        self.anonymous = opened.enter_context(httpx.Client(base_url=server.url, timeout=60))

    @property
    def log(self) -> str:
        return (self.server.folder / "log").read_text()

    def __getitem__(self, name: str) -> httpx.Client:
        return self.clients[name]


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory, style: Path) -> Iterator[Tenants]:
    folder = tmp_path_factory.mktemp("tenants") / "data"
    with closing(KeyStore(folder)) as store:
        keys = {name: store.create(name).secret for name in NAMES}
    file = folder / "tenants.toml"
    file.write_text(LIMITS)
    loras = ("--lora-modules", f"style={style}", "--lora-modules", f"secret={style}")
    flags = ("nano", "--device", "cpu", "--tenants", str(file), *loras)
    with running_server(folder, *flags, log=folder / "log") as server, ExitStack() as opened:
        yield Tenants(server, keys, opened)


@pytest.fixture(scope="module")
def finished(tenants: Tenants) -> str:
    """A completed video of acme's."""
    key = tenants.keys["acme"]
    size: Any = "64x64"
    with openai.OpenAI(base_url=f"{tenants.server.url}/v1", api_key=key) as client:
        video = client.videos.create_and_poll(
            prompt=SECRET_PROMPT, size=size, poll_interval_ms=50, extra_body={"num_frames": 40}
        )
    assert video.status == "completed"
    return str(video.id)


def refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    return error_of(answer)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not come to this"
        time.sleep(0.02)


def test_without_a_valid_key_nothing_is_told(tenants: Tenants) -> None:
    key = tenants.keys["acme"]
    wrong: list[dict[str, str]] = [
        {},
        {"authorization": f"Basic {key}"},
        {"authorization": f"Bearer {key[:-1]}"},
        {"authorization": f"Bearer {key}x"},
        {"authorization": "Bearer sk-helios-"},
    ]
    for headers in wrong:
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/videos"), ("GET", "/nothing")):
            answer = tenants.anonymous.request(method, path, headers=headers)
            error = refused(answer, 401)
            assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-should-retry"] == "false"
    assert tenants.anonymous.get(f"/v1/models?api_key={key}").status_code == 401
    accepted = {"authorization": f"bearer   {key}"}
    assert tenants.anonymous.get("/v1/models", headers=accepted).status_code == 200
    with (
        openai.OpenAI(base_url=f"{tenants.server.url}/v1", api_key="sk-wrong") as client,
        pytest.raises(openai.AuthenticationError, match="unknown or revoked"),
    ):
        client.models.list()


@pytest.mark.parametrize("path", ["/health", "/liveness", "/version"])
def test_the_servers_own_state_is_open(tenants: Tenants, path: str) -> None:
    wait_until_ready(tenants.anonymous)
    assert tenants.anonymous.get(path).status_code == 200


def start_batch(client: httpx.Client, *bodies: dict[str, Any]) -> tuple[str, str]:
    """Create a batch, and return the ids of its file and of the batch."""
    lines = [
        {"custom_id": f"{index}", "method": "POST", "url": "/v1/videos", "body": body}
        for index, body in enumerate(bodies)
    ]
    data = b"\n".join(json.dumps(line).encode() for line in lines)
    upload = {"file": ("lines.jsonl", data)}
    file: str = client.post("/v1/files", files=upload, data={"purpose": "batch"}).json()["id"]
    order = {"input_file_id": file, "endpoint": "/v1/videos", "completion_window": "24h"}
    return file, client.post("/v1/batches", json=order).json()["id"]


@pytest.fixture(scope="module")
def owned(tenants: Tenants, finished: str) -> dict[str, str]:
    """A resource of acme's for every kind of id in routes."""
    file, batch = start_batch(tenants["acme"], BODY)
    return {"video_id": finished, "file_id": file, "batch_id": batch}


def test_no_route_shows_what_is_anothers(
    tenants: Tenants, owned: dict[str, str], tmp_path: Path
) -> None:
    """All routes with an id in their path respond as if the id did not exist."""
    with closing(VideoStore(tmp_path)) as store, closing(KeyStore(tmp_path)) as keys:
        app = make_app(AsyncEngine({}, store), store, tmp_path, keys)
    seen = set()
    for route in filter(lambda route: isinstance(route, Route), app.routes):
        assert isinstance(route, Route)
        for kind in re.findall(r"{(\w+_id)}", route.path):
            seen.add(kind)
            for method in route.methods or ():
                check_hidden(tenants["other"], method, route.path, kind, owned[kind])
    assert seen == owned.keys()
    for kind, plural in {"video_id": "videos", "file_id": "files", "batch_id": "batches"}.items():
        assert tenants["acme"].get(f"/v1/{plural}/{owned[kind]}").json()["id"] == owned[kind]


BODIES = {"/v1/videos/{video_id}/fork": {"prompts": ["x"]}}


def check_hidden(other: httpx.Client, method: str, path: str, kind: str, owned_id: str) -> None:
    answers = []
    for given in (owned_id, "unknown"):
        url = re.sub(r"{[^}]*}", "0", path.replace(f"{{{kind}}}", given))
        body = BODIES.get(path, {"prompt": "x"}) if method == "POST" else None
        answer = other.request(method, url, json=body)
        assert answer.status_code == 404, f"{method} {url}: {answer.text}"
        answers.append(answer.text.replace(given, ""))
    assert answers[0] == answers[1]


def test_no_list_and_no_body_leads_to_anothers_video(tenants: Tenants, finished: str) -> None:
    other = tenants["other"]
    mine = other.post("/v1/videos", json=BODY).json()["id"]
    assert [video["id"] for video in other.get("/v1/videos").json()["data"]] == [mine]
    assert refused(other.get(f"/v1/videos?after={finished}"), 404)["code"] == "not_found"
    fields = {"prompt": "x", "video[id]": finished}
    for path in ("/v1/videos/edits", "/v1/videos/extensions"):
        assert refused(other.post(path, data=fields), 404)["code"] == "not_found"
    assert mine not in tenants["acme"].get("/v1/videos").text
    assert other.delete(f"/v1/videos/{mine}").json()["deleted"] is True


def test_a_realtime_session_is_its_tenants(tenants: Tenants, finished: str) -> None:
    """With the key in a subprotocol, as browsers send it, and in the header."""
    url = tenants.server.url.replace("http", "ws") + "/v1/realtime/video"
    realtime, wrong = Subprotocol("realtime"), Subprotocol("openai-insecure-api-key.wrong")
    for protocols in (None, [realtime], [realtime, wrong]):
        with pytest.raises(InvalidStatus) as raised, connect(url, subprotocols=protocols):
            pass
        assert raised.value.response.status_code == 401
    offered = [Subprotocol(name) for name in ("realtime", f"{KEY_PROTOCOL}{tenants.keys['acme']}")]
    with connect(url, subprotocols=offered) as socket:
        assert socket.subprotocol == "realtime"
        client = RealtimeClient(socket)
        session = client.start(num_frames=33 * 40)
        assert tenants["acme"].get(f"/v1/videos/{session}").status_code == 200
        key = {"Authorization": f"Bearer {tenants.keys['other']}"}
        with connect(url, additional_headers=key) as another:
            for video_id in (session, finished):
                told = RealtimeClient(another).ask("session.resume", session_id=video_id)
                assert (told["type"], told["code"]) == ("error", "not_found")
    assert tenants["other"].get(f"/v1/videos/{session}").status_code == 404
    assert tenants["acme"].delete(f"/v1/videos/{session}").json()["deleted"] is True


def test_tiers_and_sizes_are_those_of_the_tenant(tenants: Tenants, finished: str) -> None:
    small = tenants["small"]
    error = refused(small.post("/v1/videos", json=BODY | {"service_tier": "priority"}), 403)
    assert (error["code"], error["param"]) == ("tier_not_allowed", "service_tier")
    assert error["type"] == "permission_error"
    assert error["message"].endswith("tenant small may use: flex")
    error = refused(small.post("/v1/videos", json=BODY | {"size": "128x64"}), 400)
    assert (error["code"], error["param"]) == ("invalid_size", "size")
    assert error["message"].endswith("tenant small may use: 64x64")
    assert small.post("/v1/videos/sync", json=BODY).status_code == 200  # in its own tier
    for tier in ("priority", "default", "flex"):
        answer = tenants["acme"].post("/v1/videos", json=BODY | {"service_tier": tier})
        assert answer.status_code == 200
    assert finished


def test_adapters_are_those_of_the_tenant(tenants: Tenants) -> None:
    painter, other = tenants["painter"], tenants["acme"]

    def ids(client: httpx.Client) -> set[str]:
        return {model["id"] for model in client.get("/v1/models").json()["data"]}

    assert (ids(painter), ids(other)) == ({"nano", "style"}, {"nano"})
    assert other.get("/v1/models/style").status_code == 404
    video = painter.post("/v1/videos", json=BODY | {"lora": "style"}).json()
    assert video["model"] == "nano"
    wrong: list[tuple[httpx.Client, dict[str, Any], str]] = [
        (painter, {"lora": "secret"}, "expected one of: style"),
        (painter, {"model": "secret"}, "expected one of: style"),
        (other, {"lora": "style"}, "no adapter is offered"),
        (other, {"model": "style"}, "no adapter is offered"),
    ]
    for client, fields, message in wrong:
        error = refused(client.post("/v1/videos", json=BODY | fields), 404)
        assert (error["code"], error["param"]) == ("lora_not_found", "lora")
        assert message in error["message"]


def test_an_adapter_that_was_withdrawn_makes_no_more_videos(tenants: Tenants) -> None:
    painter, file = tenants["painter"], tenants.server.folder / "tenants.toml"
    body = BODY | {"lora": "style"}
    video = painter.post("/v1/videos/sync", json=body).headers["x-video-id"]
    remix = {"prompt": "a cat"}
    assert painter.post(f"/v1/videos/{video}/remix", json=remix).status_code == 200
    file.write_text(LIMITS.replace('loras = ["style", "missing"]', "loras = []"))
    tenants.server.process.send_signal(signal.SIGHUP)
    until(lambda: painter.post("/v1/videos", json=body).status_code == 404)
    forks = {"prompts": ["a cat"], "seconds": 2}
    for path, fields in ((f"/v1/videos/{video}/remix", remix), (f"/v1/videos/{video}/fork", forks)):
        error = refused(painter.post(path, json=fields), 404)
        assert error["message"].startswith("the LoRA adapter of this video is no longer offered")
    file.write_text(LIMITS)
    tenants.server.process.send_signal(signal.SIGHUP)
    until(lambda: painter.post("/v1/videos", json=body).status_code == 200)


def test_a_batch_goes_in_a_tier_that_its_tenant_may_use(tenants: Tenants) -> None:
    steady = tenants["steady"]
    _, batch = start_batch(steady, BODY, BODY | {"service_tier": "flex"})
    until(lambda: steady.get(f"/v1/batches/{batch}").json()["status"] == "completed")
    told = steady.get(f"/v1/batches/{batch}").json()
    assert told["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    error = json.loads(steady.get(f"/v1/files/{told['error_file_id']}/content").text)
    assert (error["custom_id"], error["error"]["code"]) == ("1", "tier_not_allowed")
    assert error["response"]["status_code"] == 403


@pytest.mark.parametrize(
    ("name", "what"),
    [("none", "0 sessions (limit 0)"), ("later", "0 waiting sessions (limit 0)")],
)
def test_quotas_of_sessions_are_429_with_retry_after(
    tenants: Tenants, name: str, what: str
) -> None:
    answer = tenants[name].post("/v1/videos", json=BODY)
    error = refused(answer, 429)
    assert (error["code"], error["type"]) == ("tenant_quota", "rate_limit_error")
    assert what in error["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert "x-should-retry" not in answer.headers
    assert tenants[name].get("/v1/videos").json()["data"] == []


def test_a_days_frames_are_shared_out_exactly(tenants: Tenants) -> None:
    """Many concurrent requests, extensions included, cannot exceed the limit together."""
    counted = tenants["counted"]
    never = refused(counted.post("/v1/videos", json=BODY | {"num_frames": 101}), 400)
    assert never["param"] == "num_frames"
    first = counted.post("/v1/videos/sync", json=BODY).headers["x-video-id"]
    more = {"prompt": "x", "video[id]": first, "seconds": "1.375"}  # 33 frames
    with ThreadPoolExecutor(6) as threads:
        answers = [
            *threads.map(lambda _: counted.post("/v1/videos", json=BODY), range(3)),
            *threads.map(lambda _: counted.post("/v1/videos/extensions", data=more), range(3)),
        ]
    assert sorted(answer.status_code for answer in answers) == [200] * 2 + [429] * 4
    last = max(answers, key=lambda answer: answer.status_code)
    assert refused(last, 429)["code"] == "tenant_quota"
    midnight = datetime.combine(datetime.now(UTC).date() + timedelta(days=1), datetime.min.time())
    left = (midnight.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds()
    assert int(last.headers["retry-after"]) % 86400 == pytest.approx(left, abs=60)
    if left > 180:
        assert last.headers["x-should-retry"] == "false"
    usage = counted.get("/v1/usage").json()
    assert usage["totals"]["requests"] == 3
    assert usage["quota"]["frames_left"] == 1


def test_usage_is_that_of_the_sender(tenants: Tenants, finished: str) -> None:
    assert finished
    today = datetime.now(UTC).date()
    usage = tenants["acme"].get("/v1/usage").json()
    assert (usage["object"], usage["tenant"]) == ("usage", "acme")
    assert usage["totals"]["frames"] >= 40
    assert usage["totals"]["device_seconds"] > 0
    for name in ("requests", "frames", "device_seconds"):
        assert usage["totals"][name] == pytest.approx(sum(day[name] for day in usage["days"]))
    assert date.fromisoformat(usage["end_date"]) - date.fromisoformat(
        usage["start_date"]
    ) == timedelta(days=29)
    before = (today - timedelta(days=9)).isoformat()
    empty = tenants["acme"].get(f"/v1/usage?start_date={before}&end_date={before}").json()
    assert (empty["days"], empty["totals"]["frames"]) == ([], 0)
    assert tenants["none"].get("/v1/usage").json()["totals"]["requests"] == 0


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("start_date=yesterday", "start_date"),
        ("end_date=2026-13-01", "end_date"),
        ("start_date=2026-02-02&end_date=2026-02-01", "start_date"),
        ("start_date=2020-01-01&end_date=2026-02-01", "start_date"),
        ("end_date=0001-01-01&start_date=", "start_date"),
    ],
)
def test_wrong_dates_are_told(tenants: Tenants, query: str, param: str) -> None:
    error = refused(tenants["acme"].get(f"/v1/usage?{query}"), 400)
    assert (error["code"], error["param"]) == ("invalid_value", param)


def test_keys_come_and_go_while_the_server_runs(
    tenants: Tenants, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ["--data-dir", str(tenants.server.folder)]
    assert main(["keys", "create", "--tenant", "acme", *folder]) == 0
    told = capsys.readouterr()
    headers = {"authorization": f"Bearer {told.out.strip()}"}
    until(lambda: tenants.anonymous.get("/v1/models", headers=headers).status_code == 200)
    assert main(["keys", "revoke", told.err.split()[0], *folder]) == 0
    until(lambda: tenants.anonymous.get("/v1/models", headers=headers).status_code == 401)
    capsys.readouterr()


def test_at_a_signal_the_file_is_read_again(tenants: Tenants) -> None:
    file = tenants.server.folder / "tenants.toml"

    def quota() -> Any:
        return tenants["reloaded"].get("/v1/usage").json()["quota"]["frames_per_day"]

    assert quota() == 100
    file.write_text(LIMITS + "tiers = ['vip']\n")
    tenants.server.process.send_signal(signal.SIGHUP)
    until(lambda: "tenants are not reloaded" in tenants.log)
    assert "[tenants.reloaded]: got tiers = ['vip']: invalid enum value 'vip'" in tenants.log
    assert quota() == 100
    file.write_text(LIMITS.replace("[tenants.reloaded]\nframes_per_day = 100", ""))
    tenants.server.process.send_signal(signal.SIGHUP)
    until(lambda: quota() is None)
    assert tenants["small"].get("/health").status_code == 200


def test_the_log_tells_neither_keys_nor_prompts(tenants: Tenants, finished: str) -> None:
    assert finished
    tenants["acme"].post("/v1/videos", content=f'{{"prompt": "{SECRET_PROMPT}", '.encode())
    for text in ("sk-helios-", SECRET_PROMPT, *tenants.keys.values()):
        assert text not in tenants.log
