"""The deploy config of the package."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from helios_serve.entrypoints.cli.main import main
status = main(["vllm-omni-config"])
slow = {"torch", "ray", "vllm_omni", "diffusers"} & sys.modules.keys()
raise SystemExit(status or (str(slow) if slow else 0))
"""


def test_its_place_is_printed_at_once_and_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert "engine_backend: helios_serve.integrations" in Path(line).read_text()
