r"""Compares our server with vLLM-Omni's and SGLang's own Helios, under the same load, in turns.

    python benchmarks/micro/peers/vs_servers.py [--servers helios vllm-omni sglang] [--rounds 3]
        [--sessions 4 8] [--timing poll] [--model FOLDER] [--result-dir results/peers]
    python benchmarks/micro/peers/vs_servers.py --timing media --servers vllm-omni \
        helios-in-vllm-omni
    python benchmarks/micro/peers/vs_servers.py --capacity

Sessions start half a second apart and have 2 to 8 chunks. Each round starts each server alone,
runs `helios-serve bench serve` with the same trace for each number of sessions, and stops the
server; every other round has the opposite order. Polls time all three servers alike, and
see whole videos only. `--timing media` times the chunks of live sessions, which SGLang lacks for
Helios. The checkpoint is nano unless --model names another distilled one. Writes the results, a
table (summary.json) and a report (report.html). With `--capacity`, `bench sweep` searches for the
number of users with which nine of ten videos of 132 frames are good: by polls, those that are
whole after the time that they play.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec

from helios_serve.benchmarks.load.request import SessionRequest
from helios_serve.benchmarks.load.trace_file import encode_trace
from helios_serve.benchmarks.measure.record import SessionRecord
from helios_serve.benchmarks.measure.result_files import json_of, read_result, read_sessions
from helios_serve.benchmarks.micro.peers.servers import SERVERS, tests_on_path
from helios_serve.benchmarks.reports import page
from helios_serve.entrypoints.cli.arguments import size
from helios_serve.model_executor.models.nano.checkpoint import nano_checkpoint

OWN = ("helios", "vllm-omni", "sglang")
"""Each with its own Helios."""
CHUNK_FRAMES = 33
STEPS = (2, 2, 2)
FPS = 24
CAPACITY_FRAMES = 132
NO_GUIDANCE = '{"guidance_scale": 1.0}'
"""vLLM-Omni also guides distilled models by default."""
ENDPOINTS = {"poll": "/v1/videos", "media": "/v1/realtime/video"}
GOALS = {"poll": ("e2el:10000",), "media": ("ttfc:4000", "stall:0")}


class Measured(NamedTuple):
    """The block `helios` of a result, and its sessions."""

    block: dict[str, Any]
    sessions: list[SessionRecord]


class Column(NamedTuple):
    """A figure of a result, and how it is printed."""

    name: str
    value: Callable[["Measured"], float | None]
    form: str = "{:.2f}"


def percentile(key: str, share: str) -> Callable[[Measured], float | None]:
    """Return a function that reads a percentile, in seconds."""

    def read(result: Measured) -> float | None:
        found = result.block["metrics"].get(key)
        return None if found is None else found["percentiles"][share]["value"] / 1000

    return read


def stall_free(result: Measured) -> float | None:
    player = result.block["player"]
    return None if player is None else player["stall_free"]["value"]


def good(result: Measured) -> float:
    return float(result.block["slo_attainment"]["value"])


def frames_per_second(result: Measured) -> float:
    """Return the frames of completed videos over the time until the last one."""
    done = [session for session in result.sessions if session.outcome == "completed"]
    end = max((session.ended or 0.0 for session in done), default=1.0)
    return sum(session.num_frames for session in done) / end


COLUMNS = (
    Column("first chunk p50, s", percentile("ttfc", "50")),
    Column("first chunk max, s", percentile("ttfc", "99")),
    Column("whole video p50, s", percentile("e2el", "50")),
    Column("whole video max, s", percentile("e2el", "99")),
    Column("stall-free", stall_free, "{:.0%}"),
    Column("good", good, "{:.0%}"),
    Column("frames/s", frames_per_second, "{:.1f}"),
)


def write_trace(path: Path, sessions: int, frame: tuple[int, int]) -> None:
    """Write a trace of sessions that start half a second apart, with 2, 4, 6 and 8 chunks."""
    width, height = frame
    requests = (
        SessionRequest(
            timestamp=500 * index,
            prompt="a red ball moves right over a green field",
            width=width,
            height=height,
            num_frames=CHUNK_FRAMES * (2 + 2 * (index % 4)),
            fps=FPS,
            steps=STEPS,
            seed=index,
        )
        for index in range(sessions)
    )
    path.write_bytes(encode_trace(requests))


def with_smaller_gamma(model: Path, folder: Path) -> Path:
    """Write a checkpoint that differs in the scheduler's gamma only: 0.33333 instead of 1/3.

    With 1/3 the covariance of the noise between stages is singular, and vLLM-Omni adds 1e-8 to its
    diagonal in fp32, which is nothing: on some CPUs its Cholesky factorization fails.
    """
    copy = folder / model.name
    shutil.copytree(model, copy)
    path = copy / "scheduler" / "scheduler_config.json"
    settings = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(settings | {"gamma": 0.33333}))
    return copy


def bench(action: str, url: str, backend: str, timing: str, *flags: str) -> int:
    """Run `bench serve` or `bench sweep` on a server. Returns its exit status."""
    command = [
        *(sys.executable, "-P", "-m", "helios_serve", "bench", action),
        *("--backend", backend, "--base-url", url, "--endpoint", ENDPOINTS[timing]),
        *("--timing", timing, "--poll-interval", "0.1", "--disable-tqdm"),
        *("--extra-body", NO_GUIDANCE),
        *flags,
    ]
    return subprocess.run(command, check=False).returncode


def find_capacity(name: str, model: Path, arguments: argparse.Namespace) -> int:
    """Start a server, search for the number of users, and stop it. Returns the exit status."""
    peer, timing, (width, height) = SERVERS[name], arguments.timing, arguments.size
    goals = GOALS[timing] if timing == "media" else (f"e2el:{1000 * CAPACITY_FRAMES / FPS:g}",)
    results = arguments.result_dir / f"{name}-capacity-{timing}"
    flags = (
        *("--steps", ",".join(map(str, STEPS)), "--fps", str(FPS)),
        *("--width", str(width), "--height", str(height)),
        *("--num-frames", str(CAPACITY_FRAMES), "--num-prompts", "25", "--goodput", *goals),
        *("--search", "users", "--search-limit", "16", "--max-runs", "2", "--target", "0.9"),
        *("--result-dir", str(results), "--report", str(results.with_suffix(".html"))),
    )
    with tempfile.TemporaryDirectory() as folder, peer.run(model, Path(folder)) as url:
        return bench("sweep", url, peer.backend, timing, *flags)


def measure(name: str, model: Path, traces: dict[int, Path], number: int, arguments: Any) -> int:
    """Start a server, put each load on it, and stop it. Returns the largest exit status."""
    peer, timing = SERVERS[name], arguments.timing
    flags = (
        *("--goodput", *GOALS[timing], "--result-dir", str(arguments.result_dir)),
        *("--percentile-metrics", "ttfc,icl,e2el", "--metric-percentiles", "50,99"),
        *("--dataset-name", "trace"),
    )
    with tempfile.TemporaryDirectory() as folder, peer.run(model, Path(folder)) as url:
        statuses = []
        for sessions, trace in traces.items():
            own = ("--dataset-path", str(trace), "--result-filename")
            file = f"{name}-{sessions}-{number + 1}.json"
            statuses.append(bench("serve", url, peer.backend, timing, *flags, *own, file))
    return max(statuses)


def summarize(folder: Path, servers: Sequence[str], sessions: int, rounds: int) -> dict[str, Any]:
    """Return the figures of each server: the median of the rounds, the smallest and the largest."""
    rows: dict[str, Any] = {}
    for name in servers:
        files = [folder / f"{name}-{sessions}-{number + 1}.json" for number in range(rounds)]
        results = [
            Measured(read_result(file)["helios"], read_sessions(file))
            for file in files
            if file.exists()
        ]
        rows[name] = {"rounds": len(results)}
        for column in COLUMNS:
            seen = [value for value in map(column.value, results) if value is not None]
            rows[name][column.name] = [median(seen), min(seen), max(seen)] if seen else None
    return rows


def shown(rows: dict[str, Any]) -> list[Column]:
    """Return the columns with a figure of at least one server."""
    return [column for column in COLUMNS if any(row[column.name] for row in rows.values())]


def cell(column: Column, row: dict[str, Any]) -> str:
    """Return the median of a figure and, in a line of its own, the range of the rounds."""
    if row[column.name] is None:
        return "-"
    middle, low, high = (column.form.format(figure) for figure in row[column.name])
    return f"{middle}\n{low} to {high}"


def report(summary: dict[str, Any], setting: str) -> str:
    """Return a page with a table for each number of sessions."""
    parts = [f"<p>{setting}</p>"]
    for sessions, rows in summary.items():
        columns = shown(rows)
        head = ("server", *(column.name for column in columns))
        body = [(name, *(cell(each, row) for each in columns)) for name, row in rows.items()]
        parts += [f"<h2>{sessions} sessions, half a second apart</h2>", page.table(head, body)]
    return page.page("Servers under the same load", parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--servers", nargs="+", choices=tuple(SERVERS), default=OWN)
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--sessions", type=int, nargs="+", default=(4, 8), metavar="N")
    parser.add_argument("--timing", choices=tuple(ENDPOINTS), default="poll")
    parser.add_argument("--capacity", action="store_true", help="search for the number of users")
    parser.add_argument("--size", type=size, default=(64, 64), metavar="WIDTHxHEIGHT")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a distilled checkpoint")
    parser.add_argument("--result-dir", type=Path, default=Path("results/peers"), metavar="FOLDER")
    arguments = parser.parse_args()
    tests_on_path()
    folder = arguments.result_dir
    folder.mkdir(parents=True, exist_ok=True)
    traces = {}
    for sessions in arguments.sessions:
        traces[sessions] = folder / f"trace-{sessions}.jsonl"
        write_trace(traces[sessions], sessions, arguments.size)
    with tempfile.TemporaryDirectory() as scratch:
        given = arguments.model or nano_checkpoint("nano")
        assert given is not None
        model = with_smaller_gamma(given, Path(scratch))
        if arguments.capacity:
            sys.exit(max(find_capacity(name, model, arguments) for name in arguments.servers))
        statuses = [
            measure(name, model, traces, number, arguments)
            for number in range(arguments.rounds)
            for name in (arguments.servers if number % 2 == 0 else arguments.servers[::-1])
        ]
    summary = {
        str(sessions): summarize(folder, arguments.servers, sessions, arguments.rounds)
        for sessions in arguments.sessions
    }
    (folder / "summary.json").write_bytes(json_of(summary))
    width, height = arguments.size
    setting = (
        f"{model.name}, {width}x{height}, steps {list(STEPS)}, timed by {arguments.timing}; median "
        f"of {arguments.rounds} rounds, and their range. A good session meets "
        f"{' and '.join(GOALS[arguments.timing])} (ms)."
    )
    (folder / "report.html").write_text(report(summary, setting))
    for sessions, rows in summary.items():
        print(f"{sessions} sessions")
        for name, row in rows.items():
            figures = (
                f"{column.name} {cell(column, row).splitlines()[0]}" for column in shown(rows)
            )
            print(f"  {name:>10}: {', '.join(figures)}")
    sys.exit(max(statuses))


if __name__ == "__main__":
    main()
