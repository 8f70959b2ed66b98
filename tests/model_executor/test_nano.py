"""The built-in models: their files, their words, and what they show."""

import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helios_serve import Helios
from helios_serve.errors import CheckpointError
from helios_serve.model_executor.loader import open_checkpoint
from helios_serve.model_executor.models.architectures import NANO
from helios_serve.model_executor.models.nano import checkpoint
from helios_serve.model_executor.models.nano.checkpoint import (
    WEIGHTS,
    nano_checkpoint,
    packaged_weights,
    write_nano,
)
from helios_serve.model_executor.models.nano.tokenizer import build_tokenizer
from helios_serve.model_executor.models.nano.vocabulary import (
    CAPTION_WORDS,
    NEAR_WORDS,
    TRAINED_WORDS,
    caption_normalizer,
    trained_tokenizer,
)
from helios_serve.model_executor.training.recipe import Recipe
from helios_serve.model_executor.training.world.captions import read_caption, write_caption
from helios_serve.model_executor.training.world.detectors import detect
from helios_serve.model_executor.training.world.palette import words
from helios_serve.model_executor.training.world.scene import Grammar, draw_scene
from helios_serve.options.prompts import NANO_PROMPTS
from helios_serve.options.workers import RANDOM_MODEL

TRAINED = [model for model in NANO if model != RANDOM_MODEL]


@pytest.mark.parametrize("model", NANO)
def test_a_checkpoint_is_written_with_the_same_bytes_each_time(model: str, tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_nano(tmp_path / name, model)
    files = sorted(path for path in (tmp_path / "first").rglob("*") if path.is_file())
    assert len(files) >= 9
    for path in files:
        other = tmp_path / "second" / path.relative_to(tmp_path / "first")
        assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("model", TRAINED)
def test_a_checkpoint_has_the_weights_of_the_package(model: str, tmp_path: Path) -> None:
    write_nano(tmp_path, model)
    stored = packaged_weights(model)
    assert stored.keys() == {"transformer", "text_encoder", "vae"}
    for component, tensors in stored.items():
        (file,) = (tmp_path / component).glob("*.safetensors")
        written = load_file(file)
        assert written.keys() == tensors.keys()
        assert all(torch.equal(written[name], tensors[name]) for name in tensors)
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_weights_are_small_and_can_be_read_by_all_users() -> None:
    sizes = {path.stem: path.stat().st_size for path in WEIGHTS.glob("*.safetensors")}
    assert sizes.keys() == {*TRAINED, "vae", "codec"}
    assert sizes["nano"] + sizes["vae"] <= 8e6
    assert sizes["nano-mid"] + sizes["nano-base"] <= 12e6
    for path in WEIGHTS.glob("*.safetensors"):
        assert path.stat().st_mode & stat.S_IROTH


def test_other_weights_get_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = nano_checkpoint("nano")
    assert before == nano_checkpoint("nano")
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "vae.safetensors").write_bytes((WEIGHTS / "vae.safetensors").read_bytes())
    monkeypatch.setattr(checkpoint, "WEIGHTS", weights)
    with pytest.raises(CheckpointError, match=r"weights/nano\.safetensors cannot be read: install"):
        nano_checkpoint("nano")
    (weights / "nano.safetensors").write_bytes((WEIGHTS / "nano-base.safetensors").read_bytes())
    assert nano_checkpoint("nano") != before
    (weights / "nano.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match=r"weights/nano\.safetensors cannot be read: install"):
        nano_checkpoint("nano")


def test_only_random_weights_are_announced() -> None:
    notes = {model: open_checkpoint(model, "auto").note for model in NANO}
    assert [model for model, note in notes.items() if note] == [RANDOM_MODEL]
    assert open_checkpoint("nano", "dummy").note == "weights are random (dummy)"


def test_new_trainings_have_the_size_of_the_built_in_models(tmp_path: Path) -> None:
    write_nano(tmp_path, "nano")
    assert open_checkpoint(str(tmp_path), "auto").config == open_checkpoint("nano", "auto").config
    transformer = open_checkpoint("nano", "auto").config.transformer
    assert Recipe().transformer["ffn_dim"] == transformer.ffn_dim


def test_the_vocabulary_is_that_of_captions() -> None:
    assert set(CAPTION_WORDS.split()) == words()
    assert NEAR_WORDS.keys() <= words()
    others = [word for near in NEAR_WORDS.values() for word in near.split()]
    assert len(others) == len(set(others))
    assert not words() & set(others)


def test_captions_are_read_as_they_are() -> None:
    rng, grammar = np.random.default_rng(0), Grammar(two_things=0.3)
    captions = [write_caption(rng, draw_scene(rng, grammar, held_out=False)) for _ in range(300)]
    plain = build_tokenizer(TRAINED_WORDS)
    assert trained_tokenizer()(captions).input_ids == plain(captions).input_ids
    assert all(caption_normalizer().normalize_str(caption) == caption for caption in captions)


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        (
            "A RED Ball moves right, over a green field.",
            "a red ball moves right over a green field",
        ),
        ("Two white cubes, rolling", "white"),
        (
            "A white cube rolls to the left over the desert!",
            "a white square moves to the left over the sand",
        ),
        ("a calm sea", "a sky"),
        ("a dog runs over a green hill", "a runs over a green field"),
        ("überraschend 木 🎈", ""),
        ("a darkroom upstairs", "a"),
    ],
)
def test_other_words_are_read_as_near_ones_or_left_out(prompt: str, read: str) -> None:
    assert caption_normalizer().normalize_str(prompt) == read


def test_a_prompt_without_a_known_word_is_the_one_of_any_scene() -> None:
    tokenizer = trained_tokenizer()
    assert tokenizer("xylophone").input_ids == tokenizer("").input_ids


def test_offered_prompts_are_captions() -> None:
    for prompt in NANO_PROMPTS:
        read_caption(prompt)


@pytest.mark.parametrize("seed", [0, 1])
def test_nano_shows_what_it_is_asked_for(seed: int) -> None:
    video = Helios("nano", device="cpu").generate(NANO_PROMPTS[0], num_frames=66, seed=seed)
    seen = detect(np.asarray(video.frames))
    assert (seen.background, seen.colour, seen.motion) == ("field", "red", "right")
