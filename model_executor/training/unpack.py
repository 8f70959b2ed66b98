"""Turns the package's weights back into the folder of a training, for others to start from."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from helios_serve.errors import CheckpointError
from helios_serve.model_executor.components import flatten_patch_weight
from helios_serve.model_executor.models.architectures import NANO
from helios_serve.model_executor.models.nano.checkpoint import (
    VAE_WEIGHTS,
    WEIGHTS,
    packaged_weights,
)
from helios_serve.model_executor.training.export import CODEC_FILE
from helios_serve.model_executor.training.recipe import Recipe, write_recipe
from helios_serve.model_executor.training.state_file import save_state
from helios_serve.model_executor.training.training import LAST_STAGE
from helios_serve.options.workers import RANDOM_MODEL


def unpack_weights(folder: Path) -> None:
    """Write the packaged weights to `folder` as a training whose stages have run.

    Its weights have the precision of bfloat16, and it has no optimizer states: a recipe can name it
    as its start, but its own stages cannot go on. Raises CheckpointError if the folder has a
    training.
    """
    recipe = folder / "recipe.json"
    if recipe.exists():
        raise CheckpointError(f"{folder} has a training already: use another folder")
    averages: dict[str, dict[str, Tensor]] = {}
    for model, variant in NANO.items():
        if model != RANDOM_MODEL:
            parts = packaged_weights(model)
            averages["vae"] = parts.pop(VAE_WEIGHTS)
            averages[LAST_STAGE[variant]] = {
                f"{component}.{name}": flatten_patch_weight(name, tensor)
                for component, tensors in parts.items()
                for name, tensor in tensors.items()
            }
    for stage, average in averages.items():
        tensors = {f"average.{name}": tensor.float() for name, tensor in average.items()}
        save_state(folder / stage / "state.safetensors", tensors, {})
    save_state(folder / CODEC_FILE, load_file(WEIGHTS / CODEC_FILE), {})
    write_recipe(recipe, Recipe())
