"""Decoded JSON to the types of the protocol, with errors that name the field at fault."""

import re
from typing import TypeVar

import msgspec

from helios_serve.service.errors import ApiError
from helios_serve.service.protocol import Json

Body = TypeVar("Body")


def convert(body: Json, kind: type[Body]) -> Body:
    """A body as `kind`; numbers may come as text, as in forms. Raises ApiError naming the field."""
    try:
        return msgspec.convert(body, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ApiError(
            400, str(error), code="invalid_value", param=field_at_fault(error)
        ) from error


def field_at_fault(error: msgspec.ValidationError) -> str | None:
    """The field that msgspec's message names, in one of two ways."""
    for pattern in (r"`\$\.([^`]+)`", r"field `([^`]+)`"):
        if (match := re.search(pattern, str(error))) is not None:
            return match.group(1)
    return None
