"""Every kernel equals its reference in Triton's interpreter, alone and in a packed forward.

The interpreter is chosen when triton is imported, so it runs in a process of its own.
"""

import json

import pytest

from tests.support.kernel_cases import small_cases
from tests.support.scripts import output_of

TOLERANCE = 2e-6
HALF_TOLERANCE = 2**-10
"""Half a unit in the last place at the largest value, for two sums rounded apart."""


def interpret(script: str) -> str:
    return output_of(script, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    found: dict[str, float] = json.loads(interpret("kernel_cases"))
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", small_cases())
def test_a_kernel_equals_its_reference(name: str, dtype: str, errors: dict[str, float]) -> None:
    half = "float16" in name or dtype == "float16"
    assert errors[f"{name}, torch.{dtype}"] < (HALF_TOLERANCE if half else TOLERANCE)


def test_a_packed_forward_equals_that_of_the_reference() -> None:
    """Joined projections, an adapter, amplified history, two sizes, a prompt without padding."""
    assert float(interpret("packed_forward")) < TOLERANCE
