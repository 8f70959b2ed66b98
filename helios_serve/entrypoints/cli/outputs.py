"""Checks of the files that a command writes, before any work is done for them."""

import argparse
from collections.abc import Collection
from pathlib import Path

from helios_serve.errors import InvalidRequestError

SUFFIXES = {"output": ".mp4", "output_latents": ".safetensors", "trace": ""}
"""Suffixes of output files by the name of their option; the name of a trace is free."""


def check_outputs(arguments: argparse.Namespace, folders: Collection[str] = ()) -> None:
    """Raise InvalidRequestError if an output file cannot be written or has a wrong suffix.

    Each file is opened to find out, because permissions alone do not tell. Existing content stays.
    The options in `folders` name folders, which are checked when they are created.
    """
    chosen: dict[Path, str] = {}
    for name, suffix in SUFFIXES.items():
        path: Path | None = getattr(arguments, name, None)
        if path is None or name in folders:
            continue
        flag = name.replace("_", "-")
        if path in chosen:
            raise InvalidRequestError(
                f"got {path} for both --{chosen[path]} and --{flag}, expected different files",
                param=flag,
            )
        chosen[path] = flag
        if suffix:
            check_suffix(path, flag, suffix)
        check_writable(path, flag)


def check_suffix(path: Path, flag: str, suffix: str) -> None:
    """Raise InvalidRequestError unless the name ends in `suffix`. Devices have any name."""
    if path.suffix.lower() != suffix and (path.is_file() or not path.exists()):
        raise InvalidRequestError(
            f"got --{flag} {path}, expected a name that ends in {suffix}: no other format is "
            f"written, such as {path.with_suffix(suffix)}",
            param=flag,
        )


def check_writable(path: Path, flag: str) -> None:
    """Raise InvalidRequestError unless `path` can be opened for writing; a new file is removed."""
    is_new = not path.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise InvalidRequestError(
            f"got --{flag} {path}, expected a writable file in an existing folder: "
            f"{error.strerror}",
            param=flag,
        ) from error
    if is_new:
        path.unlink()
