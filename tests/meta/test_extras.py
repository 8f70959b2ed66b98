"""What is an extra is not needed by what does without it."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.meta.test_floors import ALL_SOURCES, ROOT, imports

RAY_EXECUTOR = "helios_serve.model_executor.executor.ray"

ABSENT = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name.partition(".")[0] in ("ray", "obstore") else find_spec(name, path, target)
)
"""
"""They are not found, as where they are not installed, in a process and in its workers."""


def run(folder: Path, program: str) -> "subprocess.CompletedProcess[str]":
    """Run a program without extras; `sitecustomize` is imported by every process."""
    (folder / "sitecustomize.py").write_text(ABSENT)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def command(*words: str) -> str:
    return f"from helios_serve.entrypoints.cli.main import main; raise SystemExit(main({words!r}))"


def test_only_the_ray_executor_imports_ray() -> None:
    """It is imported when it is chosen."""
    found = {
        source.relative_to(ROOT).as_posix()
        for source in ALL_SOURCES
        if "ray" in {name.partition(".")[0] for name in imports(source)}
    }
    assert found == {
        "model_executor/executor/ray.py",
        "model_executor/executor/ray_connection.py",
        "model_executor/executor/ray_worker.py",
    }
    for source in ALL_SOURCES:
        if any(name.startswith(RAY_EXECUTOR) for name in imports_at_start(source)):
            assert source.relative_to(ROOT).as_posix() in found


def imports_at_start(source: Path) -> Iterator[str]:
    """The modules that a module imports when it is imported itself."""
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.slow
def test_local_workers_do_without_ray(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text(
        '{"custom_id": "a", "body": {"prompt": "a dog", "num_frames": 1, "size": "64x64"}}\n'
    )
    words = ("run-batch", "lines.jsonl", "--output", "videos", "--device", "cpu")
    done = run(tmp_path, command(*words))
    assert done.stdout == "videos/results.jsonl: 1 videos, 0 failed\n", done.stderr


@pytest.mark.parametrize("flags", [("--executor", "ray"), ("--ray-address", "auto")])
def test_ray_without_its_package_is_named_with_its_extra(
    flags: tuple[str, str], tmp_path: Path
) -> None:
    done = run(tmp_path, command("serve", "--port", "0", *flags))
    assert done.returncode == 2
    assert done.stderr == (
        "helios-serve: error: got executor ray without the package ray: "
        "pip install 'helios-serve[ray]'\n"
    )


def test_an_object_store_without_its_package_is_named_with_its_extra(tmp_path: Path) -> None:
    done = run(tmp_path, command("serve", "--port", "0", "--object-store", "s3://bucket"))
    assert done.returncode == 2
    assert done.stderr == (
        "helios-serve: error: got --object-store without the package obstore: "
        "pip install 'helios-serve[objects]'\n"
    )
