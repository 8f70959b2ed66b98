"""A floor imports only lower floors, at import time and in functions, without cycles."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "helios_serve.model_executor": "model_executor",
    "helios_serve.kernels": "kernels",
    "helios_serve.benchmarks": "benchmarks",
    "helios_serve.benchmarks.simulator": "benchmarks/simulator",
}
SCRIPTS = ROOT / "benchmarks" / "micro"
"""Programs that are run from the repository: they measure parts of any floor."""
CONTRACTS = {
    f"helios_serve.{name}"
    for name in (
        "errors",
        "logger",
        "messages",
        "metrics",
        "model_config",
        "options",
        "size",
        "spans",
        "stage_seconds",
        "video_request",
    )
}
ENGINE = {
    "helios_serve.core",
    "helios_serve.media",
    "helios_serve.model_executor",
    "helios_serve.store",
}
SERVICE = {"helios_serve.engine", "helios_serve.media", "helios_serve.store"}
MAY_IMPORT = {
    "helios_serve.kernels": set(),
    "helios_serve.benchmarks": CONTRACTS | {"helios_serve.media"},
    "helios_serve.benchmarks.simulator": CONTRACTS
    | {
        "helios_serve.benchmarks",
        "helios_serve.core",
        "helios_serve.engine",
        "helios_serve.model_executor",
        "helios_serve.store",
    },
    "helios_serve.media": CONTRACTS,
    "helios_serve.store": CONTRACTS,
    "helios_serve.core": CONTRACTS,
    "helios_serve.model_executor": CONTRACTS | {"helios_serve.kernels", "helios_serve.media"},
    "helios_serve.engine": CONTRACTS | ENGINE,
    "helios_serve.service": CONTRACTS | SERVICE,
    "helios_serve.offline": CONTRACTS | {"helios_serve.engine", "helios_serve.media"},
    "helios_serve.entrypoints": CONTRACTS
    | SERVICE
    | {"helios_serve.benchmarks", "helios_serve.service", "helios_serve.offline"},
    "helios_serve.integrations": CONTRACTS | {"helios_serve.engine", "helios_serve.media"},
    "helios_serve.__main__": {"helios_serve.entrypoints"},
} | dict.fromkeys(CONTRACTS, CONTRACTS)
OWN_FLOORS = ("helios_serve.benchmarks.simulator",)
"""Folders inside another floor's, which are floors of their own."""
TORCH_FREE = ("benchmarks", "helios_serve/core", "helios_serve/media", "helios_serve/store")


def sources(package: str) -> list[Path]:
    folder = ROOT / FOLDERS.get(package, package.replace(".", "/"))
    inner = [ROOT / FOLDERS[name] for name in OWN_FLOORS if name != package]
    files = [
        path
        for path in folder.rglob("*.py")
        if path.parent not in inner and not path.is_relative_to(SCRIPTS)
    ]
    return files if folder.is_dir() else [folder.with_suffix(".py")]


def imports(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(source: Path) -> str:
    parts = source.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "helios_serve" else ("helios_serve", *parts)
    return ".".join(parts).removesuffix(".__init__")


ALL_SOURCES = [
    path
    for folder in ("helios_serve", "model_executor", "kernels", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.is_relative_to(SCRIPTS)
]


@pytest.mark.parametrize("floor", sorted(MAY_IMPORT))
def test_a_floor_imports_only_what_it_may(floor: str) -> None:
    for source in filter(Path.exists, sources(floor)):
        for name in imports(source):
            parts = name.split(".")
            where = f"{source.relative_to(ROOT)} imports {name}"
            assert parts[0] not in ("benchmarks", "kernels", "model_executor"), where
            if parts[0] == "helios_serve" and parts[1:] != ["__version__"]:
                assert ".".join(parts[:2]) in MAY_IMPORT[floor] | {floor}, where


def test_every_module_stands_on_a_floor() -> None:
    for source in ALL_SOURCES:
        name = module_name(source)
        assert name == "helios_serve" or ".".join(name.split(".")[:2]) in MAY_IMPORT, name


def test_modules_form_no_cycle() -> None:
    names = {module_name(source) for source in ALL_SOURCES}
    graph = {
        module_name(source): {
            target
            for name in imports(source)
            for target in (name, name.rpartition(".")[0])
            if target in names - {module_name(source), "helios_serve"}
        }
        for source in ALL_SOURCES
    }
    TopologicalSorter(graph).prepare()


def test_serving_imports_nothing_of_the_training() -> None:
    training = "helios_serve.model_executor.training"
    for source in ALL_SOURCES:
        if not module_name(source).startswith(training):
            assert not any(name.startswith(training) for name in imports(source)), source


def test_only_its_own_command_imports_the_simulator() -> None:
    simulator = "helios_serve.benchmarks.simulator"
    command = "helios_serve.entrypoints.cli.simulate"
    for source in ALL_SOURCES:
        if not module_name(source).startswith((simulator, command)):
            assert not any(name.startswith(simulator) for name in imports(source)), source


def test_policy_and_files_need_no_torch() -> None:
    contracts = [ROOT / f"{name.replace('.', '/')}.py" for name in CONTRACTS]
    for source in ALL_SOURCES:
        if str(source.relative_to(ROOT)).startswith(TORCH_FREE) or source in contracts:
            assert "torch" not in {name.split(".")[0] for name in imports(source)}, source


def test_devices_are_named_in_one_module_a_floor() -> None:
    """Everything else goes through torch's device API, so that any accelerator will do."""
    naming = {Path("model_executor/device.py"), Path("kernels/attention.py")}
    for source in ALL_SOURCES:
        if source.relative_to(ROOT) in naming:
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            where = f"{source.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            assert not (isinstance(node, ast.Constant) and node.value == "cuda"), where
            assert not (isinstance(node, ast.Attribute) and node.attr == "cuda"), where
