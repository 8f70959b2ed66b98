"""Runs a script of this folder in a process of its own, where triton can be imported anew."""

import os
import subprocess
import sys
from pathlib import Path

SUPPORT = Path(__file__).parent
BESIDE = {"PYTHONPATH": str(SUPPORT)}
"""With it scripts find their neighbours under PYTHONSAFEPATH too, which `make` sets."""


def output_of(script: str, *arguments: str, **environment: str) -> str:
    """What the script prints.

    Raises:
        AssertionError: with what it said, when it fails.
    """
    done = subprocess.run(
        [sys.executable, SUPPORT / script, *arguments],
        env=os.environ | BESIDE | environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
