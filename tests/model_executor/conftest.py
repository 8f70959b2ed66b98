"""Fixtures of the model executor's tests."""

from collections.abc import Callable, Iterator

import pytest
import torch


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads that compute an operation, as OMP_NUM_THREADS does."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def threads(set_threads: Callable[[int], None], request: pytest.FixtureRequest) -> int:
    """The number of threads of this case."""
    number: int = request.param
    set_threads(number)
    return number
