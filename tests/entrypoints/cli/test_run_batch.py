"""`helios-serve run-batch` on the built-in model, as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from PIL import Image

from helios_serve.entrypoints.cli import run_batch
from helios_serve.entrypoints.cli.main import main
from helios_serve.model_executor.models.vae import Vae
from helios_serve.service.batches.batch_line import BatchLine, local_request
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest
from tests.support.command_line import without_progress
from tests.support.engines import colours, quick_model
from tests.support.lora_files import write_lora
from tests.support.picture_files import encoded
from tests.support.scripts import with_tests
from tests.support.video_files import counted, video

SMALL = {"prompt": "a dog", "size": "64x64", "steps": [1, 1, 1]}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are the latents' colours: decoding would take most of a test."""
    monkeypatch.setattr(Vae, "decode", lambda _, latents: colours(latents))


def line(custom_id: str, **body: Any) -> str:
    """Return a line for a small video. `body` overrides its fields."""
    wanted = SMALL | {"num_frames": 33} | body
    fields = {key: value for key, value in wanted.items() if value is not None}
    return json.dumps({"custom_id": custom_id, "body": fields})


class Run(NamedTuple):
    """The results of a batch."""

    status: int
    results: list[dict[str, Any]]
    out: str
    err: str

    @property
    def errors(self) -> dict[str, str]:
        return {
            each["custom_id"]: each["error"] for each in self.results if each["status"] == "failed"
        }


class Batches:
    """A folder with a batch file and its output."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.file = folder / "lines.jsonl"
        self.output = folder / "videos"
        self._capsys = capsys

    def run(self, lines: list[str], *flags: object) -> Run:
        """Run the lines with threads as workers. A lone surrogate is a byte that is not UTF-8."""
        self.file.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
        shared = ["--output", str(self.output), "--device", "cpu", "--history-blocks", "500"]
        shared += ["--batch-invariant", "--executor", "inline"]
        self._capsys.readouterr()
        status = main(["run-batch", str(self.file), *shared, *map(str, flags)])
        printed = self._capsys.readouterr()
        written = (self.output / "results.jsonl").read_text()
        return Run(status, [json.loads(each) for each in written.splitlines()], *printed)

    def video(self, file: str) -> bytes:
        return (self.output / file).read_bytes()


@pytest.fixture
def batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Batches:
    return Batches(tmp_path, capsys)


def frame_numbers(path: Path) -> list[float]:
    """When each frame is shown, in frames from the video's beginning."""
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        assert rate is not None
        return [
            float(frame.pts * frame.time_base * rate)
            for frame in container.decode(video=0)
            if frame.pts is not None and frame.time_base is not None
        ]


def test_the_command_makes_what_it_can_and_says_what_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With real decoding. Slower tests run the command and its workers as processes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.jsonl").write_text(f"{line('sea', num_frames=5, fps=30)}\nnonsense\n")
    flags = ["--output", "videos", "--device", "cpu", "--executor", "inline"]
    assert main(["run-batch", "lines.jsonl", *flags]) == 1
    printed = capsys.readouterr()
    assert printed.out == "videos/results.jsonl: 1 videos, 1 failed\n"
    assert "\nline 2: invalid request: JSON is malformed: " in printed.err
    assert "Traceback" not in printed.err
    sea, nonsense = map(json.loads, (tmp_path / "videos/results.jsonl").read_text().splitlines())
    assert sea == {
        "custom_id": "sea",
        "status": "completed",
        "file": "sea.mp4",
        "frames": 5,
        "error": None,
    }
    assert (nonsense["custom_id"], nonsense["status"]) == ("line 2", "failed")
    assert frame_numbers(tmp_path / "videos/sea.mp4") == list(range(5))
    left = {path.name for path in (tmp_path / "videos").iterdir()}
    assert left == {"sea.mp4", "results.jsonl", ".helios"}
    assert not (tmp_path / "videos/.helios/control.sock").exists()


class Bad(NamedTuple):
    """A line that fails with a message. Without a name, its number identifies it."""

    text: str
    message: str
    name: str | None = None


def bad(name: str, message: str, **body: Any) -> Bad:
    return Bad(line(name, **body), message, name)


GET = json.dumps(json.loads(line("get")) | {"method": "GET"})
BAD = [
    bad("size", "got size '64', expected WIDTHxHEIGHT in pixels, such as 640x384", size="64"),
    bad("side", "got size 60x64, expected .* such as 64x64", size="60x64"),
    bad("both", "got both seconds and num_frames, expected only one", seconds=1),
    bad(
        "minus",
        "got -1 seconds at 24 frames per second, expected more than 0 seconds and at most",
        seconds=-1,
        num_frames=None,
    ),
    bad("huge", r"got 1e\+308 seconds at 24 frames per second", seconds=1e308, num_frames=None),
    bad("none", "got num_frames 0, expected 1 to", num_frames=0),
    bad("fps", "got fps 0, expected 1 to 120", fps=0),
    bad("steps", r"got 2 step counts \(2,2\), expected 3", steps=[2, 2]),
    bad("late", r"got prompt switches at chunks \[9\]", switches=[{"chunk": 9, "prompt": "x"}]),
    bad("model", "got model 'huge', expected one of: nano", model="huge"),
    bad("image", "/nothing.png: got no such file, expected an existing", image="nothing.png"),
    bad(
        "video",
        "got an unsupported or damaged file, expected a video such as MP4",
        video="lines.jsonl",
    ),
    bad("zero", "got no such file", image="a\0b"),
    bad("two", "got both an image and a video", image="red.png", video="frames"),
    bad("lora", "got LoRA '/.*/nothing', expected", lora="nothing"),
    bad("prompt", "Object missing required field `prompt`", prompt=None),
    bad("typo", "got unknown option 'promt', expected one of: ", promt="a dog"),
    bad("type", r"got seed 'one', expected an integer \(0 to", seed="one"),
    bad(
        "tier",
        "got service_tier 'gold', expected auto or default or flex or priority",
        service_tier="gold",
    ),
    Bad(GET, "got GET /v1/videos, expected POST /v1/videos", "get"),
    Bad(line("first", seed=1), "got duplicate custom_id 'first', expected unique ids"),
    Bad(line(""), r"got a custom_id of 0 bytes \(URL-encoded\), expected 1 to 200"),
    Bad(line("x" * 201), "got a custom_id of 201 bytes"),
    Bad(line("/" * 70), "got a custom_id of 210 bytes"),
    Bad("nonsense", "invalid request: JSON is malformed"),
    Bad("\udcff", "invalid request: "),
    Bad("[]", "invalid request: Expected `object`, got `array`"),
]


@pytest.mark.usefixtures("quick")
def test_bad_lines_fail_alone_each_with_its_reason(batches: Batches) -> None:
    frames = batches.folder / "frames"
    frames.mkdir()
    for path in (batches.folder / "red.png", *(frames / f"{index:02}.png" for index in range(33))):
        Image.new("RGB", (64, 64)).save(path)
    done = batches.run([line("first"), *(each.text for each in BAD), line("last")])
    assert done.status == 1
    names = [each.name or f"line {number}" for number, each in enumerate(BAD, 2)]
    assert [each["custom_id"] for each in done.results] == ["first", *names, "last"]
    assert list(done.errors) == names
    for each, (name, error) in zip(BAD, done.errors.items(), strict=True):
        assert re.search(each.message, error), f"{name}: {error}"
        assert f"\n{name}: {error}\n" in f"\n{done.err}"
    assert done.out == f"{batches.output}/results.jsonl: 2 videos, {len(BAD)} failed\n"
    assert sorted(path.name for path in batches.output.glob("*.mp4")) == ["first.mp4", "last.mp4"]
    assert frame_numbers(batches.output / "last.mp4") == list(range(33))


@pytest.mark.usefixtures("quick")
def test_what_was_made_is_not_made_again(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64), (200, 30, 30)).save(batches.folder / "red.png")
    lines = [
        line("plain", num_frames=70),
        line("image", image="red.png"),
        line("a b/ä", switches=[{"chunk": 1, "prompt": "a cat"}], seconds=2, num_frames=None),
    ]
    first = batches.run(lines)
    assert first.status == 0
    files = [each["file"] for each in first.results]
    assert files == ["plain.mp4", "image.mp4", "a%20b%2F%C3%A4.mp4"]
    assert [each["frames"] for each in first.results] == [70, 33, 48]
    made = {file: batches.video(file) for file in files}
    for file, frames in zip(files, (70, 33, 48), strict=True):
        assert frame_numbers(batches.output / file) == list(range(frames))
    (batches.output / "plain.mp4").unlink()

    def fail(*_: object) -> None:
        raise AssertionError("something is made again")

    monkeypatch.setattr(Vae, "decode", fail)
    again = batches.run(lines)
    assert (again.status, again.results) == (0, first.results)
    assert {file: batches.video(file) for file in files} == made


@pytest.mark.usefixtures("quick")
def test_a_seed_is_drawn_once_unless_it_is_given(batches: Batches) -> None:
    """As over HTTP. A repeated run finds the videos of the previous one."""
    lines = [line("drawn"), line("given", seed=7)]
    assert batches.run(lines).status == 0
    names = ("drawn.mp4", "given.mp4")
    first = [batches.video(name) for name in names]
    assert batches.run(lines).status == 0
    assert [batches.video(name) for name in names] == first
    assert batches.run(lines, "--data-dir", batches.folder / "anew").status == 0
    drawn, given = (batches.video(name) for name in names)
    assert (drawn == first[0], given == first[1]) == (False, True)


@pytest.mark.usefixtures("quick")
def test_lines_that_failed_are_tried_again(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they were rejected or failed later, and from any working directory."""
    lines = [line("good"), line("image", image="red.png"), line("style", lora="style.safetensors")]
    first = batches.run(lines)
    assert first.status == 1
    assert first.errors.keys() == {"image", "style"}
    before = batches.video("good.mp4")
    Image.new("RGB", (64, 64), (200, 30, 30)).save(batches.folder / "red.png")
    transformer = quick_model().transformer
    assert transformer is not None
    write_lora(batches.folder / "style.safetensors", transformer)
    monkeypatch.chdir(batches.folder)
    batches.file, batches.output = Path("lines.jsonl"), Path("videos")
    second = batches.run(lines)
    assert (second.status, second.errors) == (0, {})
    assert batches.video("good.mp4") == before != batches.video("style.mp4")


@pytest.mark.usefixtures("quick")
def test_another_request_under_the_same_id_is_refused(batches: Batches) -> None:
    picture = batches.folder / "picture.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(picture)
    lines = [line("same"), line("prompt"), line("image", image="picture.png")]
    assert batches.run(lines).status == 0
    Image.new("RGB", (64, 64), (30, 200, 30)).save(picture)
    done = batches.run([lines[0], line("prompt", prompt="a cat"), lines[2]])
    assert done.status == 1
    folder = batches.output / ".helios"
    assert done.errors == {
        name: f"got custom_id '{name}' with a different request than in {folder}, "
        "expected the same request or another --data-dir"
        for name in ("prompt", "image")
    }
    other = batches.folder / "other"
    done = batches.run([line("prompt", prompt="a cat"), lines[2]], "--data-dir", other)
    assert done.status == 0
    assert (other / "jobs.sqlite3").exists()
    done = batches.run([lines[0]], "--model", "nano-mid")
    assert done.errors.keys() == {"same"}


@pytest.mark.usefixtures("quick")
def test_workers_may_have_different_roles(batches: Batches) -> None:
    lines = [line("a", seed=0, num_frames=70), line("b", seed=1), line("c", seed=2, fps=30)]
    assert batches.run(lines).status == 0
    names = [f"{name}.mp4" for name in "abc"]
    expected = [batches.video(name) for name in names]
    roles = ["--workers", "1:encode+decode", "--workers", "1:denoise", "--data-dir"]
    assert batches.run(lines, *roles, batches.folder / "split").status == 0
    assert [batches.video(name) for name in names] == expected


@pytest.mark.usefixtures("quick")
def test_a_trace_tells_what_each_worker_did(batches: Batches) -> None:
    roles = ["--workers", "1:encode+decode", "--workers", "2:denoise"]
    trace = batches.folder / "trace.json"
    lines = [line(f"video {seed}", seed=seed, num_frames=66) for seed in range(4)]
    assert batches.run(lines, *roles, "--trace", trace).status == 0
    events = json.loads(trace.read_text())
    lanes = {
        event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"
    }
    tasks = {"inline-0 encode", "inline-0 decode", "inline-0 segments"}
    assert tasks <= set(lanes.values()) <= tasks | {"inline-1", "inline-2"}
    slices = [event for event in events if event["ph"] == "X"]
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in slices)
    steps = [step for event in slices for step in event["args"].get("steps", ())]
    taken = sorted((step["session"], step["chunk"], step["stage"]) for step in steps)
    assert taken == [
        (f"video {seed}", chunk, stage)
        for seed in range(4)
        for chunk in range(2)
        for stage in range(3)
    ]
    assert all(step["tokens"] > 0 for step in steps)
    chunks = [event for event in slices if event["name"].startswith("chunk ")]
    counts = Counter(lanes[event["tid"]] for event in chunks)
    assert counts == {"inline-0 decode": 8, "inline-0 segments": 8}
    busy = [event for event in slices if lanes[event["tid"]] in ("inline-1", "inline-2")]
    for event in busy:
        assert event["args"]["tokens"] == sum(step["tokens"] for step in event["args"]["steps"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nothing.jsonl"], "got nothing.jsonl, expected a readable batch file: No such"),
        (["empty.jsonl"], "got empty file empty.jsonl"),
        (["lines.jsonl", "--output", "lines.jsonl"], "cannot make lines.jsonl: File exists"),
        (["lines.jsonl", "--data-dir", "lines.jsonl"], "cannot make lines.jsonl: File exists"),
        (
            ["lines.jsonl", "--data-dir", "taken"],
            "taken is in use by another server: stop that server",
        ),
        (["lines.jsonl", "--trace", "no/trace.json"], "got --trace no/trace.json, expected a w"),
        (
            ["lines.jsonl", "--model", "no/model"],
            "no/model is not a local folder and cannot be",
        ),
        (
            ["lines.jsonl", "--workers", "1:denoise"],
            "got no worker to encode or d",
        ),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "lines.jsonl").write_text(line("a"))
    store = VideoStore(tmp_path / "taken")
    assert main(["run-batch", "--output", "videos", *flags]) == 2
    store.close()
    (printed,) = without_progress(capsys.readouterr().err)
    assert printed.startswith(f"helios-serve: error: {message}")


@pytest.mark.usefixtures("quick")
def test_an_interrupt_while_a_video_is_finished_leaves_no_scratch_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Work that was started in a thread continues there, and would write the file again."""

    def interrupted(path: Path) -> None:
        video, deadline = path.read_bytes(), time.monotonic() + 1
        time.sleep(0.1)  # so that the loop waits, and the signal wakes it
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        while path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        path.write_bytes(video)

    monkeypatch.setattr(run_batch, "defragment", interrupted)
    batches = Batches(tmp_path, capsys)
    batches.file.write_text(line("a"))
    flags = ["--output", str(batches.output), "--device", "cpu", "--history-blocks", "500"]
    assert main(["run-batch", str(batches.file), "--executor", "inline", *flags]) == 130
    assert [path.name for path in batches.output.iterdir()] == [run_batch.STATE]


@pytest.mark.slow
def test_an_interrupted_batch_says_so_and_goes_on(tmp_path: Path) -> None:
    lines = [line("long", num_frames=33 * 12), line("short")]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    arguments = ["run-batch", "lines.jsonl", "--output", "videos"]
    arguments += ["--device", "cpu", "--history-blocks", "500"]
    after_a_chunk = ["-m", "tests.support.dying_server", "segment written", "1", "SIGINT"]
    interrupted = subprocess.run(
        [sys.executable, *after_a_chunk, *arguments],
        cwd=tmp_path,
        env=os.environ | with_tests(),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert interrupted.returncode == 130
    assert interrupted.stderr.endswith("helios-serve: interrupted\n")
    assert "Traceback" not in interrupted.stderr
    assert not list(tmp_path.glob("videos/.*.part"))
    command = [sys.executable, "-m", "helios_serve", *arguments]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert frame_numbers(tmp_path / "videos/long.mp4") == list(range(33 * 12))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "error", [KeyError("x"), RecursionError("deep"), UnicodeError("x"), MemoryError()]
)
def test_whatever_a_line_raises_ends_that_line_only(
    error: Exception, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    def request(each: BatchLine, *others: Any) -> VideoRequest:
        if each.custom_id == "bad":
            raise error
        return local_request(each, *others)

    monkeypatch.setattr(run_batch, "local_request", request)
    done = batches.run([line("first"), line("bad"), line("last")])
    assert done.status == 1
    assert done.errors == {"bad": f"{type(error).__name__}: {error}"}
    assert sorted(path.name for path in batches.output.glob("*.mp4")) == ["first.mp4", "last.mp4"]


@pytest.mark.usefixtures("quick")
def test_bad_files_end_their_lines_only(batches: Batches) -> None:
    """An image, a truncated video, a folder with a damaged frame, and a LoRA file."""
    folder = batches.folder
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    (folder / "nan.tiff").write_bytes(
        encoded(Image.fromarray(np.full((64, 64), np.nan, np.float32)), "TIFF")
    )
    whole = video(counted(), muxer={"movflags": "faststart"})
    (folder / "cut.mp4").write_bytes(whole[: len(whole) - 10])
    (folder / "frames").mkdir()
    for index in range(34):
        Image.new("RGB", (64, 64)).save(folder / "frames" / f"{index}.png")
    (folder / "frames" / "20.png").write_bytes(b"no picture")
    (folder / "style.safetensors").write_bytes(b"no tensors")
    lines = {
        "picture": {"image": "bad.png"},
        "range": {"image": "nan.tiff"},
        "cut": {"video": "cut.mp4"},
        "folder": {"video": "frames"},
        "style": {"lora": "style.safetensors"},
    }
    done = batches.run(
        [line("first"), *(line(name, **body) for name, body in lines.items()), line("last")]
    )
    messages = {
        "picture": "bad.png: got ",
        "range": "nan.tiff: got pixels that are NaN or infinite, expected",
        "cut": "cut.mp4: got .* this one was cut off",
        "folder": "frames/20.png: got an unsupported file format, expected",
        "style": "style.safetensors is damaged or not a safetensors file",
    }
    assert done.errors.keys() == messages.keys()
    for name, message in messages.items():
        assert re.search(message, done.errors[name]), done.errors[name]
    assert sorted(path.name for path in batches.output.glob("*.mp4")) == ["first.mp4", "last.mp4"]
