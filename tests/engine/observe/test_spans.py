"""Spans as a collector gets them, of an engine and of a whole server."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2 as httpx
import msgspec
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from helios_serve.engine.observe.step_spans import StepSpans
from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.errors import InvalidRequestError
from helios_serve.spans import Spans, open_spans
from helios_serve.store.video_store import VideoStore
from tests.support.api import wait_until_ready
from tests.support.collector import Collector, attributes_of, running_collector
from tests.support.engines import core, make, request, run
from tests.support.server import running_server

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as started:
        yield started


@pytest.fixture
def spans(collector: Collector) -> Iterator[Spans]:
    with closing(open_spans(collector.url)) as opened:
        yield opened


def make_videos(spans: Spans, folder: Path, *traceparents: str | None) -> AsyncEngine:
    """One video of two chunks for each trace, made by an engine with a store."""
    own = core()
    own.observers.add(StepSpans(spans, own.decode_stage.assemblers, clock=own.clock))

    async def main() -> AsyncEngine:
        with closing(VideoStore(folder)) as store:
            async with AsyncEngine({"nano": own}, store, spans=spans) as engine:
                for number, traceparent in enumerate(traceparents):
                    wanted = request(f"video-{number}", 66)
                    await make(engine, msgspec.structs.replace(wanted, traceparent=traceparent))
                return engine

    return run(main())


def test_a_video_has_a_span_for_every_stage_of_every_chunk(
    collector: Collector, spans: Spans, tmp_path: Path
) -> None:
    make_videos(spans, tmp_path / "store", f"00-{TRACE}-{PARENT}-01")
    spans.close()
    found = collector.spans
    assert Counter(span.name for span in found) == {
        "queue": 1,
        "encode": 1,
        "denoise": 2,
        "decode": 2,
        "commit": 2,
    }
    assert {(span.trace_id.hex(), span.parent_span_id.hex()) for span in found} == {(TRACE, PARENT)}
    by_name = {(span.name, attributes_of(span).get("helios.chunk")): span for span in found}
    for chunk in (0, 1):
        denoise, decode = by_name["denoise", chunk], by_name["decode", chunk]
        assert len(denoise.events) == 3  # one step a stage
        assert denoise.start_time_unix_nano < denoise.end_time_unix_nano
        assert decode.end_time_unix_nano <= by_name["commit", chunk].end_time_unix_nano
        assert attributes_of(decode)["helios.video.id"] == "video-0"
    queue = by_name["queue", None]
    assert queue.start_time_unix_nano <= by_name["encode", None].end_time_unix_nano
    assert queue.end_time_unix_nano <= by_name["denoise", 0].end_time_unix_nano


def test_a_video_without_a_trace_or_that_is_not_sampled_has_no_spans(
    collector: Collector, spans: Spans, tmp_path: Path
) -> None:
    make_videos(spans, tmp_path / "store", None, f"00-{TRACE}-{PARENT}-00")
    spans.close()
    assert collector.spans == []


def test_a_collector_that_is_away_disturbs_no_video(tmp_path: Path) -> None:
    spans = open_spans("http://127.0.0.1:9")
    engine = make_videos(spans, tmp_path / "store", f"00-{TRACE}-{PARENT}-01")
    assert engine.spans is spans


@pytest.mark.parametrize("endpoint", ["localhost:4318", "ftp://a", "http://", ""])
def test_an_endpoint_is_a_url(endpoint: str) -> None:
    with pytest.raises(InvalidRequestError, match="expected a URL such as http://localhost:4318"):
        open_spans(endpoint)


@pytest.mark.slow
def test_a_trace_leads_from_the_client_through_the_server_and_a_restart(
    collector: Collector, tmp_path: Path
) -> None:
    flags = ("nano", "--device", "cpu", "--otlp-traces-endpoint", collector.url)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    body = {"prompt": "a secret prompt", "size": "64x64", "num_frames": 3300}
    with (
        running_server(tmp_path / "data", *flags) as server,
        httpx.Client(base_url=server.url, timeout=120) as http,
    ):
        wait_until_ready(http)
        video = http.post("/v1/videos", json=body, headers=headers).json()["id"]
        before = collector.wait_for(lambda spans: "commit" in names(spans))
        server.kill()
    edge = next(span for span in before if span.name == "POST /v1/videos")
    assert (edge.trace_id.hex(), edge.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes_of(edge)["http.response.status_code"] == 200
    accept = next(span for span in before if span.name == "accept")
    assert accept.parent_span_id == edge.span_id
    commit = next(span for span in before if span.name == "commit")
    assert (commit.trace_id, commit.parent_span_id) == (edge.trace_id, accept.span_id)
    collector.spans.clear()
    with running_server(tmp_path / "data", *flags) as server:
        after = collector.wait_for(lambda spans: "commit" in names(spans))
        httpx.post(f"{server.url}/v1/videos/{video}/cancel", timeout=60)
    assert {span.trace_id for span in after} == {edge.trace_id}
    assert not any(b"secret" in span.SerializeToString() for span in (*before, *after))


def names(spans: list[Span]) -> set[str]:
    return {span.name for span in spans}
