"""`helios-serve bench trace`: exports, imports and shows traces."""

import argparse
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios_serve.entrypoints.cli.arguments import add_data_dir
from helios_serve.errors import InvalidRequestError
from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.store.jobs import JobStore, StoredJob
from helios_serve.store.video_store import DATABASE

if TYPE_CHECKING:
    from helios_serve.benchmarks.load.request import SessionRequest

EPILOG = """\
examples:
  helios-serve bench trace export --data-dir helios-data --output trace.jsonl
  helios-serve bench trace import --format vllm-omni cogvideox_trace.txt --output trace.jsonl
  helios-serve bench trace show trace.jsonl
"""
FORMATS = ("vllm-omni", "mooncake")


def add_benchmark(benchmarks: Any) -> None:
    parser = benchmarks.add_parser(
        "trace",
        help="export the requests of a server as a trace, import one, or show one",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    exporting = actions.add_parser("export", help="export the jobs of a server")
    exporting.set_defaults(run=export)
    add_data_dir(exporting, "data folder of the server, which may be running")
    exporting.add_argument(
        "--with-prompts",
        action="store_true",
        help="export the prompts; without it, each is replaced by as many neutral words",
    )
    importing = actions.add_parser("import", help="convert another tool's trace")
    importing.set_defaults(run=convert)
    importing.add_argument("source", type=Path, metavar="FILE", help="trace to convert")
    importing.add_argument("--format", choices=FORMATS, required=True, help="format of the trace")
    importing.add_argument(
        "--num-frames",
        type=int,
        default=99,
        metavar="N",
        help="frames of a session for which the trace has no length (default: 99)",
    )
    for action in (exporting, importing):
        action.add_argument(
            "--output", type=Path, required=True, metavar="FILE.jsonl", help="trace to write"
        )
    showing = actions.add_parser("show", help="summarize a trace")
    showing.set_defaults(run=show)
    showing.add_argument("source", type=Path, metavar="FILE.jsonl", help="trace to show")


def export(arguments: argparse.Namespace) -> int:
    """Write the jobs of a server as a trace."""
    path = arguments.data_dir / DATABASE
    if not path.exists():
        raise InvalidRequestError(
            f"got --data-dir {arguments.data_dir}, expected a folder with {DATABASE}: no server "
            "has stored a job there",
            param="data-dir",
        )
    with closing(JobStore(path)) as store:
        jobs = store.all()
    if not jobs:
        raise InvalidRequestError(f"{path}: got no jobs, expected at least one", param="data-dir")
    first = min(job.created_at for job in jobs)
    requests = [session_of(job, first, with_prompts=arguments.with_prompts) for job in jobs]
    return write_trace(arguments.output, requests)


def session_of(job: StoredJob, first: float, *, with_prompts: bool) -> "SessionRequest":
    """Return a job as a session of a trace that starts at `first` (Unix seconds).

    References are not exported. The session of a job that had one gets a generated one.
    """
    from helios_serve.benchmarks.load.request import SessionRequest

    params, request = job.request.params, job.request
    size = request.shown_size
    return SessionRequest(
        timestamp=1000 * (job.created_at - first),
        prompt=request.prompt if with_prompts else neutral(request.prompt),
        width=size.width if size else params.width,
        height=size.height if size else params.height,
        num_frames=params.num_frames,
        fps=params.fps,
        steps=params.steps,
        seed=params.seed,
        task="i2v" if job.has_media else "t2v",
        tenant=job.tenant,
        tier=request.tier,
        switches=tuple(
            (
                1000 * switch.chunk * CHUNK_FRAMES / params.fps,
                switch.prompt if with_prompts else neutral(switch.prompt),
            )
            for switch in params.switches
        ),
    )


def neutral(prompt: str) -> str:
    """Return a text of as many neutral words."""
    return " ".join(["word"] * max(1, len(prompt.split())))


def convert(arguments: argparse.Namespace) -> int:
    """Convert another tool's trace."""
    from helios_serve.benchmarks.load.importers import IMPORTERS

    read = IMPORTERS[arguments.format]
    return write_trace(arguments.output, read(arguments.source, arguments.num_frames))


def write_trace(path: Path, requests: "Iterable[SessionRequest]") -> int:
    from helios_serve.benchmarks.load.trace_file import encode_trace
    from helios_serve.benchmarks.measure.result_files import write

    ordered = sorted(requests, key=lambda request: request.timestamp)
    write(path, encode_trace(ordered))
    print(f"{path}: {len(ordered)} sessions")
    return 0


def show(arguments: argparse.Namespace) -> int:
    """Print a summary of a trace."""
    from helios_serve.benchmarks.load.importers import described
    from helios_serve.benchmarks.load.trace_file import read_trace

    print("\n".join(described(read_trace(arguments.source))))
    return 0
