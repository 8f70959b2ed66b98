"""Why denoising paused, as a trace tells."""

import json
import runpy
from pathlib import Path
from typing import Any

from helios_serve.core.decode_lead import CHUNKS_AHEAD

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "micro" / "overlap.py"


def lane(number: int, name: str, *slices: tuple[float, float, dict[str, Any]]) -> list[Any]:
    named = {"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": name}}
    return [
        named,
        *(
            {
                **{"ph": "X", "name": "slice", "pid": 1, "tid": number, "args": details},
                **{"ts": 1e6 * start, "dur": 1e6 * (end - start)},
            }
            for start, end, details in slices
        ),
    ]


def step(chunk: int) -> dict[str, Any]:
    return {"steps": [{"session": "a", "chunk": chunk}]}


def test_pauses_are_told_apart_by_what_was_delivered(tmp_path: Path) -> None:
    ahead = 1 + CHUNKS_AHEAD
    events = [
        *lane(
            1, "w", (0, 1, step(0)), (1.01, 2, step(1)), (5, 6, step(ahead)), (7, 8, step(ahead))
        ),
        *lane(2, "w decode", (2, 4, {"session": "a", "chunk": 0})),
        *lane(3, "w segments", (4, 4.9, {"session": "a", "chunk": 0})),
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(events)[:-1] + ",\n")  # as a server that runs leaves it
    script = runpy.run_path(str(SCRIPT))
    found = script["summary"](script["read_lanes"](path), 1)["w"]
    assert found["pauses_by_the_bound"] == [3.0]
    assert found["other_pauses"] == [1.0]
    assert {name: round(value, 6) for name, value in found["seconds"].items()} == {
        **{"steps": 3.99, "frames": 2.0, "segments": 0.9},
    }
    assert found["seconds_shared"] == 0.0
