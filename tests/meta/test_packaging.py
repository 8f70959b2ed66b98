"""Installed packages are those on disk, and nothing else is importable at the top level."""

import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import helios_serve
from helios_serve.model_executor.models.nano.checkpoint import WEIGHTS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS = {"helios_serve": "helios_serve"} | {v: k for k, v in SETUPTOOLS["package-dir"].items()}
SCRIPTS = ROOT / "benchmarks" / "micro"
"""Programs that are run from the repository, and not installed."""
MAX_WHEEL_BYTES = 15e6
"""Most of it is the weights of nano."""
PACKAGES = {
    ".".join([name, *init.parent.relative_to(ROOT / folder).parts])
    for folder, name in FOLDERS.items()
    for init in (ROOT / folder).rglob("__init__.py")
}


def test_every_package_on_disk_is_listed() -> None:
    assert set(SETUPTOOLS["packages"]) == PACKAGES


def test_every_source_lies_in_a_package() -> None:
    for folder in FOLDERS:
        for source in (ROOT / folder).rglob("*.py"):
            is_packaged = (source.parent / "__init__.py").exists()
            assert is_packaged or source.is_relative_to(SCRIPTS), source


def test_mapped_packages_are_imported_under_our_name_only() -> None:
    assert importlib.util.find_spec("helios_serve.benchmarks") is not None
    assert importlib.util.find_spec("helios_serve.kernels") is not None
    assert importlib.util.find_spec("helios_serve.model_executor") is not None
    assert importlib.util.find_spec("benchmarks") is None
    assert importlib.util.find_spec("kernels") is None
    assert importlib.util.find_spec("model_executor") is None


def test_triton_is_not_our_package_of_that_name() -> None:
    spec = importlib.util.find_spec("triton")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).resolve() != ROOT / "kernels/triton/__init__.py"


def test_version_is_said_once() -> None:
    assert helios_serve.__version__ == version("helios-serve") == PROJECT["project"]["version"]


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        "/".join([*name.split("."), str(source.relative_to(ROOT / folder))])
        for folder, name in FOLDERS.items()
        for source in (ROOT / folder).rglob("*.py")
        if not source.is_relative_to(SCRIPTS)
    }
    assert {name for name in held if name.endswith(".py")} == expected
    assert {name.split("/")[0] for name in held} == {"helios_serve"}
    assert "helios_serve/py.typed" in held
    playground = ROOT / "helios_serve/entrypoints/http/playground"
    page = {
        f"helios_serve/entrypoints/http/playground/{file.name}" for file in playground.iterdir()
    }
    assert {name for name in page if not name.endswith("__pycache__")} <= held
    nano = "helios_serve/model_executor/models/nano/weights"
    weights = {f"{nano}/{path.name}" for path in WEIGHTS.iterdir()}
    assert {name for name in held if name.endswith(".safetensors")} == weights
    assert wheel.stat().st_size < MAX_WHEEL_BYTES
