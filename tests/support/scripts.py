"""Runs modules of `tests.support` as programs, in processes of their own."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATH_FOLDER = ROOT / "build" / "tests-path"
"""A folder with only a link to the tests. With the repository's root on the path, its `kernels`
would shadow Hugging Face's package of that name.
"""


def with_tests() -> dict[str, str]:
    """Return environment variables for child processes that import `tests.support`."""
    PATH_FOLDER.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (PATH_FOLDER / "tests").symlink_to(ROOT / "tests")
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(PATH_FOLDER), before)))}


def output_of(module: str, *arguments: str, **environment: str) -> str:
    """Run a module of `tests.support` as a program, and return its output.

    Raises:
        AssertionError: with its standard error, when it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", f"tests.support.{module}", *arguments],
        env=os.environ | with_tests() | environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
