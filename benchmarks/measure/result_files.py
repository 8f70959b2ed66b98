"""Files of a result: NAME.json, and NAME.trace.jsonl, NAME.sessions.jsonl and NAME.sessions.csv
next to it.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, NamedTuple

import msgspec

from helios_serve.benchmarks.load.json_file import read_json
from helios_serve.benchmarks.load.request import SessionRequest
from helios_serve.benchmarks.load.trace_file import encode_trace
from helios_serve.benchmarks.measure.metrics import session_metrics
from helios_serve.benchmarks.measure.record import SessionRecord
from helios_serve.errors import InvalidRequestError, StorageError
from helios_serve.options.benchmarks import ReportOptions

COLUMNS = (
    "id", "tenant", "tier", "shape", "outcome", "code", "intended", "sent", "accepted", "ended",
    "chunks", "frames", "ttfc_ms", "e2el_ms", "max_icl_ms", "needed_buffer_ms", "stall_ms",
    "session_rtf",
)  # fmt: skip


class ResultFiles(NamedTuple):
    """Where a result is written: `path` is the JSON file."""

    path: Path

    @classmethod
    def of(cls, report: ReportOptions, default_name: str) -> "ResultFiles | None":
        """Return the files that the options ask for, or None.

        Their folder is created and tested for writing, so that no result is lost after a run.
        Raises StorageError.
        """
        if not (report.save_result or report.result_dir or report.result_filename):
            return None
        files = cls(Path(report.result_dir or ".") / (report.result_filename or default_name))
        try:
            files.path.parent.mkdir(parents=True, exist_ok=True)
            files.path.with_suffix(".tmp").write_bytes(b"")
            files.path.with_suffix(".tmp").unlink()
        except OSError as error:
            raise StorageError(f"cannot write {files.path}: {error.strerror or error}") from error
        return files

    @property
    def trace(self) -> Path:
        return self.path.with_suffix(".trace.jsonl")

    @property
    def sessions(self) -> Path:
        return self.path.with_suffix(".sessions.jsonl")

    @property
    def table(self) -> Path:
        return self.path.with_suffix(".sessions.csv")

    def write(
        self,
        result: dict[str, Any],
        requests: Sequence[SessionRequest],
        records: Sequence[SessionRecord],
    ) -> None:
        """Write all files.

        Raises StorageError, for example on a full disk. Then they are written to the folder for
        temporary files if possible, and the error says so.
        """
        result["helios"]["workload"]["file"] = self.trace.name
        buffer = result["helios"]["player"]["buffer"] if result["helios"]["player"] else 0.0
        lines = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
        write_all(
            {
                self.path: json_of(result),
                self.trace: encode_trace(requests),
                self.sessions: lines,
                self.table: table_of(records, buffer).encode(),
            }
        )

    def write_result(self, result: dict[str, Any]) -> None:
        """Write the JSON file alone. Raises StorageError as `write` does."""
        write_all({self.path: json_of(result)})

    def of_run(self, number: int) -> "ResultFiles":
        """Return the files of run number `number`, from 0, of several."""
        return ResultFiles(self.path.with_name(f"{self.path.stem}-{number + 1}.json"))


def json_of(result: dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n"


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write files; if that fails, write them to a temporary folder, and raise StorageError."""
    try:
        for path, data in files.items():
            write(path, data)
    except StorageError as error:
        folder = Path(mkdtemp(prefix="helios-bench-"))
        try:
            for path, data in files.items():
                write(folder / path.name, data)
        except StorageError:
            rmtree(folder)
            raise error from None
        raise StorageError(f"{error}; the result is in {folder}") from error


def write(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or not there. Raises StorageError."""
    scratch = path.with_name(f".{path.name}.part")
    try:
        scratch.write_bytes(data)
        scratch.replace(path)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def read_result(path: Path) -> dict[str, Any]:
    """Read a result. Raises InvalidRequestError for any other file."""
    found = read_json(path, dict[str, Any], param="result", expected="result")
    if not isinstance(found.get("helios"), dict):
        raise InvalidRequestError(
            f"{path}: got JSON without a helios block, expected a result of helios-serve bench",
            param="result",
        )
    return found


def read_runs(path: Path) -> list[Path]:
    """Return the results of the runs that a result consists of: itself, if it is one run's.

    Raises InvalidRequestError for a file that is not a result.
    """
    runs = read_result(path)["helios"].get("runs")
    return [path.with_name(run["file"]) for run in runs] if runs else [path]


def read_sessions(result: Path) -> list[SessionRecord]:
    """Read the sessions of a result, which are in a file next to it. Raises InvalidRequestError."""
    path = ResultFiles(result).sessions
    try:
        lines = path.read_bytes().splitlines()
        return [msgspec.json.decode(line, type=SessionRecord) for line in lines]
    except OSError as error:
        raise InvalidRequestError(
            f"got {result} without {path.name}, expected it in the same folder: {error.strerror}",
            param="result",
        ) from error
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise InvalidRequestError(f"{path}: {error}", param="result") from error


def table_of(records: Sequence[SessionRecord], buffer: float) -> str:
    """Return the sessions as CSV, with a player's start-up buffer of `buffer` seconds."""
    text = StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for record in records:
        own = session_metrics(record, buffer)
        times = (record.intended, record.sent, record.accepted, record.ended)
        milliseconds = (
            own.ttfc,
            own.e2el,
            max(own.icls, default=None),
            own.needed_buffer,
            own.stall_seconds,
        )
        writer.writerow(
            (
                *(record.id, record.tenant, record.tier, record.shape),
                *(record.outcome, record.code),
                *(None if time is None else f"{time:.6f}" for time in times),
                *(len(record.chunks), record.frames),
                *(None if value is None else f"{1000 * value:.3f}" for value in milliseconds),
                own.session_rtf,
            )
        )
    return text.getvalue()


def default_name(backend: str, load: str, model: str | None, date: str) -> str:
    """Return a file name in the manner of vLLM's: backend, load, model and date."""
    parts = (backend, load, model or "", date)
    return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts if part) + ".json"
