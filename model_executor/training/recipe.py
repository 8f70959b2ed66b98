"""The settings of a training: what is learned, how large the model is, and for how long."""

import json
from pathlib import Path
from typing import Any, Literal

import msgspec

from helios_serve.errors import CheckpointError
from helios_serve.model_config import Geometry
from helios_serve.model_executor.models.architectures import TRAINED_WIDTHS, Widths
from helios_serve.model_executor.training.world.scene import Grammar


class Corruption(msgspec.Struct, frozen=True, kw_only=True):
    """Frame-Aware Corrupt: how the history is damaged in training, frame by frame.

    - `clean`: the share of samples whose history stays as it is.
    - `noise`: the largest noise level.
    - `exposure`: factors of the latents' contrast, drawn from 1 - exposure to 1 + exposure.
    - `blur`: the largest weight of the 3 x 3 neighbourhood's mean.
    - `share`: the share of frames that each kind of damage affects.
    """

    clean: float = 0.25
    noise: float = 0.2
    exposure: float = 0.2
    blur: float = 0.5
    share: float = 0.5


class HistoryMix(msgspec.Struct, frozen=True, kw_only=True):
    """Unified history injection: how often each kind of history is trained.

    The rest continues a video (V2V, and every chunk but the first). `shortened` of those lose a
    random number of their oldest frames.
    """

    text_only: float = 0.35
    image: float = 0.1
    shortened: float = 0.3


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """Optimizer steps of each stage."""

    vae: int = 4000
    base: int = 2000
    mid: int = 2500
    ode: int = 1500
    dmd: int = 400


Ablation = Literal["none", "anchor", "long", "corrupt", "rope"]
"""An ablation: a part that a training leaves out, to show its effect: the first-frame anchor, the
long window, Frame-Aware Corrupt, or relative RoPE, whose positions then grow with the chunk. The
last one is for Base and Mid only.
"""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """All settings. Two runs with the same recipe and the same number of threads are equal.

    - `start`: the folder of another training, whose codec and weights the VAE, Base and Mid start
      from, such as to train another size.
    - `width`, `height`: the frame size in pixels, multiples of 64.
    - `clips`, `chunks`: the size of the latent pool, and chunks a clip.
    - `transformer`, `text`, `vae`: widths, as in the JSON files of a checkpoint.
    - `vae_batch`, `vae_latents`: chunks of a step of the VAE, and latent frames of each.
    - `batch`: samples of a step (for a pyramid: of each pyramid stage).
    - `object_weight`: how much more latent pixels near objects count in the loss of Base and Mid,
      at low noise: 1 + object_weight times as much as others.
    - `guidance`: the scale at which the teacher of the distillation is guided.
    - `teacher_steps`, `pair_batches`: the teacher's steps, and batches of pairs that it makes.
    - `dmd_start`: the stage whose weights distribution matching starts from. Mid's need no pairs.
    - `teacher`: whose score distribution matching follows.
    - `dmd_batch`: samples of a step of distribution matching.
    - `critic_steps`: steps of the critic for each of the generator.
    - `adversarial`: the weight of the adversarial term.
    - `regression`: the weight of the distance to the true chunk, where the history is real.
    - `own_history`: the share of steps in which the generator continues a chunk of its own.
    - `low_memory`: run the generator's steps twice rather than keep what their gradients need.
    - `probe_videos`: held-out captions that a contact sheet measures.
    """

    name: str = "nano"
    start: str = ""
    ablation: Ablation = "none"
    seed: int = 0
    width: int = 64
    height: int = 64
    grammar: Grammar = Grammar()
    clips: int = 4000
    chunks: int = 4
    codec_clips: int = 300
    transformer: dict[str, Any] = msgspec.field(
        default_factory=lambda: dict(TRAINED_WIDTHS.transformer)
    )
    text: dict[str, Any] = msgspec.field(default_factory=lambda: dict(TRAINED_WIDTHS.text))
    vae: dict[str, Any] = msgspec.field(default_factory=lambda: dict(TRAINED_WIDTHS.vae))
    batch: int = 32
    vae_batch: int = 4
    vae_latents: int = 5
    no_caption: float = 0.1
    object_weight: float = 0.0
    history: HistoryMix = HistoryMix()
    corruption: Corruption = Corruption()
    muon_rate: float = 4e-3
    adam_rate: float = 2e-3
    vae_rate: float = 2e-3
    warm_up: int = 30
    guidance: float = 2.0
    teacher_steps: tuple[int, int, int] = (8, 8, 8)
    pair_batches: int = 100
    dmd_start: Literal["ode", "mid"] = "ode"
    teacher: Literal["base", "mid"] = "base"
    dmd_batch: int = 16
    critic_steps: int = 2
    adversarial: float = 0.02
    regression: float = 1.0
    own_history: float = 0.5
    low_memory: bool = True
    steps: Steps = Steps()
    save_every: int = 50
    probe_videos: int = 24
    sheet_every: int = 250

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.height, self.width)

    @property
    def widths(self) -> Widths:
        return Widths(self.transformer, self.text, self.vae)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width


def tiny_recipe() -> Recipe:
    """Return a recipe that runs through all stages in seconds, for tests."""
    return Recipe(
        name="tiny",
        clips=6,
        chunks=3,
        codec_clips=4,
        transformer={
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "ffn_dim": 48,
            "text_dim": 16,
            "rope_dim": [6, 6, 4],
            "freq_dim": 32,
        },
        text={"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
        vae={"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
        batch=3,
        vae_batch=1,
        warm_up=2,
        steps=Steps(vae=4, base=6, mid=4, ode=4, dmd=3),
        save_every=2,
        sheet_every=100,
        probe_videos=2,
        teacher_steps=(2, 2, 2),
        pair_batches=3,
        dmd_batch=2,
        critic_steps=1,
    )


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a JSON file; absent keys have their defaults. Raises CheckpointError."""
    try:
        recipe = msgspec.convert(json.loads(path.read_text(encoding="utf-8")), Recipe)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a recipe: {error}") from error
    if recipe.width % 64 or recipe.height % 64:
        raise CheckpointError(
            f"{path}: got size {recipe.width}x{recipe.height}, expected multiples of 64"
        )
    return recipe


def write_recipe(path: Path, recipe: Recipe) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(msgspec.to_builtins(recipe), indent=2) + "\n", encoding="utf-8")
