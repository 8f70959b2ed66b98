"""On a GPU: bf16 kernels against references in higher precision, and a forward against fp32."""

import pytest
import torch

from helios_serve.kernels.registry import REFERENCE, kernels_of
from tests.support.kernel_cases import Call, Make, error, large_cases, small_cases
from tests.support.packed_forward import flow, mixed_segments, tiny_transformer

HAS_GPU = torch.accelerator.is_available() and torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")]
DEVICE = torch.device("cuda", 0)
CASES: dict[str, Call] = {f"small: {name}": call for name, call in small_cases().items()} | {
    f"large: {name}": call for name, call in large_cases().items()
}
TOLERANCE = 2**-7
"""Two roundings to bf16 at the largest value."""


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_kernels_are_close_to_double_precision(name: str) -> None:
    """Inputs are rounded to bf16; the reference computes in fp64, its norms in fp32."""
    exact = Make(torch.bfloat16, held=torch.float64)
    expected = CASES[name](REFERENCE, exact)
    got = CASES[name](kernels_of(torch.empty(0, device=DEVICE)), Make(torch.bfloat16, DEVICE))
    assert error([item.cpu() for item in got], expected) < TOLERANCE


def test_a_bfloat16_forward_is_close_to_that_of_the_reference() -> None:
    model = tiny_transformer(DEVICE, torch.bfloat16)
    expected = flow(model, "reference")
    model.join_weights()
    got = flow(model, "triton")
    assert (got - expected).norm() < 1e-2 * expected.norm()


def test_a_forward_does_not_wait_for_the_device() -> None:
    model = tiny_transformer(DEVICE, torch.bfloat16)
    segments = mixed_segments(model)
    model(segments)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(segments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
