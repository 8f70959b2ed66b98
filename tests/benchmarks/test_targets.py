"""Targets record what a scripted server does, and when, over real sockets."""

import asyncio
import time
from typing import Any

import msgspec
import pytest

from helios_serve.benchmarks.load.clock import LoadClock
from helios_serve.benchmarks.load.generator import LoadGenerator
from helios_serve.benchmarks.load.request import SessionRequest
from helios_serve.benchmarks.load.tenants import LoadTenant, LoadTenants
from helios_serve.benchmarks.load.workload import Workload
from helios_serve.benchmarks.measure.record import SessionRecord
from helios_serve.benchmarks.runner import target_of
from helios_serve.benchmarks.targets.server import choose_timing, connected
from helios_serve.errors import HeliosError, InvalidRequestError
from helios_serve.options.benchmarks import LoadOptions, TargetOptions
from tests.support.scripted_server import ScriptedServer

REQUEST = SessionRequest(prompt="a", width=64, height=64, num_frames=99, steps=(2, 2, 2), seed=7)
REALTIME: dict[str, Any] = {"endpoint": "/v1/realtime/video"}
TENANTS = LoadTenants((LoadTenant(name="default", key="sk-1"),))


def load_server(
    script: ScriptedServer, request: SessionRequest = REQUEST, num: int = 1, **options: Any
) -> tuple[list[SessionRecord], float]:
    """Run `num` equal sessions at once; also returns the zero of their times."""

    async def run() -> tuple[list[SessionRecord], float]:
        async with script.running() as url:
            given = msgspec.convert({"base_url": url} | options, TargetOptions)
            async with connected(given, TENANTS) as server:
                timing = choose_timing(given, await server.wait_until_ready("default"))
                clock = LoadClock()
                workload = Workload((request,) * num, TENANTS, LoadOptions())
                load = LoadGenerator(workload, target_of(server, timing, clock), clock, timeout=30)
                await load.run()
                zero = time.perf_counter() - clock.now()
                return load.records, zero

    return asyncio.run(run())


@pytest.mark.parametrize("options", [{"timing": "media"}, {"timing": "events"}, REALTIME])
def test_a_chunk_has_come_when_its_last_byte_has(options: dict[str, Any]) -> None:
    """Not before the server wrote it, and soon after, even on a busy machine."""
    script = ScriptedServer()
    records, zero = load_server(script, num=3, **options)
    for record in records:
        assert record.outcome == "completed", record.error
        assert record.video_id is not None
        assert [chunk.frames for chunk in record.chunks] == [33, 33, 33]
        written = [at - zero for at in script.written[record.video_id]]
        for chunk, at in zip(record.chunks, written, strict=True):
            assert at <= chunk.at < at + 10
        assert record.sent is not None
        assert record.accepted is not None
        assert record.intended <= record.sent <= record.accepted <= record.chunks[0].at


def test_a_poll_interval_contains_the_true_end() -> None:
    script = ScriptedServer((0.33,))
    records, zero = load_server(script, num=20, timing="poll", poll_interval=0.05)
    for record in records:
        assert record.polled is not None
        assert record.video_id is not None
        assert record.polled[0] <= script.ended[record.video_id] - zero <= record.polled[1]
        assert record.chunks == []
        assert record.deliveries == [(record.polled[1], 99, 0)]


@pytest.mark.parametrize(
    ("routes", "timings"),
    [
        (("stream", "events"), ("media", "events", "poll")),
        (("events",), ("events", "poll")),
        ((), ("poll",)),
    ],
)
def test_the_best_timing_that_the_server_has_is_used(
    routes: tuple[str, ...], timings: tuple[str, ...]
) -> None:
    async def probe() -> tuple[str, ...]:
        async with (
            ScriptedServer(routes=routes).running() as url,
            connected(TargetOptions(base_url=url), TENANTS) as server,
        ):
            found = await server.wait_until_ready("default")
            assert choose_timing(server.options, found) == timings[0]
            if "media" not in timings:
                with pytest.raises(InvalidRequestError, match="expected one that the server"):
                    choose_timing(TargetOptions(timing="media"), found)
            return found.timings

    assert asyncio.run(probe()) == timings


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_has_the_servers_code(status: int) -> None:
    body = {"error": {"code": "queue_full", "message": "queue is full", "type": "t"}}
    records, _ = load_server(ScriptedServer(refuse=(status, body)))
    assert (records[0].outcome, records[0].code) == ("refused", "queue_full")
    assert records[0].error == f"HTTP {status}: queue is full"


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, {"error": {"code": "invalid_size", "message": "m"}}, "invalid_size"),
        (500, {"detail": "m"}, "500"),
        (422, {}, "422"),
    ],
)
def test_other_errors_are_failures(status: int, body: dict[str, Any], code: str) -> None:
    records, _ = load_server(ScriptedServer(refuse=(status, body)))
    assert (records[0].outcome, records[0].code) == ("failed", code)


def test_a_live_session_is_refused_before_it_starts() -> None:
    full = {"code": "realtime_capacity", "message": "no room"}
    records, _ = load_server(ScriptedServer(refuse=(0, full)), **REALTIME)
    assert (records[0].outcome, records[0].code) == ("refused", "realtime_capacity")
    wrong = {"code": "invalid_value", "message": "no"}
    records, _ = load_server(ScriptedServer(refuse=(0, wrong)), **REALTIME)
    assert (records[0].outcome, records[0].code) == ("failed", "invalid_value")


@pytest.mark.parametrize("options", [{"timing": "media"}, {"timing": "events"}])
def test_a_video_that_fails_on_its_way_is_a_failure(options: dict[str, Any]) -> None:
    records, _ = load_server(ScriptedServer(fails_after=2), **options)
    assert (records[0].outcome, records[0].code) == ("failed", "broken")
    assert len(records[0].chunks) == 2


def test_a_live_session_that_ends_early_is_a_failure() -> None:
    records, _ = load_server(ScriptedServer(fails_after=2), **REALTIME)
    assert (records[0].outcome, records[0].code) == ("failed", "incomplete")


@pytest.mark.parametrize("options", [{"timing": "media"}, {"timing": "events"}, REALTIME])
def test_a_connection_that_breaks_is_a_failure(options: dict[str, Any]) -> None:
    records, _ = load_server(ScriptedServer(breaks_after=1), **options)
    assert (records[0].outcome, records[0].code) == ("failed", "connection")
    assert len(records[0].chunks) == 1


@pytest.mark.parametrize("options", [{"timing": "media"}, REALTIME])
def test_a_prompt_switch_is_seen_in_the_chunk_that_it_affects(options: dict[str, Any]) -> None:
    request = msgspec.structs.replace(REQUEST, switches=((20.0, "b"),))
    script = ScriptedServer((0.0, 0.0, 1.5))
    records, _ = load_server(script, request, **options)
    (switch,) = records[0].switches
    assert script.switched == ["b"]
    assert switch.sent >= 0.02
    assert switch.seen == records[0].chunks[2].at
    assert switch.chunk == 2


def test_a_client_that_leaves_tells_the_server() -> None:
    request = msgspec.structs.replace(REQUEST, stop_after_ms=1500.0)
    script = ScriptedServer((0.0, 30.0))
    records, _ = load_server(script, request)
    assert (records[0].outcome, records[0].code) == ("cancelled", "left")
    assert script.calls == ["/v1/videos/video_0/cancel"]
    script = ScriptedServer((0.0, 30.0))
    records, _ = load_server(script, request, **REALTIME)
    assert records[0].outcome == "cancelled"
    assert script.calls == ["session.stop"]


@pytest.mark.parametrize(
    ("backend", "body"),
    [
        (
            "helios",
            {"width": 64, "height": 64, "num_frames": 99, "fps": 24, "steps": [2, 2, 2], "seed": 7},
        ),
        (
            "sglang",
            {
                "size": "64x64",
                "num_frames": 99,
                "fps": 24,
                "seed": 7,
                "pyramid_num_inference_steps_list": [2, 2, 2],
            },
        ),
        (
            "vllm-omni",
            {
                "size": "64x64",
                "num_frames": "99",
                "fps": "24",
                "seed": "7",
                "num_inference_steps": "6",
                "extra_params": '{"is_enable_stage2":true,'
                '"pyramid_num_inference_steps_list":[2,2,2]}',
            },
        ),
        ("openai-videos", {"size": "64x64", "seconds": "4.125"}),
    ],
)
def test_each_backend_is_asked_in_its_dialect(backend: str, body: dict[str, Any]) -> None:
    script = ScriptedServer()
    extra: dict[str, Any] = {"model": "m", "extra_body": '{"user": "u"}', "header": ["x-a=b"]}
    records, _ = load_server(script, backend=backend, **extra)
    assert records[0].outcome == "completed", records[0].error
    assert script.bodies == [{"prompt": "a", "model": "m", "user": "u"} | body]
    assert script.headers[0]["authorization"] == "Bearer sk-1"
    assert script.headers[0]["x-a"] == "b"


def test_references_are_sent_as_data_urls() -> None:
    script = ScriptedServer()
    load_server(script, msgspec.structs.replace(REQUEST, task="i2v"))
    load_server(script, msgspec.structs.replace(REQUEST, task="v2v"))
    first, second = (body["input_reference"] for body in script.bodies)
    assert first["image_url"].startswith("data:image/png;base64,")
    assert second["video_url"].startswith("data:video/mp4;base64,")


def test_an_unreachable_server_is_one_error() -> None:
    async def wait() -> None:
        options = TargetOptions(base_url="http://127.0.0.1:1", ready_check_timeout_sec=0)
        async with connected(options, TENANTS) as server:
            await server.wait_until_ready("default")

    with pytest.raises(HeliosError, match="cannot reach http://127.0.0.1:1 .* set --base-url"):
        asyncio.run(wait())
