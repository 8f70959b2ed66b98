"""A training in a folder: its recipe, codec, pool and stages."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from safetensors.torch import load_file
from torch import Tensor

from helios_serve.errors import CheckpointError
from helios_serve.model_config import Variant
from helios_serve.model_executor.components import flatten_patch_weight
from helios_serve.model_executor.models.architectures import NANO
from helios_serve.model_executor.models.nano.checkpoint import (
    VAE_WEIGHTS,
    WEIGHTS,
    packaged_weights,
)
from helios_serve.model_executor.training.codec import Codec, make_codec
from helios_serve.model_executor.training.distillation.dmd_stage import DmdStage
from helios_serve.model_executor.training.distillation.ode_stage import OdeStage
from helios_serve.model_executor.training.distillation.teacher_pairs import PairPool, make_pairs
from helios_serve.model_executor.training.export import (
    CODEC_FILE,
    export_checkpoint,
    package_weights,
)
from helios_serve.model_executor.training.flow_stage import FlowStage
from helios_serve.model_executor.training.gates.drift import gate_d
from helios_serve.model_executor.training.gates.figure import Figure
from helios_serve.model_executor.training.gates.pictures import Pictures
from helios_serve.model_executor.training.gates.quality import Subject, gate_a, gate_b, gate_c
from helios_serve.model_executor.training.latent_pool import LatentPool, make_pool
from helios_serve.model_executor.training.loop import Intervals, Stage, run_stage
from helios_serve.model_executor.training.nano_model import NanoModel
from helios_serve.model_executor.training.optimizer import part
from helios_serve.model_executor.training.recipe import Recipe, read_recipe, write_recipe
from helios_serve.model_executor.training.state_file import load_state, save_state
from helios_serve.model_executor.training.vae_stage import VaeStage, build_vae
from helios_serve.options.workers import RANDOM_MODEL

LAST_STAGE: dict[Variant, str] = {"base": "base", "mid": "mid", "distilled": "dmd"}
"""The stage whose weights a variant has."""
STUDENT_STAGES = ("dmd", "ode", "mid")
"""Stages whose weights Distilled may have, by default those of the first."""


class Training:
    """The stages of a training, each of which starts from the results of those before.

    `folder` keeps everything. Its recipe is that of the first run; `recipe` is for a new folder.
    `student` is the stage whose weights Distilled has. Raises CheckpointError if the folder has
    another recipe.
    """

    def __init__(
        self, folder: Path, recipe: Recipe | None = None, *, student: str = STUDENT_STAGES[0]
    ) -> None:
        self.folder = folder
        self.last_stage = LAST_STAGE | {"distilled": student}
        path = folder / "recipe.json"
        if not path.exists():
            write_recipe(path, recipe or Recipe())
        self.recipe = read_recipe(path)
        if recipe is not None and recipe != self.recipe:
            raise CheckpointError(f"{path} differs from the given recipe: use another folder")
        self.makers: dict[str, Callable[[], Stage]] = {
            "vae": lambda: VaeStage(self.recipe, self.codec, start=self.start("vae")),
            "base": lambda: self.flow_stage("base", self.start("base")),
            "mid": lambda: self.flow_stage("mid", self.start("mid") or self.average("base")),
            "ode": lambda: OdeStage(
                self.recipe, self.pairs, self.codec, self.student("ode", after="mid")
            ),
            "dmd": lambda: DmdStage(
                self.recipe,
                self.pool,
                self.codec,
                student=self.student("dmd", after=self.recipe.dmd_start),
                teacher=self.average(self.recipe.teacher),
            ),
        }

    @cached_property
    def origin(self) -> "Training | None":
        """The training that this one starts from, if any."""
        return Training(Path(self.recipe.start)) if self.recipe.start else None

    @cached_property
    def codec(self) -> Codec:
        if self.origin is not None:
            return self.origin.codec
        return make_codec(self.recipe, self.folder / "codec.safetensors")

    @cached_property
    def pool(self) -> LatentPool:
        return make_pool(self.recipe, self.codec, self.folder / "pool")

    @cached_property
    def pairs(self) -> PairPool:
        teacher = NanoModel(self.recipe)
        teacher.load_state_dict(self.average("mid"), strict=False)
        return make_pairs(self.recipe, self.pool, teacher, self.folder / "pairs")

    def flow_stage(
        self, variant: Literal["base", "mid"], start: dict[str, Tensor] | None
    ) -> FlowStage:
        return FlowStage(self.recipe, variant, self.pool, self.codec, start=start)

    def start(self, stage: str) -> dict[str, Tensor] | None:
        """Return the weights of a stage of the training that this one starts from, if any."""
        return None if self.origin is None else self.origin.average(stage)

    def student(self, stage: str, *, after: str) -> dict[str, Tensor]:
        """Return the weights that a student starts from: those of the stage `after`.

        Where that one has no steps, the student of the origin goes on.
        """
        if self.origin is not None and not self.steps(after):
            return self.origin.average(stage)
        return self.average(after)

    def average(self, stage: str) -> dict[str, Tensor]:
        """Return the averaged weights of a stage: the origin's if it has no steps here.

        Raises CheckpointError if it has not run.
        """
        if self.origin is not None and not self.steps(stage):
            return self.origin.average(stage)
        return part(load_state(self.folder / stage / "state.safetensors").tensors, "average")

    def steps(self, stage: str) -> int:
        return int(getattr(self.recipe.steps, stage))

    def export(self, variant: Variant, folder: Path) -> None:
        """Write the averaged weights of a variant, with the VAE, as a checkpoint folder."""
        model = self.average(self.last_stage[variant])
        export_checkpoint(folder, variant, self.recipe, model, self.average("vae"))

    def package(self, folder: Path) -> None:
        """Write the weights of all trained built-in models to `folder`, as the package has them."""
        with TemporaryDirectory() as scratch:
            checkpoints = {}
            for model, variant in NANO.items():
                if model != RANDOM_MODEL:
                    checkpoints[model] = Path(scratch) / model
                    self.export(variant, checkpoints[model])
            package_weights(folder, checkpoints, self.codec)

    def check(self, gates: str, videos: int, *, drifting: Variant = "distilled") -> list[Figure]:
        """Measure the gates whose letters `gates` names, with up to `videos` captions each.

        Gate D is measured with the variant `drifting`.
        """
        sheets = self.folder / "gates"
        figures = []
        for letter in gates.upper():
            if letter == "A":
                figures += gate_a(self.vae(), self.recipe, self.codec)
            elif letter == "B":
                figures += gate_b(self.subject("mid"), videos, sheets / "b.png")
            elif letter == "C":
                figures += gate_c(self.subject("distilled"), videos, sheets / "c.png")
            elif letter == "D":
                few = max(1, videos // 10)
                figures += gate_d(self.subject(drifting), few, sheets / "d.png")
            else:
                raise CheckpointError(f"got gate {letter!r}, expected letters of ABCD")
        return figures

    def subject(self, variant: Variant) -> Subject:
        """Return a variant and the VAE as gates measure them: with averaged weights."""
        model = NanoModel(self.recipe)
        model.load_state_dict(self.average(self.last_stage[variant]), strict=False)
        return Subject(variant, model, self.recipe, self.codec, Pictures(self.vae()))

    def vae(self) -> Any:
        """Return the VAE with averaged weights."""
        vae = build_vae(self.recipe)
        vae.load_state_dict(self.average("vae"), strict=False)
        return vae

    def run(self, stage: str, *, cpu_seconds: float | None = None) -> bool:
        """Run a stage, from its saved state on; return whether it is finished."""
        if not self.steps(stage):
            return True
        intervals = Intervals(self.recipe.save_every, self.recipe.sheet_every)
        return run_stage(self.makers[stage](), self.folder, intervals, cpu_seconds=cpu_seconds)


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
