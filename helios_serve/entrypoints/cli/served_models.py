"""The models that `serve` serves, and the names under which requests find them."""

import argparse
from typing import Any, NamedTuple

from helios_serve.errors import InvalidRequestError
from helios_serve.options.workers import DEFAULT_MODEL


class ServedModels(NamedTuple):
    """The models to serve, by the name that responses show, and further names of a model."""

    paths: dict[str, str]
    aliases: dict[str, str]


def served_models(arguments: argparse.Namespace) -> ServedModels:
    """Return the models and their names. Raises InvalidRequestError if these do not fit."""
    models: list[str] = arguments.model or [DEFAULT_MODEL]
    names: list[str] = arguments.served_model_name or models
    if len(models) > 1 and len(names) != len(models):
        raise InvalidRequestError(
            f"got {len(names)} names for {len(models)} models, expected one name for each",
            param="served-model-name",
        )
    if repeated := sorted({name for name in names if names.count(name) > 1 or not name.strip()}):
        raise InvalidRequestError(
            f"got model name {repeated[0]!r} more than once or empty, expected distinct names",
            param="served-model-name",
        )
    paths = dict(zip(names, models, strict=False))
    return ServedModels(paths, dict.fromkeys(names[len(models) :], names[0]))


def add_model_names(parser: Any) -> None:
    """Add the flags that say which models are served, and under which names."""
    parser.add_argument(
        "--model",
        dest="model",
        action="append",
        metavar="MODEL",
        help="same as MODEL; can be repeated (default: none)",
    )
    parser.add_argument(
        "--served-model-name",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="names of the models in the API: one for each of several models, or any number for a "
        "single one; responses show the first (default: MODEL itself)",
    )
