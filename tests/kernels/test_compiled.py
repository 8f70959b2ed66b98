"""Every kernel compiles for Hopper and Blackwell as its launcher asks for it, and fits."""

import ast
import json
from pathlib import Path

import pytest
import torch

from tests.support.kernel_cases import NOT_AT_START
from tests.support.scripts import output_of

SHARED_MEMORY = 227 * 1024
"""Bytes that one block may have on compute capability 9.0 and 10.0."""
ROW_REGISTERS = {"bfloat16": 64, "float32": 80}
"""With 64 and 16 warps a block, two blocks share a multiprocessor, which hides memory latency.
GPUs serve in bfloat16; float32 is for comparisons."""
ROW_KERNELS = {"norm_modulate_kernel", "residual_norm_kernel", "qk_norm_rope_kernel"}
KERNELS = {
    node.name
    for source in (Path(__file__).parents[2] / "kernels/triton").glob("*.py")
    for node in ast.parse(source.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
}


@pytest.fixture(
    scope="module",
    params=[
        ("bfloat16", "90"),
        pytest.param(("bfloat16", "100"), marks=pytest.mark.slow),
        pytest.param(("float32", "90"), marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, object]]:
    cache = str(tmp_path_factory.mktemp("triton"))
    printed = output_of("dry_gpu", *request.param, TRITON_CACHE_DIR=cache, TRITON_INTERPRET="0")
    found: list[dict[str, object]] = json.loads(printed)
    return found


def test_every_kernel_is_compiled(compiled: list[dict[str, object]]) -> None:
    assert {item["kernel"] for item in compiled} == KERNELS


@pytest.mark.parametrize("memory", ["STACK", "LOCAL"])
def test_no_kernel_spills_registers(memory: str, compiled: list[dict[str, object]]) -> None:
    assert [item for item in compiled if item[memory]] == []


def test_shared_memory_fits(compiled: list[dict[str, object]]) -> None:
    assert [item for item in compiled if int(str(item["SHARED"])) > SHARED_MEMORY] == []


def test_row_kernels_leave_room_for_a_second_block(
    compiled: list[dict[str, object]], request: pytest.FixtureRequest
) -> None:
    dtype = next(name for name in ROW_REGISTERS if name in request.node.name)
    rows = [item for item in compiled if item["kernel"] in ROW_KERNELS]
    assert {item["kernel"] for item in rows} == ROW_KERNELS
    assert [item for item in rows if int(str(item["REG"])) > ROW_REGISTERS[dtype]] == []


def test_offsets_are_wide_where_a_segment_needs_it() -> None:
    """Nothing is allocated for tensors of this size."""
    from helios_serve.kernels.triton.attention import is_wide

    strides = 3 * 40 * 128, 128, 1
    value = torch.empty_strided((200_000, 40, 128), strides, device="meta")
    assert [is_wide(rows, value) for rows in (11_040, 139_810, 139_811)] == [False, False, True]


def test_a_worker_compiles_all_it_needs_before_its_first_video(tmp_path: Path) -> None:
    """Other sizes, prompts, stages and batches need no further compilation."""
    printed = output_of("dry_warm_up", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    compiled: dict[str, list[str]] = json.loads(printed)
    assert set(compiled["warm"]) == KERNELS - NOT_AT_START
    assert compiled["later"] == []
