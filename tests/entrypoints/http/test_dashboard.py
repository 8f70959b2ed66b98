"""The queries of docs/grafana.json, answered by a real Prometheus."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import httpx2 as httpx
import pytest

from helios_serve.metrics import Metrics
from tests.support.prometheus import Prometheus, running_prometheus
from tests.support.server import Server, running_server

DASHBOARD = Path(__file__).parents[3] / "docs/grafana.json"
NAME = re.compile(r"\b(?:helios:|http_|process_)\w+")
SUFFIXES = ("_total", "_bucket", "_sum", "_count")
VARIABLES = {"$__rate_interval": "20s", "$model": ".*"}
"""Values of Grafana's variables in the queries."""
PATIENCE = 120.0


def panels() -> list[dict[str, Any]]:
    found = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def queries() -> dict[str, str]:
    """Return the queries, by panel and legend."""
    return {
        f"{panel['title']}: {target['legendFormat']}": target["expr"]
        for panel in panels()
        for target in panel["targets"]
    }


def plain(name: str) -> str:
    return next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), name)


def test_every_metric_of_our_own_is_on_the_dashboard_and_no_other() -> None:
    asked = {name for query in queries().values() for name in NAME.findall(query)}
    known = {family.name for family in Metrics().registry.collect()}
    assert {plain(name) for name in asked} <= known
    ours = {name for name in known if name.startswith("helios:")}
    assert {plain(name) for name in asked if name.startswith("helios:")} == ours


def test_panels_have_texts_and_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in panels()]
    cells = [
        (x, y)
        for at in places
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")


@contextmanager
def load(server: Server) -> Iterator[None]:
    """Run three clients against a server in which one video may wait. All prompts are new."""
    stopping, numbers = Event(), count()
    body = {"size": "64x64", "num_frames": 66, "steps": [1, 1, 1]}

    def client() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            while not stopping.is_set():
                prompt = f"waves {next(numbers)}"
                answer = http.post("/v1/videos/sync", json=body | {"prompt": prompt})
                assert answer.status_code in (200, 503)
                stopping.wait(0.2)

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(client) for _ in range(3)]
        try:
            yield
        finally:
            stopping.set()
        for each in clients:
            each.result()


def wait_for(prometheus: Prometheus, query: str, deadline: float) -> list[float]:
    while not (values := prometheus.query(query)):
        if time.monotonic() > deadline:
            return []
        time.sleep(0.5)
    return values


@pytest.mark.slow
def test_prometheus_answers_every_query_under_load(tmp_path: Path) -> None:
    """A worker dies, and videos are rejected, so that every metric has values."""
    flags = ("nano", "--device", "cpu", "--max-queued", "1", "--max-num-seqs", "1")
    with (
        running_server(tmp_path / "data", *flags) as server,
        running_prometheus(tmp_path / "prometheus", server.url.partition("//")[2]) as prometheus,
        load(server),
    ):
        deadline = time.monotonic() + PATIENCE
        assert wait_for(prometheus, "helios:frames_generated_total > 0", deadline)
        os.kill(server.workers[0], signal.SIGKILL)
        found = {}
        for title, query in queries().items():
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            found[title] = wait_for(prometheus, query, deadline)
            print(f"{title:55} {found[title]}")
        assert all(found.values()), [title for title, values in found.items() if not values]
        assert max(found["Worker deaths: {{model_name}}"]) > 0
        assert max(found["Frames generated: {{model_name}}"]) > 0
        assert min(found["Time to first chunk: p50"]) > 0
