"""Counted work is that of the modules as they are."""

from itertools import pairwise

import pytest
import torch

from helios_serve.core.cost import forward_flops
from helios_serve.kernels.registry import META, REFERENCE
from helios_serve.model_config import Geometry
from helios_serve.model_executor.counts import (
    META as DEVICE,
)
from helios_serve.model_executor.counts import (
    Count,
    Work,
    count_decode,
    count_forward,
)
from helios_serve.model_executor.loader import Checkpoint, open_checkpoint
from tests.support.kernel_cases import Make, small_cases

SIZE = Geometry(64, 96)
CASES = {
    name: call
    for name, call in small_cases().items()
    if not name.startswith(("quantize", "norm and SiLU"))  # these write into their inputs
}


@pytest.fixture(scope="module")
def nano() -> Checkpoint:
    return open_checkpoint("nano", "dummy")


@pytest.mark.parametrize("name", CASES)
def test_kernels_have_the_shapes_and_dtypes_of_the_references(name: str) -> None:
    expected = CASES[name](REFERENCE, Make(torch.float32))
    with Count() as count:
        got = CASES[name](META, Make(torch.float32, DEVICE))
    assert [item.shape for item in got] == [item.shape for item in expected]
    assert [item.dtype for item in got] == [item.dtype for item in expected]
    launches = [work.launches for kernel, work in count.by_name.items() if "::" not in kernel]
    assert launches == [1]


def test_operations_count_once_and_views_not_at_all() -> None:
    x = torch.empty(8, 16, device=DEVICE)
    with Count() as count:
        y = (x.t() @ x).view(-1)[:32]
        y.add_(1)
    assert count.by_name["aten::mm"] == Work(1, 2 * 16 * 8 * 16, 4 * (2 * 8 * 16 + 16 * 16))
    assert count.by_name["aten::add_"] == Work(1, 0.0, 4 * 2 * 32)
    assert count.total().launches == 2
    assert count.total("matmul") == count.by_name["aten::mm"]


def test_what_is_written_into_a_given_tensor_counts_once() -> None:
    x, weight, bias = (torch.empty(*shape, device=DEVICE) for shape in ((8, 16), (16, 4), (4,)))
    with Count() as count:
        torch.addmm(bias, x, weight, out=torch.empty(10, 4, device=DEVICE)[1:9])
    assert count.by_name["aten::addmm"] == Work(1, 2 * 8 * 16 * 4, 4 * (4 + 128 + 64 + 32))


def test_patches_are_embedded_without_a_copy(nano: Checkpoint) -> None:
    """Each product is written to its place; what is joined are the waves of two timesteps."""
    count = count_forward(nano.config, SIZE, 2)
    assert count.by_name["aten::cat"] == Work(1, 0.0, 4 * 2 * 2 * 256)
    assert "aten::copy_" not in count.by_name


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_flops_are_those_that_the_scheduler_charges(stage: int, nano: Checkpoint) -> None:
    """But for the embedding of timesteps, which depends on no token."""
    count, expected = (
        count_forward(nano.config, SIZE, stage),
        forward_flops(nano.config, SIZE, stage),
    )
    assert count.total("attention").flops == expected.attention
    assert count.total("matmul").flops == pytest.approx(expected.linear, rel=0.02)
    assert count.total("matmul").flops > expected.linear


def test_fp8_adds_a_kernel_only_for_the_results_of_attention(nano: Checkpoint) -> None:
    """Norms and GELU quantize their results themselves."""
    plain, fp8 = (count_forward(nano.config, SIZE, 2, choice) for choice in (None, "fp8"))
    layers = nano.config.transformer.num_layers
    quantized = fp8.by_name["quantize_rows"].launches
    assert quantized == 2 * layers
    assert fp8.by_name["gelu_fp8"].launches == layers
    assert fp8.by_name["aten::_scaled_mm"].launches == 6 * layers + 1
    assert fp8.total().launches == plain.total().launches + quantized
    assert fp8.total("matmul").flops == plain.total("matmul").flops
    assert fp8.total("matmul").bytes < plain.total("matmul").bytes


def test_decoding_grows_with_the_pixels_and_not_in_launches(nano: Checkpoint) -> None:
    sizes = [Geometry(64, 64), Geometry(64, 128), Geometry(128, 128)]
    counts = [count_decode(nano.folder, size) for size in sizes]
    assert len({count.total().launches for count in counts}) == 1
    for small, large in pairwise(counts):
        factor = large.total("convolution").flops / small.total("convolution").flops
        assert factor == pytest.approx(2, rel=0.05)
        assert large.total().bytes > 1.8 * small.total().bytes


def test_nothing_is_computed_or_left_behind(nano: Checkpoint) -> None:
    """Kernels of other devices are chosen as before."""
    count_forward(nano.config, SIZE, 0)
    x = torch.ones(3, 4)
    assert (x @ x.t()).eq(4).all()
