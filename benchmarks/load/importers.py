"""Traces of other tools, and summaries of traces."""

import ast
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from helios_serve.benchmarks.load.json_file import text_of
from helios_serve.benchmarks.load.request import SessionRequest
from helios_serve.benchmarks.load.trace_file import parse_line, read_lines
from helios_serve.errors import InvalidRequestError

KEPT = ("prompt", "width", "height", "num_frames", "fps", "seed", "slo_ms")


def vllm_omni(path: Path, num_frames: int) -> list[SessionRequest]:
    """Read lines `Request(timestamp=..., width=..., ...)`, whose timestamps are in seconds.

    `num_frames` is for lines without it. Raises InvalidRequestError, which names the line.
    """
    return [
        parse_line(
            omni_fields(line, f"{path}, line {number}", num_frames), f"{path}, line {number}"
        )
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if line.strip()
    ]


def omni_fields(line: str, where: str, num_frames: int) -> dict[str, Any]:
    try:
        call = ast.parse(line.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("no call with keywords")
        given = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
        start = float(given["timestamp"])
    except (SyntaxError, ValueError, KeyError, TypeError) as error:
        raise InvalidRequestError(
            f"{where}: got {line[:60]!r}, expected Request(timestamp=..., ...)", param="source"
        ) from error
    known = {name: given[name] for name in KEPT if given.get(name) is not None}
    fields = {"prompt": "a video", "num_frames": num_frames} | known
    if "num_inference_steps" in given:
        fields["num_inference_steps"] = given["num_inference_steps"]
    return fields | {"timestamp": 1000 * start}


def mooncake(path: Path, num_frames: int) -> list[SessionRequest]:
    """Read the timestamps (milliseconds) of Mooncake's JSON lines. Other fields describe text."""
    return [
        parse_line(fields | {"prompt": "a video", "num_frames": num_frames}, where)
        for where, fields in read_lines(path)
    ]


IMPORTERS: dict[str, Callable[[Path, int], list[SessionRequest]]] = {
    "vllm-omni": vllm_omni,
    "mooncake": mooncake,
}


def described(requests: Sequence[SessionRequest]) -> Iterator[str]:
    """Yield the lines of a summary of a trace."""
    times = np.array([request.intended for request in requests])
    gaps = np.diff(times)
    seconds = float(times[-1] - times[0])
    frames = sum(request.num_frames for request in requests)
    yield f"sessions:  {len(requests)} in {seconds:.1f} s"
    if seconds:
        yield f"rate:      {len(gaps) / seconds:.3f} sessions/s, {frames / seconds:.1f} frames/s"
        spread = float(gaps.std() / gaps.mean())
        yield f"gaps:      coefficient of variation {spread:.2f} (1: Poisson, above: burstier)"
    playback = sum(request.num_frames / request.fps for request in requests)
    yield f"video:     {frames} frames, {playback:.1f} s of playback"
    for title, counts in (
        ("shape", Counter(request.shape for request in requests)),
        ("tenant", Counter(request.tenant for request in requests)),
        ("tier", Counter(request.tier or "the server's" for request in requests)),
    ):
        for name, count in counts.most_common(12):
            yield f"{title + ':':10} {name}: {count} ({count / len(requests):.0%})"
    switching = sum(bool(request.switches) for request in requests)
    leaving = sum(request.stop_after_ms is not None for request in requests)
    yield f"behaviour: {switching} switch prompts, {leaving} leave early"
