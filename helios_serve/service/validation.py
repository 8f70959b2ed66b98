"""Validation of decoded JSON, with errors that name the invalid field."""

from typing import TypeVar

import msgspec

from helios_serve.options.fields import explain, field_at_fault
from helios_serve.service.errors import ApiError
from helios_serve.service.protocol import Json

Body = TypeVar("Body", bound=msgspec.Struct)


def convert(body: Json, kind: type[Body]) -> Body:
    """Convert `body` to `kind`. Strings are accepted for numbers, as in form fields.

    Raises ApiError, which names the invalid field.
    """
    try:
        return msgspec.convert(body, kind, strict=False)
    except msgspec.ValidationError as error:
        message, field = explain(error, body, kind), field_at_fault(error)
        raise ApiError(400, message, code="invalid_value", param=field) from error
