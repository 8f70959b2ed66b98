"""Permissions of stored files: only the owner may access them, whatever the umask."""

import asyncio
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from helios_serve.engine.observe.trace import EventFile
from helios_serve.media.mp4 import encode_chunk
from helios_serve.messages import Snapshot
from helios_serve.options.sampling import SamplingParams
from helios_serve.service.media.data_urls import write_data_url
from helios_serve.service.videos.finished_files import FinishedFiles
from helios_serve.store.files import create_file, make_folder, write_file
from helios_serve.store.keys import KeyStore
from helios_serve.store.service_tables import ServiceTables
from helios_serve.store.snapshots import ResumePoint
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import Frames, VideoRequest


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Permissions of a folder and of everything in it, by path."""
    found = [folder, *folder.rglob("*")]
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in found}


def check_private(folder: Path) -> set[str]:
    """Assert that only the owner may access what is in a folder; returns the files."""
    files = set()
    for name, mode in modes(folder).items():
        is_folder = (folder / name).is_dir()
        assert mode == (0o700 if is_folder else 0o600), (name, oct(mode))
        if not is_folder:
            files.add(name)
    return files


def write_everything(folder: Path) -> None:
    """A video with all its files, an uploaded file and a key; the databases stay open."""
    params = SamplingParams(width=64, height=64, num_frames=33)
    frames = Frames(bytes(33 * 64 * 64 * 3), 33, 64, 64)
    picture = Frames(bytes(64 * 64 * 3), 1, 64, 64)
    request = VideoRequest(
        request_id="video_1", prompt="a", model="nano", params=params, image=picture
    )
    with (
        closing(VideoStore(folder)) as store,
        closing(KeyStore(folder)) as keys,
        closing(ServiceTables(folder)) as tables,
    ):
        keys.create("acme")
        store.accept(request, num_chunks=1)
        segment = encode_chunk(frames, chunk=0, fps=24)
        nothing = Snapshot(1, b"", b"", b"", 19, "float32", 64, 64)
        assert store.commit("video_1", 0, segment, ResumePoint(nothing))
        store.finish("video_1", "completed")
        job = store.job("video_1")
        assert job is not None
        finished = FinishedFiles(folder / "finished", store)
        for variant in ("video", "thumbnail", "spritesheet"):
            finished.get(job, variant)
        with create_file(tables.files.scratch("file-1")) as file:
            file.write(b"a")
        tables.files.add("file-1", "acme", "a.jsonl", "batch")
        write_data_url("data:,a", folder / "reference")
        EventFile(folder / "trace.json", lambda: 0.0).close()
        files = check_private(folder)
    for database in ("jobs", "keys", "service"):
        assert {f"{database}.sqlite3{end}" for end in ("", "-wal", "-shm")} <= files
    assert {
        "files/file-1",
        "finished/video_1.mp4",
        "finished/video_1.webp",
        "inputs/video_1/media.msgpack",
        "lock",
        "segments/video_1/00000.m4s",
        "snapshots/video_1/00001.msgpack",
    } <= files


def test_everything_stored_is_private(tmp_path: Path, umask: int) -> None:  # noqa: ARG001
    write_everything(tmp_path / "new" / "data")
    check_private(tmp_path / "new")


def test_a_folder_of_an_earlier_version_becomes_private(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(0o755)
    for name in ("jobs", "keys", "service"):
        (folder / f"{name}.sqlite3").touch(0o644)
    (folder / "lock").touch(0o644)
    write_everything(folder)


def test_files_are_replaced_by_private_ones(tmp_path: Path, umask: int) -> None:  # noqa: ARG001
    old = tmp_path / "old"
    old.touch(0o666)
    write_file(old, b"a")
    with create_file(old) as file:
        file.write(b"b")
    assert (old.read_bytes(), modes(tmp_path)["old"]) == (b"b", 0o600)
    make_folder(tmp_path / "a" / "b")
    assert [modes(tmp_path)[name] for name in ("a", "a/b")] == [0o700, 0o700]


def test_other_than_regular_files_keep_their_permissions(tmp_path: Path) -> None:
    """Such as --trace /dev/stdout."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe").chmod(0o622)
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    create_file(tmp_path / "pipe").close()
    os.close(reader)
    assert modes(tmp_path)["pipe"] == 0o622


def test_the_control_socket_is_private(tmp_path: Path, umask: int) -> None:  # noqa: ARG001
    from helios_serve.engine.requests.async_engine import AsyncEngine
    from helios_serve.service.control import ControlServer

    async def open_socket() -> None:
        async with ControlServer(AsyncEngine({}), tmp_path):
            assert modes(tmp_path)["control.sock"] == 0o600

    asyncio.run(open_socket())
