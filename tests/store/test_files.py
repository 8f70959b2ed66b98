"""Files are written atomically, and names cannot leave their folder."""

import errno
import os
from pathlib import Path

import pytest

from helios_serve.errors import StorageError
from helios_serve.messages import TensorData
from helios_serve.store.checked_files import read_struct, write_struct
from helios_serve.store.files import (
    DamagedFileError,
    locked,
    read_file,
    write_file,
)
from helios_serve.store.job_files import folder_name

HOSTILE_IDS = [
    "", ".", "..", "../../x", "a/b", "/etc", "a\\b", "a b", "%2e%2e", "a\0b", "a\n", "A", "a", "~a",
    "-rf", "5" * 500, "5" * 501, "ü", "u\u0308", "视频", "🐕",
]  # fmt: skip


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    for data in (b"long content", b"", b"short"):
        write_file(path, data)
        assert read_file(path) == data
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full_disk)
        with pytest.raises(StorageError, match=f"cannot write {path}: No space left on device"):
            write_file(path, b"new")
    assert read_file(path) == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(DamagedFileError, match=f"{path} is missing"):
        read_file(path)
    value = TensorData(b"data", (1, 4), "bfloat16")
    write_struct(path, value)
    assert read_struct(path, TensorData) == value
    whole = path.read_bytes()
    for data in (b"", whole[:-1], whole + b"x", whole.replace(b"bfloat16", b"\xff" * 8)):
        path.write_bytes(data)
        with pytest.raises(DamagedFileError, match=f"{path} is damaged"):
            read_struct(path, TensorData)


def test_what_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"cannot read {tmp_path}: Is a directory") as raised:
        read_file(tmp_path)
    assert not isinstance(raised.value, DamagedFileError)


def test_a_folder_is_locked_until_it_is_released(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            locked(tmp_path),
            pytest.raises(StorageError, match=f"{tmp_path} is in use by another server"),
            locked(tmp_path),
        ):
            pass


def test_hostile_ids_get_names_of_their_own() -> None:
    names = [folder_name(job_id) for job_id in HOSTILE_IDS]
    assert len({name.lower() for name in names}) == len(HOSTILE_IDS)
    for name in names:
        assert Path(name).name == name
        assert name.isascii()
        assert len(name) <= 100
