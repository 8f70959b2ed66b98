"""How exceptions are described to users and in logs."""

import pytest

from helios_serve.errors import InvalidRequestError, StorageError, describe_error


@pytest.mark.parametrize(
    ("error", "description"),
    [
        (StorageError("cannot write a: No space left"), "cannot write a: No space left"),
        (InvalidRequestError("got fps 0", param="fps"), "got fps 0"),
        (KeyError("x"), "KeyError: 'x'"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
    ],
)
def test_only_foreign_exceptions_are_described_with_their_type(
    error: BaseException, description: str
) -> None:
    assert describe_error(error) == description
