"""Fuzzing: valid and invalid requests that are generated from the served description.

Nothing fails or hangs, and one tenant sees nothing of another.
"""

import random
import string
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2 as httpx
import hypothesis
import hypothesis.strategies as st
import pytest
import requests
import schemathesis
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response

from tests.support.server import running_server
from tests.support.tries import tries

pytestmark = pytest.mark.slow

SECRET = "the-prompt-of-another"
AIM = tries(1500, 5000)
"""Total number of requests."""
WITH_BODY, WITHOUT_BODY = tries(200, 500), tries(48, 120)
"""Number of requests per operation."""
PATIENCE = 30.0
"""Timeout of a response, in seconds."""
MAY_FAIL = (501, 503, 507)
STREAMING = ("/sync", "/stream", "/events", "/hls/")
"""Streaming routes last as long as their video, so a few requests of each are written by hand."""
MOST = {"width": 64, "height": 64, "num_frames": 33, "seconds": 1, "fps": 30}
MOST_STEPS = 2
PARTICULAR = ("model", "width", "height", "steps", "pyramid_num_inference_steps_list", "switches")
"""Fields of which few values fit a model. Half of the requests leave them out."""
PLACES = {"video_id": "/v1/videos", "file_id": "/v1/files", "batch_id": "/v1/batches"}


class Owned:
    """The resources of a tenant, by the name of their id in the description."""

    def __init__(self, http: httpx.Client, prompt: str) -> None:
        self.http = http
        self.prompt = prompt
        line = '{"custom_id": "1", "method": "POST", "url": "/v1/videos", "body": {}}'
        upload = {"file": (f"{prompt}.jsonl", line), "purpose": (None, "batch")}
        file = self.made("/v1/files", files=upload)
        batch = self.made(
            "/v1/batches",
            json={
                "input_file_id": file,
                "endpoint": "/v1/videos",
                "completion_window": "24h",
                "metadata": {"note": prompt},
            },
        )
        self.ids = {"video_id": self.videos(), "file_id": [file], "batch_id": [batch]}

    def videos(self) -> list[str]:
        """A completed video, and a cancelled one."""
        body = {"prompt": self.prompt, "size": "64x64", "num_frames": 33, "seed": 1}
        done, ended = self.made("/v1/videos", json=body), self.made("/v1/videos", json=body)
        self.http.post(f"/v1/videos/{ended}/cancel").raise_for_status()
        self.wait(f"/v1/videos/{done}")
        return [done, ended]

    def renew(self) -> None:
        """Create videos in place of deleted ones."""
        paths = [f"/v1/videos/{name}" for name in self.ids["video_id"]]
        if not all(self.http.get(path).is_success for path in paths):
            self.ids["video_id"] = self.videos()

    def made(self, path: str, **sent: Any) -> str:
        """Create a resource, and return its id. Retries while the queue is full."""
        while (answer := self.http.post(path, **sent)).status_code == 503:
            time.sleep(0.5)
        name: str = answer.raise_for_status().json()["id"]
        return name

    def wait(self, path: str) -> None:
        """Until it is over."""
        while self.http.get(path).json()["status"] not in ("completed", "failed"):
            time.sleep(0.1)

    def all(self) -> list[str]:
        return [name for names in self.ids.values() for name in names]

    def seen(self) -> list[Any]:
        """Return the owner's view of all resources."""
        paths = [f"{PLACES[kind]}/{name}" for kind, names in self.ids.items() for name in names]
        paths += [f"/v1/files/{self.ids['file_id'][0]}/content"]
        answers = [self.http.get(path).raise_for_status() for path in paths]
        return [answer.text for answer in answers]


class Fuzz:
    """A server with two tenants: `mine` sends requests, and `others` must not be affected."""

    def __init__(
        self, url: str, key: str, session: requests.Session, mine: Owned, others: Owned
    ) -> None:
        self.url = url
        self.key = key
        self.mine = mine
        self.others = others
        self.before = others.seen()
        self.session = session
        self.statuses: Counter[int] = Counter()

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def check(self, answer: Response | requests.Response, documented: set[int]) -> None:
        """Check a response. Raises AssertionError, which names the request."""
        status = answer.status_code
        self.statuses[status] += 1
        assert status < 500 or status in MAY_FAIL, told(answer)
        assert status in documented, told(answer)
        if status >= 400:
            error = answer.json()["error"]
            assert error.keys() == {"message", "type", "param", "code"}, told(answer)
        else:  # an error repeats the id that it was given
            names = [name.encode() for name in self.others.all()]
            assert not any(name in answer.content for name in names), told(answer)
        assert SECRET.encode() not in answer.content, told(answer)
        assert answer.headers["x-request-id"]


def told(answer: Response | requests.Response) -> str:
    sent = answer.request
    return f"{sent.method} {sent.url} {sent.body!r}: {answer.status_code} {answer.content[:500]!r}"


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzz]:
    folder = tmp_path_factory.mktemp("fuzz")
    keys = {name: key_of(folder, name) for name in ("alice", "bob")}
    with (
        running_server(folder, "nano", "--device", "cpu", "--max-queued", "50") as server,
        client(server.url, keys["alice"]) as alice,
        client(server.url, keys["bob"]) as bob,
        requests.Session() as session,
    ):
        others, mine = Owned(alice, SECRET), Owned(bob, "waves")
        others.wait(f"/v1/batches/{others.ids['batch_id'][0]}")
        yield Fuzz(server.url, keys["bob"], session, mine, others)


def client(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=120, headers={"Authorization": f"Bearer {key}"})


def key_of(folder: Path, tenant: str) -> str:
    command = [sys.executable, "-m", "helios_serve", "keys", "create"]
    flags = ["--tenant", tenant, "--data-dir", str(folder)]
    made = subprocess.run([*command, *flags], check=True, capture_output=True, text=True)
    return made.stdout.strip()


def test_generated_requests_break_nothing(fuzz: Fuzz) -> None:
    """With more requests for operations that have a body, or an id in the path."""
    document = requests.get(
        f"{fuzz.url}/openapi.json", headers=fuzz.headers, timeout=PATIENCE
    ).json()
    schema = schemathesis.openapi.from_dict(document)
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        if any(part in operation.path for part in STREAMING):
            continue
        described = document["paths"][operation.path][operation.method]
        documented = {int(status) for status in described["responses"]} | {400, 404, 405}
        fuzz.mine.renew()
        run(fuzz, operation, described, documented)
    print(dict(sorted(fuzz.statuses.items())))
    assert fuzz.statuses.total() >= AIM
    assert fuzz.statuses[200] > AIM / 10
    assert fuzz.statuses[400] > AIM / 10
    assert fuzz.others.seen() == fuzz.before


def run(fuzz: Fuzz, operation: Any, described: dict[str, Any], documented: set[int]) -> None:
    """Send the requests of one operation, which depend only on the description."""
    has_body = "requestBody" in described
    is_simple = not has_body and not described["parameters"]
    count = 1 if is_simple else WITH_BODY if has_body else WITHOUT_BODY

    @hypothesis.seed(1)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=cases(operation, fuzz, is_simple=is_simple))
    def ask(case: Case[Any]) -> None:
        answer = case.call(
            base_url=fuzz.url, session=fuzz.session, headers=fuzz.headers, timeout=PATIENCE
        )
        fuzz.check(answer, documented)

    ask()


@st.composite
def cases(draw: st.DrawFn, operation: Any, fuzz: Fuzz, *, is_simple: bool) -> Case[Any]:
    """Draw a request that is valid or nearly so, with ids of both tenants."""
    modes = [GenerationMode.POSITIVE] if is_simple else list(GenerationMode)
    case: Case[Any] = draw(operation.as_strategy(generation_mode=draw(st.sampled_from(modes))))
    ids = st.sampled_from(fuzz.mine.all() + fuzz.others.all())
    for kind in case.path_parameters or {}:
        if kind in fuzz.mine.ids and draw(st.integers(0, 2)):
            known = fuzz.mine.ids[kind] + fuzz.others.ids[kind]
            case.path_parameters[kind] = draw(st.sampled_from(known))
    if case.query and "after" in case.query and draw(st.booleans()):
        case.query["after"] = draw(ids)
    if isinstance(case.body, dict):
        named: dict[str, Any] = {"input_file_id": draw(ids), "video": {"id": draw(ids)}}
        for name, value in named.items():
            if name in case.body and draw(st.booleans()):
                case.body[name] = value
        if operation.path in ("/v1/videos", "/v1/videos/edits", "/v1/videos/extensions"):
            is_new = "extensions" not in operation.path
            cap(case.body, is_new=is_new)
            if is_new and draw(st.booleans()):
                case.body = {k: v for k, v in case.body.items() if k not in PARTICULAR}
                case.body["size"] = "64x64"
    return case


def cap(body: dict[str, Any], *, is_new: bool) -> None:
    """Limit the requested videos: a long one would occupy the worker for the whole test.

    Invalid values and all types are kept.
    """
    if is_new:
        body.setdefault("size", "64x64")
        if "seconds" not in body:
            body.setdefault("num_frames", 33)
    else:
        body.setdefault("seconds", 1)
    if isinstance(body.get("size"), str) and body["size"].partition("x")[0].isdecimal():
        body["size"] = "64x64"
    for name, most in MOST.items():
        if name in body:
            body[name] = at_most(body[name], most)
    for name in ("steps", "pyramid_num_inference_steps_list"):
        if isinstance(body.get(name), list):
            body[name] = [at_most(value, MOST_STEPS) for value in body[name]]
    if "num_inference_steps" in body:
        body["num_inference_steps"] = at_most(body["num_inference_steps"], MOST_STEPS)


def at_most(value: Any, most: int) -> Any:
    """Return the value, limited to `most`. Numbers may be text."""
    if isinstance(value, bool):
        return value
    try:
        is_over = float(value) > most
    except (TypeError, ValueError, OverflowError):
        return value
    return type(value)(most) if is_over else value


def test_streams_break_at_nothing_either(fuzz: Fuzz) -> None:
    """With own, others' and unknown videos, and all kinds of values for every parameter."""
    generator = random.Random(1)
    fuzz.mine.renew()
    finished, ended = fuzz.mine.ids["video_id"]
    names = [finished, ended, *fuzz.others.ids["video_id"], "video_none", *odd(generator, 5)]
    values = ["0", "-1", "1", "+0", "00", "1e3", "٣", "", "9" * 5000, *odd(generator, 12)]
    statuses: Counter[int] = Counter()

    def ask(method: str, path: str, documented: set[int], **sent: Any) -> None:
        answer = fuzz.session.request(
            method,
            f"{fuzz.url}{path}",
            headers=fuzz.headers | sent.pop("headers", {}),
            timeout=PATIENCE,
            **sent,
        )
        fuzz.check(answer, documented)
        statuses[answer.status_code] += 1

    for value in values:
        quoted = quote(value, safe="")
        for path in ("videos", "files", "batches"):
            ask("GET", f"/v1/{path}?limit={quoted}", {200, 400})
    for name in names:
        video = f"/v1/videos/{quote(name, safe='')}"
        for value in values:
            quoted = quote(value, safe="")
            for kind in ("stream", "events"):
                ask("GET", f"{video}/{kind}?from_chunk={quoted}", {200, 204, 400, 404})
            if value.isascii() and value.isprintable():
                ask(
                    "GET", f"{video}/events", {200, 204, 400, 404}, headers={"Last-Event-ID": value}
                )
            ask("GET", f"{video}/hls/{quoted}.m4s", {200, 404})
        for path in ("index.m3u8", "init.mp4"):
            ask("GET", f"{video}/hls/{path}", {200, 404, 409})
    body: Any
    for body in ({}, [], 1, None, {"prompt": 1}, {"prompt": "waves", "size": "1x1"}):
        ask("POST", "/v1/videos/sync", {400}, json=body)
    for data in (
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        *(text.encode() for text in odd(generator, 9)),
    ):
        ask("POST", "/v1/videos/sync", {400, 415}, data=data)
    short = {"prompt": "waves", "size": "64x64", "num_frames": 33}
    ask("POST", "/v1/videos/sync", {200, 503}, json=short)
    print(dict(sorted(statuses.items())))
    assert statuses[200] > 10
    assert fuzz.others.seen() == fuzz.before


def odd(generator: random.Random, count: int) -> list[str]:
    """Return texts of all kinds of characters."""
    letters = string.printable + "äß漢😀\u202e\x00\x7f/%#?"
    return ["".join(generator.choices(letters, k=generator.randrange(1, 30))) for _ in range(count)]
