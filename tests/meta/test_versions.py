"""The suite can run with other versions of torch than the pinned one."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPECIAL = sorted(ROOT.glob("constraints-torch-*.txt"))


def pins(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines), f"{path.name} pins a package twice"
    return found


def make(*words: str, **environment: str) -> str:
    done = subprocess.run(
        ["make", *words],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("special", SPECIAL, ids=lambda path: path.stem)
def test_an_environment_has_its_own_pins_and_all_others(special: Path) -> None:
    target = ROOT / "build" / special.name
    make("-B", str(target.relative_to(ROOT)))
    assert pins(target) == pins(ROOT / "constraints.txt") | pins(special)
    assert pins(special)["torch"].startswith(special.stem.removeprefix("constraints-torch-"))


def test_a_variable_chooses_the_environment_of_every_target() -> None:
    for lines in (make("-n", "test", "TORCH=2.11"), make("-n", "test", TORCH="2.11")):
        assert ".venv-torch-2.11/bin/pip install -q -c build/constraints-torch-2.11.txt" in lines
        assert "\n.venv-torch-2.11/bin/pytest " in lines
    assert "torch-2.11" not in make("-n", "test")
