"""Checks of worker options against a checkpoint's configuration. Importing them needs no torch."""

import re
from collections.abc import Sequence
from importlib.util import find_spec

from helios_serve.errors import DeviceError, InvalidRequestError
from helios_serve.model_config import Geometry, HeliosConfig
from helios_serve.options.workers import ExecutorKind, WorkerConfig
from helios_serve.size import check_size, parse_size


def check_compilation(
    names: Sequence[str], config: HeliosConfig, *, offload: bool
) -> list[Geometry]:
    """Return the sizes for which the VAE's decoder will be compiled.

    Raises DeviceError with `offload`, and InvalidRequestError for a name other than WIDTHxHEIGHT or
    a size that the model cannot generate.
    """
    if names and offload:
        raise DeviceError("got compile sizes with offload, expected only one of them")
    return check_sizes("compile_sizes", names, config)


def check_sizes(option: str, names: Sequence[str], config: HeliosConfig) -> list[Geometry]:
    """Return the sizes that an option lists.

    Raises InvalidRequestError for a name other than WIDTHxHEIGHT or a size that the model cannot
    generate.
    """
    sizes = []
    for name in names:
        if not re.fullmatch(r"\d+x\d+", name):
            what = option.removesuffix("s").replace("_", " ")
            raise InvalidRequestError(
                f"got {what} {name!r}, expected WIDTHxHEIGHT in pixels, such as 640x384",
                param=option,
            )
        width, height = parse_size(name)
        check_size(width, height, config)
        sizes.append(Geometry(height, width))
    return sizes


def check_context_parallel(config: WorkerConfig, model: HeliosConfig) -> None:
    """Raise DeviceError unless the number of ranks divides the model's attention heads."""
    ranks, heads = config.ranks, model.transformer.num_attention_heads
    if ranks < 1 or heads % ranks:
        raise DeviceError(
            f"got context parallel {ranks}, expected a divisor of the model's {heads} attention "
            "heads"
        )
    if ranks > 1 and config.offload:
        raise DeviceError(f"got offload with context parallel {ranks}, expected only one of them")


def check_executor(kind: ExecutorKind) -> None:
    """Raise DeviceError for an executor whose package is not installed. Imports nothing."""
    if kind == "ray" and find_spec("ray") is None:
        raise DeviceError(
            "got executor ray without the package ray: pip install 'helios-serve[ray]'"
        )


def check_thread(config: WorkerConfig) -> None:
    """Raise DeviceError for a context-parallel worker in a thread."""
    if config.ranks > 1:
        raise DeviceError(
            f"got context parallel {config.ranks} with executor inline, expected executor local "
            "or ray"
        )
