"""Introspection of options: ranges, defaults, descriptions and command-line flags.

An option is a field of a msgspec.Struct, annotated with msgspec.Meta. HTTP bodies inherit the
field. Command-line flags, range checks and the tables of docs/options.md are generated from it.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import inspect

from helios_serve.errors import InvalidRequestError

Options = TypeVar("Options", bound=msgspec.Struct)

FIELD = re.compile(r"field `([^`]+)`")
PLACE = re.compile(r"`\$\.([^`]+)`")
"""Match the unknown or missing field, and the path of the error, in msgspec's messages."""
INTEGER = re.compile(r"[+-]?[0-9]+")
MAX_SHOWN = 80
"""Maximum number of characters of an invalid value in a message."""


class Option(NamedTuple):
    """An option: a field of a struct.

    `kind` is its type without None; `extra` is the `extra` of its msgspec.Meta.
    """

    name: str
    kind: inspect.Type
    default: Any
    description: str
    extra: Mapping[str, Any]

    @property
    def flag(self) -> str:
        """The command-line flag."""
        flag: str = self.extra.get("flag", "--" + self.name.replace("_", "-"))
        return flag

    @property
    def allowed(self) -> str | None:
        """The allowed values as text, or None if the type describes them."""
        if "allowed" in self.extra:
            return str(self.extra["allowed"])
        number = self.kind
        if isinstance(number, inspect.VarTupleType):
            number = without_metadata(number.item_type)
        if isinstance(number, inspect.IntType | inspect.FloatType) and number.ge is not None:
            return f"at least {number.ge}" if number.le is None else f"{number.ge} to {number.le}"
        if isinstance(number, inspect.LiteralType):
            return " or ".join(map(str, number.values))
        return None

    @property
    def default_text(self) -> str:
        """The default value, as documentation and help texts show it."""
        if "default" in self.extra:
            return str(self.extra["default"])
        if isinstance(self.default, tuple):
            return ",".join(map(str, self.default)) or "none"
        if isinstance(self.default, bool):
            return "on" if self.default else "off"
        return "none" if self.default in (None, "") else str(self.default)


@lru_cache(maxsize=64)
def options_of(kind: type[msgspec.Struct]) -> Mapping[str, Option]:
    """Return the fields of a struct by name, in their order."""
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    return {field.name: _option(field) for field in described.fields}


def _option(field: inspect.Field) -> Option:
    description, kind = "", field.type
    extra: dict[str, Any] = {}
    while isinstance(kind, inspect.Metadata | inspect.UnionType):
        if isinstance(kind, inspect.UnionType):
            kind = next(part for part in kind.types if not isinstance(part, inspect.NoneType))
        else:
            description = description or (kind.extra_json_schema or {}).get("description", "")
            extra = (kind.extra or {}) | extra
            kind = kind.type
    default = field.default
    if default is msgspec.NODEFAULT:
        default = None if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return Option(field.name, kind, default, description, extra)


def without_metadata(kind: inspect.Type) -> inspect.Type:
    return kind.type if isinstance(kind, inspect.Metadata) else kind


def check_ranges(options: msgspec.Struct) -> None:
    """Raise InvalidRequestError for a number outside its field's range."""
    for name, option in options_of(type(options)).items():
        value, kind = getattr(options, name), option.kind
        if isinstance(kind, inspect.VarTupleType):
            kind = without_metadata(kind.item_type)
        if not isinstance(kind, inspect.IntType | inspect.FloatType) or kind.ge is None:
            continue
        numbers = () if value is None else value if isinstance(value, tuple) else (value,)
        for number in numbers:
            above = number if kind.le is None else kind.le
            if not kind.ge <= number <= above:
                raise InvalidRequestError(
                    f"got {name} {number}, expected {option.allowed}", param=name
                )


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Raise InvalidRequestError unless `low <= value <= high`."""
    if not low <= value <= high:
        raise InvalidRequestError(f"got {name} {value}, expected {low} to {high}", param=name)


def read_options(
    kind: type[Options],
    values: Mapping[str, Any],
    *,
    strict: bool = True,
    other_names: Collection[str] = (),
) -> Options:
    """Build options from plain values by name.

    Raises InvalidRequestError, which names the unknown or invalid field. `other_names` are names
    that the caller has already replaced by those of options.
    """
    for name in values:
        if name not in options_of(kind):
            message = unknown_option(name, kind, other_names=other_names)
            raise InvalidRequestError(message, param=name)
    try:
        return msgspec.convert(dict(values), kind, strict=strict)
    except msgspec.ValidationError as error:
        message = explain(error, values, kind)
        raise InvalidRequestError(message, param=field_at_fault(error) or "options") from error


def unknown_option(
    name: str, *kinds: type[msgspec.Struct], other_names: Collection[str] = ()
) -> str:
    """Return the error message for an option that none of `kinds` has."""
    expected = [*(known for kind in kinds for known in options_of(kind)), *other_names]
    hint = did_you_mean(name, expected)
    return f"got unknown option {name!r}, expected one of: {', '.join(expected)}{hint}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" with the known name closest to `name`; empty if none is close."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def field_at_fault(error: msgspec.ValidationError) -> str | None:
    """Return the field that msgspec's message names, with dots between nested fields, or None."""
    found = (pattern.search(str(error)) for pattern in (PLACE, FIELD))
    return ".".join(match[1] for match in found if match is not None) or None


def explain(
    error: msgspec.ValidationError, values: Mapping[str, Any], kind: type[msgspec.Struct]
) -> str:
    """Return msgspec's message with the invalid value, such as "got fps 500, expected 1 to 120"."""
    message, path = str(error), field_at_fault(error)
    name = re.split(r"[.\[]", path or "")[0]
    if name not in values:
        return message
    got, options = f"got {name} {value_text(values[name])}", options_of(kind)
    option = options.get(name)
    if option is None:
        return f"{got}: {message[:1].lower()}{message[1:]}{did_you_mean(name, options)}"
    is_other_type = isinstance(option.kind, inspect.StrType) and not isinstance(values[name], str)
    if option.allowed is not None and not is_other_type:
        return f"{got}, expected {allowed_for(values[name], option)}"
    return f"{got}: {message[:1].lower()}{message[1:]}"


def allowed_for(value: object, option: Option) -> str:
    """Return the allowed values of an option, with their type if `value` is of another one.

    "got fps 29.97, expected 1 to 120" would not say what is wrong.
    """
    if isinstance(option.kind, inspect.VarTupleType) and not isinstance(value, list | tuple):
        return f"a list of numbers ({option.allowed})"
    if isinstance(option.kind, inspect.IntType) and not is_integer(value):
        return f"an integer ({option.allowed})"
    return str(option.allowed)


def is_integer(value: object) -> bool:
    """Return whether a value is an integer, or the text of one."""
    if isinstance(value, str):
        return INTEGER.fullmatch(value) is not None
    return isinstance(value, int) and not isinstance(value, bool)


def value_text(value: object) -> str:
    """Return an invalid value as text for a message, shortened. Other objects are shown by type."""
    if isinstance(value, str):
        value = value[: MAX_SHOWN + 1]  # it may be a data: URL of megabytes
    try:
        msgspec.json.encode(value)
    except (TypeError, ValueError, UnicodeError):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
