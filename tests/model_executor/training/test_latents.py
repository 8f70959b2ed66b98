"""The linear codec, the pool of latents and the files of a training."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from helios_serve.errors import CheckpointError
from helios_serve.model_executor.training.codec import (
    Codec,
    blocks_of,
    fit_codec,
    frames_of,
    make_codec,
    psnr,
)
from helios_serve.model_executor.training.latent_pool import make_pool, pool_clip
from helios_serve.model_executor.training.recipe import Recipe, tiny_recipe
from helios_serve.model_executor.training.state_file import load_state, save_state
from helios_serve.model_executor.training.world.renderer import render

RECIPE = msgspec.structs.replace(tiny_recipe(), codec_clips=24)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return make_codec(RECIPE, tmp_path_factory.mktemp("codec") / "codec.safetensors")


def rendered(recipe: Recipe, index: int) -> torch.Tensor:
    return torch.from_numpy(render(pool_clip(recipe, index), 33, recipe.size))


def test_blocks_are_reversible() -> None:
    frames = torch.randint(0, 256, (2, 33, 64, 128, 3)).to(torch.uint8)
    assert blocks_of(frames).shape == (2, 9, 8, 16, 768)
    assert torch.allclose(frames_of(blocks_of(frames)), frames.float() / 127.5 - 1, atol=1e-6)


def test_latents_have_the_statistics_that_training_assumes(codec: Codec) -> None:
    latents = codec.encode(torch.stack([rendered(RECIPE, index) for index in range(24)]))
    assert latents.shape == (24, 16, 9, 8, 8)
    assert abs(float(latents.mean())) < 0.15
    assert 0.8 < float(latents.std()) < 1.2


def test_the_codec_keeps_the_picture(codec: Codec) -> None:
    frames = rendered(RECIPE, 1000)
    assert psnr(codec.decode(codec.encode(frames)), frames) > 22


def test_a_refit_gives_the_same_latents() -> None:
    videos = [rendered(RECIPE, index).numpy() for index in range(8)]
    first, second = fit_codec(videos), fit_codec(videos[::-1])
    frames = rendered(RECIPE, 50)
    assert torch.allclose(first.encode(frames), second.encode(frames), atol=1e-2)


def test_an_interrupted_pool_goes_on_and_equals_an_uninterrupted_one(
    codec: Codec, tmp_path: Path
) -> None:
    whole = make_pool(RECIPE, codec, tmp_path / "whole")
    part = tmp_path / "part"
    make_pool(RECIPE, codec, part)
    clips = msgspec.json.decode((part / "clips.json").read_bytes())
    (part / "clips.json").write_bytes(msgspec.json.encode(clips[:2]))
    with (part / "latents.float16").open("r+b") as file:
        file.seek(RECIPE.clips // 2 * whole.latents[0].nbytes)
        file.write(bytes(whole.latents[0].nbytes))
    again = make_pool(RECIPE, codec, part)
    assert again.clips == whole.clips
    assert np.array_equal(again.latents, whole.latents)


def test_the_pool_is_that_of_its_clips(codec: Codec, tmp_path: Path) -> None:
    pool = make_pool(RECIPE, codec, tmp_path)
    batch = pool.draw(np.random.default_rng(0), 5)
    assert batch.latents.shape == (5, 16, 9 * RECIPE.chunks, 8, 8)
    chosen = pool.clips.index(next(clip for clip in pool.clips if clip.scenes == batch.scenes[0]))
    expected = codec.encode(rendered(RECIPE, chosen))
    shifted = [expected.roll(shift, dims=-1) for shift in range(8)]
    errors = [float((batch.latents[0, :, :9] - item).abs().max()) for item in shifted]
    assert min(errors) < 0.01


def test_a_pool_of_another_size_is_refused(codec: Codec, tmp_path: Path) -> None:
    make_pool(RECIPE, codec, tmp_path)
    with pytest.raises(CheckpointError, match=r"latents\.float16: got \d+ bytes, expected"):
        make_pool(msgspec.structs.replace(RECIPE, clips=9), codec, tmp_path)
    (tmp_path / "clips.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"clips\.json is damaged"):
        make_pool(RECIPE, codec, tmp_path)


def test_states_return_what_was_saved(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.tensor(2.0)}
    save_state(tmp_path / "x.safetensors", tensors, {"step": 3})
    state = load_state(tmp_path / "x.safetensors")
    assert all(torch.equal(state.tensors[name], tensors[name]) for name in tensors)
    assert state.values == {"step": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "foreign"])
def test_a_damaged_state_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.randn(64)}, {"step": 1})
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[:-40])
    elif damage == "flipped":
        content[-7] ^= 1
        path.write_bytes(content)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"not a state at all")
    with pytest.raises(CheckpointError, match=r"state\.safetensors is .*damaged"):
        load_state(path)
