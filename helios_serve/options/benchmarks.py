"""Options of `helios-serve bench`. Flags that vLLM's `bench serve` has keep its names."""

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from helios_serve.options.sampling import FramesPerSecond, NumFrames, StepCount

Arrival = Literal["gamma", "poisson", "constant", "burst", "series"]
"""How the times between sessions are drawn."""
Dataset = Literal["random", "custom", "heliosbench", "trace"]
"""Where prompts come from; `trace` also has the times and the shapes."""
Task = Literal["t2v", "i2v", "v2v"]
"""Text to video, image to video, or video to video."""
Tier = Literal["priority", "default", "flex"]
Backend = Literal["helios", "vllm-omni", "sglang", "openai-videos"]
"""Which dialect of the video API the server speaks."""
Endpoint = Literal["/v1/videos", "/v1/realtime/video"]
Timing = Literal["media", "events", "poll"]
"""What sets the time of a chunk: its last media byte, the event that announces it, or a poll."""


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which sessions a benchmark starts, and when."""

    dataset_name: Annotated[
        Dataset,
        Meta(
            description="random: drawn words; custom: a file of prompts (one a line, or JSON lines "
            "with `prompt`); heliosbench: the CSV of HeliosBench; trace: a trace.jsonl."
        ),
    ] = "random"
    dataset_path: Annotated[
        str | None,
        Meta(
            description="File of the prompts or of the trace. For heliosbench, the CSV.",
            extra={"metavar": "FILE"},
        ),
    ] = None
    num_prompts: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Meta(
            description="Number of sessions.",
            extra={"metavar": "N", "default": "32, or what --duration needs, or the whole trace"},
        ),
    ] = None
    duration: Annotated[
        Annotated[float, Meta(ge=0.1, le=604_800)] | None,
        Meta(
            description="Seconds in which sessions are started. The measurement window ends here; "
            "sessions under way are awaited.",
            extra={"metavar": "SECONDS"},
        ),
    ] = None
    request_rate: Annotated[
        float,
        Meta(
            ge=1e-6,
            description="Sessions per second (open loop); inf starts all of them at once.",
            extra={"metavar": "X"},
        ),
    ] = math.inf
    arrival: Annotated[
        Arrival,
        Meta(
            description="Times between sessions: gamma with --burstiness (1 is Poisson), constant, "
            "burst (groups of --burst-size), or series (--rate-series).",
        ),
    ] = "gamma"
    burstiness: Annotated[
        float,
        Meta(
            ge=0.01,
            le=1000,
            description="Shape of the gamma distribution: below 1 is burstier than Poisson, above "
            "1 more regular.",
            extra={"metavar": "X"},
        ),
    ] = 1.0
    burst_size: Annotated[
        int, Meta(ge=1, description="Sessions of a burst.", extra={"metavar": "N"})
    ] = 8
    rate_series: Annotated[
        str | None,
        Meta(
            description="CSV with lines SECONDS,SESSIONS_PER_SECOND, linear in between; it repeats "
            "after its last line.",
            extra={"metavar": "FILE.csv"},
        ),
    ] = None
    ramp_up_strategy: Annotated[
        Literal["linear", "exponential"] | None,
        Meta(description="Change the rate from --ramp-up-start-rps to --ramp-up-end-rps."),
    ] = None
    ramp_up_start_rps: Annotated[
        Annotated[float, Meta(ge=1e-6)] | None,
        Meta(description="Sessions per second at the start.", extra={"metavar": "X"}),
    ] = None
    ramp_up_end_rps: Annotated[
        Annotated[float, Meta(ge=1e-6)] | None,
        Meta(description="Sessions per second at the end.", extra={"metavar": "X"}),
    ] = None
    trace_speed: Annotated[
        float,
        Meta(
            ge=0.001,
            le=1000,
            description="Factor by which a trace is replayed faster.",
            extra={"metavar": "X"},
        ),
    ] = 1.0
    users: Annotated[
        Annotated[int, Meta(ge=1, le=100_000)] | None,
        Meta(
            description="Closed loop: this many users start a session each, and the next one when "
            "it has ended.",
            extra={"metavar": "N"},
        ),
    ] = None
    think_time: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds between a user's sessions (closed loop).",
            extra={"metavar": "SECONDS"},
        ),
    ] = 0.0
    max_concurrency: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(
            description="Maximum number of concurrent sessions; others wait in the client, and "
            "their latencies include the wait.",
            extra={"metavar": "N"},
        ),
    ] = None
    width: Annotated[
        int | None, Meta(description="Width in pixels.", extra={"default": "the server's"})
    ] = None
    height: Annotated[
        int | None, Meta(description="Height in pixels.", extra={"default": "the server's"})
    ] = None
    num_frames: Annotated[
        NumFrames | None,
        Meta(
            description="Length in frames.",
            extra={"default": "99, or the length in the dataset"},
        ),
    ] = None
    fps: FramesPerSecond = 24
    steps: Annotated[
        tuple[StepCount, ...] | None,
        Meta(
            description="Denoise steps of each stage.",
            extra={"metavar": "N,N,N", "default": "the server's"},
        ),
    ] = None
    task: Annotated[Task, Meta(description="Text to video, image to video or video to video.")] = (
        "t2v"
    )
    random_request_config: Annotated[
        str | None,
        Meta(
            description='Mix of shapes as JSON, such as [{"width": 128, "height": 64, '
            '"num_frames": 99, "steps": [2, 2, 2], "weight": 3}, ...]; keys: width, height, '
            "num_frames, fps, steps, task, tier, weight.",
            extra={"metavar": "JSON"},
        ),
    ] = None
    tenants: Annotated[
        str | None,
        Meta(
            description="JSON file with a list of tenants: name, key, share, weight, tier, "
            "request_rate.",
            extra={"metavar": "FILE.json"},
        ),
    ] = None
    tier: Annotated[
        Tier | None,
        Meta(description="Service tier of the sessions.", extra={"default": "the server's"}),
    ] = None
    switch_every: Annotated[
        Annotated[float, Meta(ge=0.1)] | None,
        Meta(
            description="Seconds between prompt switches of a session.",
            extra={"metavar": "SECONDS"},
        ),
    ] = None
    cancel_share: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of sessions whose client leaves, at a random time within the "
            "playback time of the video.",
            extra={"metavar": "X"},
        ),
    ] = 0.0
    seed: Annotated[
        int,
        Meta(ge=0, description="Seed of arrivals, shapes and prompts.", extra={"metavar": "N"}),
    ] = 0


class TargetOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which server a benchmark measures, and how."""

    backend: Annotated[
        Backend, Meta(description="Which dialect of the video API the server speaks.")
    ] = "helios"
    base_url: Annotated[
        str | None,
        Meta(
            description="URL of the server.",
            extra={"metavar": "URL", "default": "http://HOST:PORT"},
        ),
    ] = None
    host: Annotated[str, Meta(description="Address of the server.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535, description="Port of the server.")] = 8000
    endpoint: Annotated[
        Endpoint, Meta(description="Jobs over HTTP, or live sessions over a WebSocket.")
    ] = "/v1/videos"
    model: Annotated[
        str | None,
        Meta(description="Model to request.", extra={"default": "the server's first"}),
    ] = None
    header: Annotated[
        tuple[str, ...],
        Meta(description="Headers of each request.", extra={"metavar": "NAME=VALUE"}),
    ] = ()
    api_key: Annotated[
        str | None,
        Meta(
            description="API key, for sessions whose tenant has none in --tenants.",
            extra={"metavar": "KEY"},
        ),
    ] = None
    extra_body: Annotated[
        str | None,
        Meta(description="More fields of each request, as JSON.", extra={"metavar": "JSON"}),
    ] = None
    timing: Annotated[
        Timing | None,
        Meta(
            description="media: the last byte of each chunk; events: server-sent events; poll: "
            "the status of the video.",
            extra={"default": "the first of these that the server has"},
        ),
    ] = None
    poll_interval: Annotated[
        float,
        Meta(
            ge=0.01,
            le=60,
            description="Seconds between polls.",
            extra={"metavar": "SECONDS"},
        ),
    ] = 0.5
    session_timeout: Annotated[
        float,
        Meta(
            ge=0.1,
            le=86_400,
            description="Seconds after its intended start at which a session is abandoned.",
            extra={"metavar": "SECONDS"},
        ),
    ] = 3600.0
    ready_check_timeout_sec: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds to wait for the server to answer before the run.",
            extra={"metavar": "SECONDS"},
        ),
    ] = 60.0


class ReportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is computed from a run, and where it is written."""

    num_warmups: Annotated[
        int,
        Meta(
            ge=0,
            description="Sessions of the same shapes before the run, which are not counted.",
            extra={"metavar": "N"},
        ),
    ] = 1
    warmup_seconds: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds at the start of the load that are not counted.",
            extra={"metavar": "SECONDS"},
        ),
    ] = 0.0
    start_buffer: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds that the modelled player waits after the first chunk.",
            extra={"metavar": "SECONDS"},
        ),
    ] = 1.0
    goodput: Annotated[
        tuple[str, ...],
        Meta(
            description="Bounds of a good session in milliseconds: ttfc, e2el, icl (largest), "
            "stall (sum), and the ratio rtf; such as ttfc:2000 stall:0.",
            extra={"metavar": "KEY:VALUE"},
        ),
    ] = ()
    slo_scale: Annotated[
        Annotated[float, Meta(ge=1)] | None,
        Meta(
            description="Maximum end-to-end latency of a good session, as a multiple of that of a "
            "session of its shape that runs alone, which is measured before the run.",
            extra={"metavar": "X"},
        ),
    ] = None
    num_runs: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="Repeat the run with other seeds, and give intervals over the runs.",
            extra={"metavar": "N"},
        ),
    ] = 1
    percentile_metrics: Annotated[
        str,
        Meta(description="Metrics that are printed.", extra={"metavar": "NAME,..."}),
    ] = "ttfc,icl,e2el,needed_buffer,chunk_rtf"
    metric_percentiles: Annotated[
        str, Meta(description="Percentiles that are computed.", extra={"metavar": "N,..."})
    ] = "50,90,95,99"
    save_result: Annotated[
        bool, Meta(description="Write the result, the trace and the sessions to files.")
    ] = False
    save_detailed: Annotated[
        bool, Meta(description="Add arrays with a value per session to the result.")
    ] = False
    result_dir: Annotated[
        str | None,
        Meta(
            description="Folder of the results; implies --save-result.",
            extra={"metavar": "FOLDER", "default": "the current folder"},
        ),
    ] = None
    result_filename: Annotated[
        str | None,
        Meta(
            description="Name of the result; implies --save-result.",
            extra={"metavar": "NAME.json", "default": "made of backend, load, model and time"},
        ),
    ] = None
    report: Annotated[
        str | None,
        Meta(description="Write a report with plots.", extra={"metavar": "FILE.html"}),
    ] = None
    label: Annotated[
        str | None, Meta(description="Label of the run in the result.", extra={"metavar": "TEXT"})
    ] = None
    metadata: Annotated[
        tuple[str, ...],
        Meta(description="More keys of the result.", extra={"metavar": "KEY=VALUE"}),
    ] = ()
    num_gpus: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="GPUs of the server, for rates per GPU.", extra={"metavar": "N"}),
    ] = None
    gpu_hour_price: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(
            description="Price of a GPU hour, for the price of a minute of video; needs "
            "--num-gpus.",
            extra={"metavar": "X"},
        ),
    ] = None
    no_self_check: Annotated[
        bool,
        Meta(
            description="Do not measure the client's own delay against a server that answers at "
            "once.",
        ),
    ] = False
    disable_tqdm: Annotated[bool, Meta(description="Show no progress.")] = False
