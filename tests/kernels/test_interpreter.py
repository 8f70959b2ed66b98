"""Every kernel equals its reference in Triton's interpreter, alone and in a packed forward.

The interpreter is chosen when triton is imported, so it runs in a process of its own.
"""

import json
from typing import NamedTuple

import pytest

from tests.support.kernel_cases import small_cases
from tests.support.scripts import output_of

TOLERANCE = 2e-6
HALF_TOLERANCE = 2**-10
"""Half a unit in the last place at the largest value, for two sums rounded apart."""


class Errors(NamedTuple):
    """Distances from the reference: of a packed forward, and of each kernel by its case."""

    forward: float
    kernels: dict[str, float]


@pytest.fixture(scope="module")
def errors() -> Errors:
    found = output_of("packed_forward", TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    return Errors(**json.loads(found))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", small_cases())
def test_a_kernel_equals_its_reference(name: str, dtype: str, errors: Errors) -> None:
    half = "float16" in name or dtype == "float16"
    assert errors.kernels[f"{name}, torch.{dtype}"] < (HALF_TOLERANCE if half else TOLERANCE)


def test_a_packed_forward_equals_that_of_the_reference(errors: Errors) -> None:
    """Joined projections, an adapter, amplified history, two sizes, a prompt without padding."""
    assert errors.forward < TOLERANCE
