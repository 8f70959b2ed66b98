"""The tests of policy and files run without torch, so that they start at once."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = ("diffusers", "torch", "transformers")
ROOMS = ("tests/core", "tests/store")
PROGRAM = f"""
import sys

import pytest

status = pytest.main(["-q", "-k", "test_cost or test_keys", *{ROOMS}])
print("imported:", [name for name in {HEAVY} if name in sys.modules])
sys.exit(status)
"""


def test_core_and_store_import_no_torch() -> None:
    """Every module of both packages is imported, and two of their tests run."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "imported: []" in done.stdout.splitlines()
