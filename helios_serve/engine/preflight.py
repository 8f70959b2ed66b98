"""Checks that run before torch is imported, which takes seconds, so that errors appear at once."""

from collections.abc import Sequence

from helios_serve.model_config import HeliosConfig
from helios_serve.model_executor.checks import (
    check_compilation,
    check_context_parallel,
    check_executor,
    check_sizes,
    check_thread,
)
from helios_serve.model_executor.models.architectures import known_config
from helios_serve.options.workers import ExecutorKind, WorkerGroup


def check_model(
    model: str, groups: Sequence[WorkerGroup], kind: ExecutorKind
) -> HeliosConfig | None:
    """Check a model and the options of its workers, as far as possible without a download.

    Returns the model's configuration, or None for a model on the hub that is not a published one.
    Raises CheckpointError, DeviceError or InvalidRequestError.
    """
    check_executor(kind)
    config = known_config(model)
    for group in groups:
        options = group.config
        if kind == "inline":
            check_thread(options)
        if config is not None:
            check_context_parallel(options, config)
            check_compilation(options.compile_sizes, config, offload=options.offload)
            check_sizes("warm_up_sizes", options.warm_up_sizes, config)
    return config
