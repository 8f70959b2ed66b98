"""Every kernel compiles for a Hopper GPU with its launcher's arguments, and fits."""

import ast
import json
from pathlib import Path

import pytest

from tests.support.kernel_cases import NOT_AT_START
from tests.support.scripts import output_of

SHARED_MEMORY = 227 * 1024
"""Maximum bytes of shared memory of a block on compute capability 9.0."""
KERNELS = {
    node.name
    for source in (Path(__file__).parents[2] / "kernels/triton").glob("*.py")
    for node in ast.parse(source.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
}


@pytest.fixture(
    scope="module", params=["bfloat16", pytest.param("float32", marks=pytest.mark.slow)]
)
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, object]]:
    cache = str(tmp_path_factory.mktemp("triton"))
    printed = output_of("dry_gpu", request.param, TRITON_CACHE_DIR=cache, TRITON_INTERPRET="0")
    found: list[dict[str, object]] = json.loads(printed)
    return found


def test_every_kernel_is_compiled(compiled: list[dict[str, object]]) -> None:
    assert {item["kernel"] for item in compiled} == KERNELS


@pytest.mark.parametrize("memory", ["STACK", "LOCAL"])
def test_no_kernel_spills_registers(memory: str, compiled: list[dict[str, object]]) -> None:
    assert [item for item in compiled if item[memory]] == []


def test_shared_memory_fits(compiled: list[dict[str, object]]) -> None:
    assert [item for item in compiled if int(str(item["SHARED"])) > SHARED_MEMORY] == []


def test_a_worker_compiles_all_it_needs_before_its_first_video(tmp_path: Path) -> None:
    """Other sizes, prompts, stages and batches need no further compilation."""
    printed = output_of("dry_warm_up", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    compiled: dict[str, list[str]] = json.loads(printed)
    assert set(compiled["warm"]) == KERNELS - NOT_AT_START
    assert compiled["later"] == []
