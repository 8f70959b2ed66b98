"""Runs modules of `tests.support` as programs, in processes of their own."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATH_FOLDER = ROOT / "build" / "tests-path"
"""Holds nothing but a link to the tests: with the repository's root on the path, its `kernels`
would shadow Hugging Face's package of that name."""


def with_tests() -> dict[str, str]:
    """Environment variables under which a child process finds `tests.support`, and what this
    process finds."""
    PATH_FOLDER.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (PATH_FOLDER / "tests").symlink_to(ROOT / "tests")
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(PATH_FOLDER), before)))}


def output_of(module: str, *arguments: str, **environment: str) -> str:
    """What a module of `tests.support` prints when it is run.

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
