"""`helios-serve run-batch`: generates the videos of a batch file into a folder."""

import argparse
import asyncio
import sys
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import msgspec
from tqdm import tqdm

from helios_serve.engine.preflight import check_model
from helios_serve.entrypoints.cli.arguments import add_log_flags
from helios_serve.entrypoints.cli.flags import (
    add_model_flags,
    add_worker_flags,
    executor_kind,
    scheduling_config,
    worker_groups,
)
from helios_serve.entrypoints.cli.outputs import check_outputs
from helios_serve.errors import HeliosError, InvalidRequestError, describe_error
from helios_serve.logger import logger
from helios_serve.media.mp4 import defragment
from helios_serve.model_config import num_chunks
from helios_serve.service.batches.batch_line import BatchLine, line_name, local_request, parse_line
from helios_serve.service.errors import ApiError
from helios_serve.service.json_text import without_mark
from helios_serve.store.batches import LineError
from helios_serve.store.files import storage_errors, write_file
from helios_serve.video_request import VideoRequest

if TYPE_CHECKING:
    from helios_serve.engine.requests.async_engine import AsyncEngine
    from helios_serve.store.video_store import VideoStore

EPILOG = """\
Each line of the input is a request in OpenAI's batch format, such as
{"custom_id": "sea", "body": {"prompt": "a calm sea", "seconds": 5}}. The videos and results.jsonl
are written to the output folder. To resume an interrupted batch, run the same command again.

examples:
  helios-serve run-batch requests.jsonl --output videos
  helios-serve run-batch requests.jsonl --output videos --workers 2 --trace trace.json
  helios-serve run-batch requests.jsonl --output videos --ray-address auto \\
    --workers 1:encode+decode@gpus=0.5 --workers 4:denoise@gpus=1
"""
RESULTS = "results.jsonl"
STATE = ".helios"
MAX_AT_ONCE = 256
"""Maximum number of requests in the engine: enough to fill many workers, with bounded memory."""
MAX_NAME = 200
"""Maximum bytes of a video's file name. File systems allow 255, and temporary names are longer."""


class BatchResult(msgspec.Struct, frozen=True):
    """The result of a line. `file` is the video's name in the output folder."""

    custom_id: str
    status: Literal["completed", "failed"]
    file: str | None = None
    frames: int = 0
    error: str | None = None


def add_command(commands: Any) -> None:
    """Register the command and its flags."""
    parser = commands.add_parser(
        "run-batch",
        help="generate the videos of a batch file",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_config_flag()
    add_log_flags(parser)
    parser.add_argument("input", type=Path, metavar="FILE.jsonl", help="one request per line")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="output folder of the videos"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="FOLDER",
        help="folder for unfinished work, which `helios-serve workers` also takes as --data-dir "
        f"(default: OUTPUT/{STATE})",
    )
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE.json",
        help="write a timeline of the workers' tasks, for Perfetto (default: none)",
    )
    add_model_flags(parser)
    add_worker_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Generate all videos. Returns 1 if some of them failed, else 0."""
    lines = read_lines(arguments.input)
    check_lines(arguments.input, lines)
    check_outputs(arguments, folders=("output",))
    check_model(
        arguments.model, worker_groups(arguments, arguments.model), executor_kind(arguments)
    )
    with storage_errors("make", arguments.output):
        arguments.output.mkdir(parents=True, exist_ok=True)
    with opened_engine(arguments) as (engine, store):
        batch = BatchRun(arguments, engine, store)
        results = asyncio.run(batch.run(lines))
    path = arguments.output / RESULTS
    write_file(path, b"".join(msgspec.json.encode(result) + b"\n" for result in results))
    failed = [result for result in results if result.status == "failed"]
    for result in failed:
        print(f"{result.custom_id}: {result.error}", file=sys.stderr)
    print(f"{path}: {len(results) - len(failed)} videos, {len(failed)} failed")
    return 1 if failed else 0


def read_lines(path: Path) -> list[bytes]:
    """Return the lines that are not empty. Raises InvalidRequestError if there are none."""
    try:
        text = without_mark(path.read_bytes())
        lines = [bytes(line) for line in text.splitlines() if line.strip()]
    except ApiError as error:
        raise InvalidRequestError(f"{path}: {error}", param="input") from error
    except OSError as error:
        raise InvalidRequestError(
            f"got {path}, expected a readable batch file: {error.strerror}", param="input"
        ) from error
    if not lines:
        raise InvalidRequestError(
            f"got empty file {path}, expected at least one request", param="input"
        )
    return lines


def check_lines(path: Path, lines: list[bytes]) -> None:
    """Raise InvalidRequestError for a file without a single request: it is another kind of file."""
    first: LineError | None = None
    for number, text in enumerate(lines, 1):
        line = parse_line(text, number)
        if not isinstance(line, LineError):
            return
        first = first or line
    assert first is not None, "the file has lines"
    raise InvalidRequestError(
        f"got {path}, expected a batch file: none of its {len(lines)} lines is a request "
        f"(line {first.line}: {first.message})",
        param="input",
    )


@contextmanager
def opened_engine(arguments: argparse.Namespace) -> Iterator[tuple["AsyncEngine", "VideoStore"]]:
    """Yield the engine that the flags configure, not running yet, and its store."""
    # Imported late: torch takes seconds to import, and --help and errors must be immediate.
    from helios_serve.store.video_store import VideoStore

    with ExitStack() as opened:
        store = VideoStore(data_dir(arguments))
        opened.callback(store.close)
        logger.info("loading %s", arguments.model)
        from helios_serve.engine.launch import launch
        from helios_serve.engine.observe.trace import Trace
        from helios_serve.engine.requests.async_engine import AsyncEngine

        trace = None
        if arguments.trace is not None:
            trace = opened.enter_context(Trace(arguments.trace))
        core = launch(
            arguments.model,
            worker_groups(arguments, arguments.model),
            executor_kind(arguments),
            ray_address=arguments.ray_address,
            scheduling=scheduling_config(arguments),
            trace=trace,
            is_server=False,
        )
        yield AsyncEngine({arguments.model: core}, store), store


def data_dir(arguments: argparse.Namespace) -> Path:
    folder: Path = arguments.data_dir or arguments.output / STATE
    return folder


class BatchRun:
    """Runs the requests of one batch file."""

    def __init__(
        self, arguments: argparse.Namespace, engine: "AsyncEngine", store: "VideoStore"
    ) -> None:
        self.model: str = arguments.model
        self.folder: Path = arguments.input.parent
        self.output: Path = arguments.output
        self.data_dir = data_dir(arguments)
        self.engine = engine
        self.store = store
        self.bar: Any = None

    async def run(self, lines: list[bytes]) -> list[BatchResult]:
        """Return the result of each line, in the same order."""
        from helios_serve.service.control import ControlServer

        slots = asyncio.Semaphore(MAX_AT_ONCE)
        names: set[str] = set()
        self.bar = tqdm(unit="chunk", desc="generating")

        async def run_line(number: int, text: bytes) -> BatchResult:
            async with slots:
                return await self._run_line(number, text, names)

        with self.bar:
            async with self.engine, ControlServer(self.engine, self.data_dir):
                return await asyncio.gather(*map(run_line, range(1, len(lines) + 1), lines))

    async def _run_line(self, number: int, text: bytes, names: set[str]) -> BatchResult:
        name, custom_id = f"line {number}", line_name(text)
        try:
            if custom_id in names:
                raise InvalidRequestError(
                    f"got duplicate custom_id {custom_id!r}, expected unique ids", param="custom_id"
                )
            if custom_id is not None:
                file_name(custom_id)
                names.add(name := custom_id)
            line = parse_line(text, number)
            if isinstance(line, LineError):
                raise InvalidRequestError(line.message, param="body")
            return await self._make_video(await self._request(line))
        except OSError as error:
            return BatchResult(name, "failed", error=str(error))
        except Exception as error:  # fails this line only
            if not isinstance(error, HeliosError):
                logger.error("%s failed", name, exc_info=error)
            return BatchResult(name, "failed", error=describe_error(error))

    async def _request(self, line: BatchLine) -> VideoRequest:
        """Build the request of a line.

        Without a seed, it keeps the random seed of an earlier run.
        """
        config = self.engine.models.model_config(self.model)
        request = await asyncio.to_thread(local_request, line, self.folder, self.model, config)
        earlier = await asyncio.to_thread(self.store.request, line.custom_id)
        if earlier is None or line.body.get("seed") is not None:
            return request
        params = msgspec.structs.replace(request.params, seed=earlier.params.seed)
        return msgspec.structs.replace(request, params=params)

    async def _make_video(self, request: VideoRequest) -> BatchResult:
        name, wanted = request.request_id, request.params.num_frames
        self.bar.total = (self.bar.total or 0) + num_chunks(wanted)
        job = await asyncio.to_thread(self.store.job, name)
        if job is not None and job.status in ("failed", "cancelled"):  # retry it
            await asyncio.to_thread(self.store.delete, name)
            job = None
        if job is None:
            await self.engine.submit(request)
        elif await asyncio.to_thread(self.store.request, name) != request:
            raise InvalidRequestError(
                f"got custom_id {name!r} with a different request than in {self.data_dir}, "
                "expected the same request or another --data-dir",
                param="custom_id",
            )
        file = file_name(name)
        part = self.output / f".{file}.part"
        try:
            await self._write(name, part)
            await run_to_completion(asyncio.to_thread(defragment, part))
            part.replace(self.output / file)
        finally:
            part.unlink(missing_ok=True)
        return BatchResult(name, "completed", file, frames=wanted)

    async def _write(self, name: str, path: Path) -> None:
        """Write the video as fragmented MP4 while it is generated."""
        with path.open("wb") as part:
            async for chunk in self.engine.watch(name):
                assert chunk.segment is not None, "stored videos come in segments"
                if chunk.index == 0:
                    part.write(chunk.segment.header)
                part.write(chunk.segment.fragment)
                self.bar.update()


async def run_to_completion(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, even if the caller is cancelled.

    Otherwise its thread might still write to a file that the caller removes.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    finally:
        await asyncio.wait((task,))


def file_name(name: str) -> str:
    """Return the file name of a video.

    Raises InvalidRequestError if its id is empty or too long.
    """
    quoted = quote(name, safe="")
    if not 1 <= len(quoted) <= MAX_NAME:
        raise InvalidRequestError(
            f"got a custom_id of {len(quoted)} bytes (URL-encoded), expected 1 to {MAX_NAME}",
            param="custom_id",
        )
    return f"{quoted}.mp4"
