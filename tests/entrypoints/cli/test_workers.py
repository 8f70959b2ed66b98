"""`--workers`, and `helios-serve workers` with a running batch."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from torch import Tensor

from helios_serve.entrypoints.cli import flags as model_flags
from helios_serve.entrypoints.cli.main import main
from helios_serve.model_executor.models.vae import Vae
from helios_serve.options.workers import ROLES, Resources, Role, WorkerConfig, WorkerGroup
from tests.support.engines import PATIENCE, colours


def group(count: int, *roles: Role, **resources: float | dict[str, str]) -> WorkerGroup:
    needs = Resources(**resources)  # type: ignore[arg-type]
    return WorkerGroup(WorkerConfig(roles=roles or ROLES, resources=needs), count)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2", group(2)),
        ("1:encode+decode", group(1, "encode", "decode")),
        ("1:decode+encode", group(1, "encode", "decode")),
        (
            "2:denoise@gpus=0.5,cpus=2,zone=a",
            group(2, "denoise", num_gpus=0.5, num_cpus=2, labels={"zone": "a"}),
        ),
        ("3@gpus=1", group(3, num_gpus=1)),
        ("1@gpus=0", group(1, num_gpus=0)),
    ],
)
def test_what_workers_are_for_and_what_they_take(text: str, expected: WorkerGroup) -> None:
    assert model_flags.workers(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "two", "0", "-1", "1.5", "1:", "1:dance", "1:encode,decode", "1@", "1@gpus", "1@gpus=",
     "1@gpus=many", "1@gpus=-1", "1@cpus=nan", "1@cpus=inf", "1@=a", "1@gpus=1,,zone=a",
     "1@gpus=1,gpus=2"],
)  # fmt: skip
def test_bad_groups_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run-batch", "x.jsonl", "--output", "x", f"--workers={text}"])
    expected = "N, N:ROLES or N:ROLES@KEY=VALUE,..., such as 2:denoise@gpus=0.5,zone=a"
    message = f"argument --workers: got {text!r}, expected {expected}"
    assert message in capsys.readouterr().err


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def long_data_dir(tmp_path: Path) -> Path:
    """A data folder whose socket has a longer path than the system allows."""
    return tmp_path / "/".join(["d" * 50] * 4)


def test_without_an_engine_that_is_told(
    data_dir: Path, long_data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(folder: Path) -> str:
        assert main(["workers", "list", "--data-dir", str(folder)]) == 2
        return capsys.readouterr().err

    for folder in (data_dir, long_data_dir):
        message = f"helios-serve: error: no engine is running at {folder}/control.sock: "
        assert ask(folder) == f"{message}No such file or directory\n"
        folder.mkdir(parents=True)
        (folder / "control.sock").touch()  # of a process that was killed
        assert ask(folder) == f"{message}Connection refused\n"


class Batch:
    """A batch that runs in a thread. Commands about its workers run as from another process."""

    def __init__(self, data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.data_dir = data_dir
        data_dir.mkdir(parents=True)
        file = data_dir / "lines.jsonl"
        self.capsys = capsys
        body = {"prompt": "a dog", "size": "64x64", "num_frames": 66, "steps": [1, 1, 1]}
        lines = [
            json.dumps({"custom_id": str(seed), "body": body | {"seed": seed}}) for seed in (1, 2)
        ]
        file.write_text("\n".join(lines))
        self.arguments = ["run-batch", str(file), "--output", str(data_dir / "out")]
        self.arguments += ["--data-dir", str(data_dir), "--executor", "inline", "--device", "cpu"]
        self.arguments += ["--history-blocks", "500"]
        self.status: list[int] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.status.append(main(self.arguments))

    def ask(self, *arguments: str) -> tuple[int, str]:
        """Run a command, and return its status and its output."""
        self.capsys.readouterr()
        status = main(["workers", *arguments, "--data-dir", str(self.data_dir)])
        out, err = self.capsys.readouterr()
        return status, err if status else out

    def workers(self) -> list[list[str]]:
        """Wait until the engine answers, and return the rows of the table."""
        status, printed = self.ask("list")
        return [row.split(maxsplit=6) for row in printed.splitlines()[1:]] if status == 0 else []

    def wait(self, until: Callable[[list[list[str]]], bool]) -> list[list[str]]:
        deadline = time.monotonic() + PATIENCE
        while not until(rows := self.workers()):
            assert time.monotonic() < deadline, rows
            time.sleep(0.02)
        return rows


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An event before which nothing is decoded."""
    gate = threading.Event()

    def decode(_: Vae, latents: Tensor) -> Tensor:
        assert gate.wait(PATIENCE)
        return colours(latents)

    monkeypatch.setattr(Vae, "decode", decode)
    yield gate
    gate.set()


@contextmanager
def running(
    folder: Path, gate: threading.Event, capsys: pytest.CaptureFixture[str]
) -> Iterator[Batch]:
    """Run a batch with its data in `folder`. It ends when `gate` is set."""
    batch = Batch(folder, capsys)
    try:
        yield batch
    finally:
        gate.set()
        batch.thread.join()


def test_workers_are_listed_added_and_drained(
    long_data_dir: Path, gate: threading.Event, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the first worker has work that it cannot finish."""
    with running(long_data_dir, gate, capsys) as batch:
        look_after(batch)
        assert (long_data_dir / "control.sock").stat().st_mode & 0o077 == 0
    assert batch.status == [0]
    assert not (long_data_dir / "control.sock").exists()


def look_after(batch: Batch) -> None:
    rows = batch.wait(lambda rows: bool(rows) and rows[0][2] == "ready")
    model, name, state, roles, _, blocks, where = rows[0]
    assert (model, name, state, roles) == ("nano", "inline-0", "ready", "encode+denoise+decode")
    assert re.fullmatch(r"\d+/\d+", blocks)
    assert where == "thread inline-0"
    status, message = batch.ask("drain", "inline-0")
    assert status == 2
    assert message == (
        "helios-serve: error: got worker 'inline-0', which is the last one to encode: "
        "add another one first\n"
    )
    message = "helios-serve: error: got worker 'x', expected one of: inline-0\n"
    assert batch.ask("drain", "x") == (2, message)
    message = "helios-serve: error: got model 'huge', expected one of: nano\n"
    assert batch.ask("add", "--model", "huge") == (2, message)
    assert batch.ask("add") == (0, "inline-1 is starting\n")
    message = "inline-2 is starting\ninline-3 is starting\n"
    assert batch.ask("add", "2:encode+denoise", "--model", "nano") == (0, message)
    rows = batch.wait(lambda rows: [row[2] for row in rows] == ["ready"] * 4)
    assert [row[1] for row in rows] == [f"inline-{number}" for number in range(4)]
    assert [row[3] for row in rows] == ["encode+denoise+decode"] * 2 + ["encode+denoise"] * 2
    assert batch.ask("drain", "inline-0") == (0, "inline-0 is draining\n")
    assert batch.workers()[0][2] == "draining"  # it has chunks to decode
    status, message = batch.ask("drain", "inline-1")
    assert status == 2
    assert "got worker 'inline-1', which is the last one to decode: add another" in message
    assert batch.ask("drain", "inline-3") == (0, "inline-3 is draining\n")
    batch.wait(lambda rows: [row[1] for row in rows] == ["inline-0", "inline-1", "inline-2"])


def test_what_is_no_command_is_answered_and_nobody_is_waited_for(
    data_dir: Path, gate: threading.Event, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clients that connect and send nothing do not block others."""
    address = str(data_dir / "control.sock")
    with running(data_dir, gate, capsys) as batch, socket.socket(socket.AF_UNIX) as silent:
        batch.wait(bool)
        silent.connect(address)
        for text, message in (
            (b"nonsense\n", "JSON is malformed"),
            (b'{"action": "dance"}\n', "Invalid enum value 'dance'"),
            (b"", "Input data was truncated"),
        ):
            assert answer(address, text)["error"].startswith(message)
        with suppress(ConnectionError):
            answer(address, b"x" * (2 << 20))
        assert len(batch.workers()) == 1
        gate.set()
        batch.thread.join()
    assert batch.status == [0]


def answer(address: str, text: bytes) -> dict[str, str]:
    """Send `text`, and return the whole answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answers:
            said: dict[str, str] = json.loads(answers.readline())
    return said


@pytest.mark.slow
def test_worker_processes_come_and_go(long_data_dir: Path, tmp_path: Path) -> None:
    """All commands of a user, during a video that lasts longer than all of them."""
    data_dir = str(long_data_dir)
    cli = [sys.executable, "-m", "helios_serve"]
    body = {"prompt": "a dog", "size": "64x64", "num_frames": 33 * 1000}
    (tmp_path / "lines.jsonl").write_text(json.dumps({"custom_id": "a", "body": body}))

    def ask(*arguments: str) -> str:
        command = [*cli, "workers", *arguments, "--data-dir", data_dir]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        return done.stdout

    flags = ["--output", "out", "--data-dir", data_dir, "--device", "cpu"]
    engine = subprocess.Popen([*cli, "run-batch", "lines.jsonl", *flags], cwd=tmp_path)
    try:
        deadline = time.monotonic() + 120
        while "ready" not in ask("list"):
            assert time.monotonic() < deadline
        assert ask("add") == "local-1 is starting\n"
        while ask("list").count("ready") < 2:
            assert time.monotonic() < deadline
        (pid,) = re.findall(r"local-0 .* process (\d+)\n", ask("list"))
        assert ask("drain", "local-0") == "local-0 is draining\n"
        while "local-0" in ask("list"):
            assert time.monotonic() < deadline
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "ready" in ask("list")
        engine.send_signal(signal.SIGINT)
        assert engine.wait(timeout=60) == 130
    finally:
        engine.kill()
        engine.wait()
