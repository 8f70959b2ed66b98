"""`helios-serve bench throughput` and `latency`: the engine alone, without HTTP and disk.

These are MLPerf's Offline and SingleStream scenarios.
"""

import argparse
import uuid
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec

from helios_serve.entrypoints.cli.bench.run import check_report, files_of, finish, run_loop
from helios_serve.entrypoints.cli.flags import (
    add_model_flags,
    add_options,
    add_worker_flags,
    read_flags,
    scheduling_config,
    worker_groups,
)
from helios_serve.errors import CapacityError, HeliosError, InvalidRequestError
from helios_serve.model_config import frames_of_chunk
from helios_serve.options.benchmarks import LoadOptions, ReportOptions, TargetOptions
from helios_serve.options.sampling import SamplingParams, default_size
from helios_serve.video_request import VideoRequest

if TYPE_CHECKING:
    from helios_serve.benchmarks.load.clock import LoadClock
    from helios_serve.benchmarks.load.request import SessionRequest
    from helios_serve.benchmarks.load.workload import Workload
    from helios_serve.benchmarks.measure.record import SessionRecord
    from helios_serve.benchmarks.runner import Measured
    from helios_serve.engine.requests.async_engine import AsyncEngine

EPILOG = """\
The engine runs in this process, with workers as for `serve`. Nothing is stored and nothing is sent;
chunks are decoded and encoded as MP4 segments.

example:
  helios-serve bench {name} --num-prompts 16 --width 128 --height 64 --num-frames 99
"""
TIMES = (
    "request_rate", "arrival", "burstiness", "burst_size", "rate_series", "ramp_up_strategy",
    "ramp_up_start_rps", "ramp_up_end_rps", "trace_speed", "users", "think_time",
    "max_concurrency", "duration", "tenants", "cancel_share", "switch_every", "task",
)  # fmt: skip
"""Load options that these scenarios set themselves, and that are therefore not flags."""
OFFLINE = "offline"


def add_benchmarks(benchmarks: Any) -> None:
    for name, text, run in (
        ("throughput", "time the engine with all sessions at once (offline)", throughput),
        ("latency", "time the engine with one session at a time (offline)", latency),
    ):
        parser = benchmarks.add_parser(
            name,
            help=text,
            epilog=EPILOG.format(name=name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(run=run)
        add_model_flags(parser)
        add_worker_flags(parser)
        add_options(parser.add_argument_group("load"), LoadOptions, exclude=TIMES)
        add_options(
            parser.add_argument_group("results"), ReportOptions, exclude=("slo_scale", "num_runs")
        )


def throughput(arguments: argparse.Namespace) -> int:
    """Give all sessions to the engine at once. Returns the exit status."""
    return measure(arguments, read_flags(arguments, LoadOptions))


def latency(arguments: argparse.Namespace) -> int:
    """Give one session after the other to the engine. Returns the exit status."""
    load = read_flags(arguments, LoadOptions)
    return measure(arguments, msgspec.structs.replace(load, users=1))


def measure(arguments: argparse.Namespace, load: LoadOptions) -> int:
    report = read_flags(arguments, ReportOptions)
    names = check_report(report)
    from helios_serve.benchmarks.load.workload import DEFAULT_SESSIONS, draw_workload

    if load.num_prompts is None and load.dataset_name != "trace":
        load = msgspec.structs.replace(load, num_prompts=DEFAULT_SESSIONS)
    workload = draw_workload(load)
    if load.users is None:  # a trace's times are not used
        at_once = (msgspec.structs.replace(each, timestamp=0.0) for each in workload.requests)
        workload = workload._replace(requests=tuple(at_once))
    files = files_of(report, arguments.benchmark, load, arguments.model)
    measured = run_loop(run_engine(arguments, workload, report))
    return finish(measured, names, files, endpoint_type=OFFLINE, backend=arguments.benchmark)


async def run_engine(
    arguments: argparse.Namespace, workload: "Workload", report: ReportOptions
) -> "Measured":
    """Start an engine, warm it up, and run the load on it."""
    from helios_serve.benchmarks.load.clock import LoadClock
    from helios_serve.benchmarks.runner import measure_target, warm_up
    from helios_serve.engine.launch import launch
    from helios_serve.engine.requests.async_engine import AsyncEngine

    core = launch(
        arguments.model,
        worker_groups(arguments, arguments.model),
        arguments.executor or ("ray" if arguments.ray_address else "local"),
        ray_address=arguments.ray_address,
        scheduling=scheduling_config(arguments),
    )
    options = TargetOptions(model=arguments.model)
    async with AsyncEngine({arguments.model: core}) as engine:
        await warm_up(workload, EngineTarget(engine, arguments.model, LoadClock()), options, report)
        clock = LoadClock()
        target = EngineTarget(engine, arguments.model, clock)
        return await measure_target(workload, target, clock, options, report, timing="engine")


class EngineTarget:
    """An engine in this process, as a target of a load."""

    def __init__(self, engine: "AsyncEngine", model: str, clock: "LoadClock") -> None:
        self.engine = engine
        self.model = model
        self.clock = clock

    async def run(self, request: "SessionRequest", record: "SessionRecord") -> None:
        """Make a video, and note when each chunk is ready."""
        from helios_serve.benchmarks.measure.record import ChunkRecord
        from helios_serve.benchmarks.targets.target import SessionFailedError, SessionRefusedError

        made = self.video_request(request)
        record.sent = self.clock.now()
        try:
            await self.engine.submit(made)
            record.accepted, record.video_id = self.clock.now(), made.request_id
            async with aclosing(self.engine.watch(made.request_id)) as chunks:
                async for chunk in chunks:
                    frames = frames_of_chunk(request.num_frames, chunk.index).length
                    size = 0 if chunk.segment is None else len(chunk.segment.fragment)
                    record.chunks.append(ChunkRecord(self.clock.now(), frames, size))
        except CapacityError as error:
            raise SessionRefusedError(error.code, str(error)) from error
        except HeliosError as error:
            raise SessionFailedError(type(error).__name__, str(error)) from error

    async def leave(self, record: "SessionRecord") -> None:
        """Abort the video."""
        if record.video_id is not None:
            await self.engine.abort(record.video_id)

    def video_request(self, request: "SessionRequest") -> VideoRequest:
        """Return the engine's form of a session. Raises InvalidRequestError for a reference."""
        if request.task != "t2v":
            raise InvalidRequestError(
                f"got task {request.task}, expected t2v: offline benchmarks have no references",
                param="task",
            )
        size = default_size(self.model)
        params = SamplingParams(
            width=request.width or size.width,
            height=request.height or size.height,
            num_frames=request.num_frames,
            fps=request.fps,
            steps=request.steps,
            seed=request.seed or 0,
        )
        return VideoRequest(
            request_id=f"bench-{uuid.uuid4().hex}",
            prompt=request.prompt,
            model=self.model,
            params=params,
            output="segment",
        )
