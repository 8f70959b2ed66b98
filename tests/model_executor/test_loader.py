"""Checkpoints: valid ones load, others are refused early, with the file and the key."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HeliosTransformer3DModel
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import UMT5EncoderModel

from helios_serve.errors import CheckpointError, DeviceError
from helios_serve.model_executor import loader
from helios_serve.model_executor.components import build_parts
from helios_serve.model_executor.device import resolve_device, resolve_dtype
from helios_serve.model_executor.loader import open_checkpoint
from tests.support.models import load_model, loaded

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
Edit = Callable[[Path], object]


@pytest.fixture
def folder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(checkpoints["distilled"], tmp_path / "model")


def edit_json(name: str, **changes: Any) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def edit_weights(change: Callable[[dict[str, Tensor]], object], name: str = WEIGHTS) -> Edit:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return edit


def truncate(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


def name_a_missing_shard(folder: Path) -> None:
    index = {"weight_map": {"proj_out.weight": "model-00002-of-00002.safetensors"}}
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps(index))


SCHEDULER = "scheduler/scheduler_config.json"
TRANSFORMER = "transformer/config.json"

BROKEN: dict[str, tuple[Edit, str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "it has no model_index.json"),
    "bad json": (lambda f: (f / TRANSFORMER).write_text("{"), "config.json cannot be read as JSON"),
    "list": (lambda f: (f / TRANSFORMER).write_text("[]"), "got list, expected an object"),
    "other pipeline": (
        edit_json("model_index.json", _class_name="WanPipeline"),
        'model_index.json: _class_name: got "WanPipeline", expected "HeliosPipeline" or',
    ),
    "other patch": (edit_json(TRANSFORMER, patch_size=[1, 4, 4]), r"patch_size: got \[1, 4, 4\]"),
    "rope": (edit_json(TRANSFORMER, rope_dim=[4, 4, 4]), "rope_dim: .* add up to 32"),
    "missing key": (edit_json(TRANSFORMER, num_layers=None), r"config.json: .*num_layers"),
    "prediction": (edit_json(SCHEDULER, prediction_type="epsilon"), "prediction_type: got"),
    "stages": (edit_json(SCHEDULER, stages=1), "stages: got 1, expected 2 or more stages"),
    "range": (edit_json(SCHEDULER, stage_range=[0, 1]), "stage_range: .* expected 4 numbers"),
    "gamma": (edit_json(SCHEDULER, gamma=0.5), "gamma: got 0.5, expected above 0"),
    "shift": (edit_json(SCHEDULER, shift=3.0), "shift: got 3.0, expected 1.0"),
    "solver": (
        edit_json("model_index.json", is_distilled=False),
        "_class_name: got .* expected HeliosScheduler for mid",
    ),
    "vae": (edit_json("vae/config.json", z_dim=48), "vae/config.json: z_dim: got 48"),
    "text": (edit_json("text_encoder/config.json", d_model=32), "d_model: got 32"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "transformer has no weights"),
    "truncated": (truncate, f"{WEIGHTS} is damaged or truncated"),
    "missing shard": (name_a_missing_shard, "names model-00002-of-00002.safetensors, which does"),
    "missing weight": (
        edit_weights(lambda t: [t.pop("proj_out.weight"), t.pop("proj_out.bias")]),
        "transformer lacks proj_out.bias and 1 more",
    ),
    "extra weight": (
        edit_weights(lambda t: t.update(surplus=torch.zeros(1))),
        "surplus: the model has no such parameter",
    ),
    "misshapen weight": (
        edit_weights(lambda t: t.update({"patch_long.bias": torch.zeros(3)})),
        r"patch_long.bias: got shape \[3\], expected \[128\]",
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "no usable tokenizer"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_refused_before_any_weight_is_read(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit, message = BROKEN[name]
    edit(folder)
    monkeypatch.setattr(loader, "stream_weights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(CheckpointError, match=message):
        load_model(str(folder))


def all_parameters(model: Any) -> dict[str, Tensor]:
    modules = (model.transformer, model.text_encoder.model, model.vae.model)
    return {
        f"{index}.{name}": tensor
        for index, module in enumerate(modules)
        for name, tensor in module.state_dict().items()
    }


def test_a_sharded_checkpoint_loads_like_a_whole_one(folder: Path) -> None:
    whole = all_parameters(load_model(str(folder)))
    theirs = HeliosTransformer3DModel.from_pretrained(folder / "transformer")
    (folder / WEIGHTS).unlink()
    theirs.save_pretrained(folder / "transformer", max_shard_size="500KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 2
    sharded = all_parameters(load_model(str(folder)))
    assert all(torch.equal(whole[name], tensor) for name, tensor in sharded.items())


def test_official_key_names_are_understood(folder: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        tensors["scale_shift_table"] = tensors.pop("norm_out.scale_shift_table")
        tensors["blocks.0.attn2.norm_added_q.weight"] = torch.zeros(4)

    expected = all_parameters(load_model(str(folder)))
    edit_weights(rename)(folder)
    got = all_parameters(load_model(str(folder)))
    assert all(torch.equal(expected[name], tensor) for name, tensor in got.items())


def test_bfloat16_leaves_norms_tables_times_and_vae_in_float32(folder: Path) -> None:
    model = load_model(str(folder), dtype="bfloat16")
    state = loaded(model.transformer).state_dict()
    kept = {name for name, tensor in state.items() if tensor.dtype == torch.float32}
    parts = ("time_embedder", "scale_shift_table", "norm2")
    assert kept == {name for name in state if any(part in name for part in parts)}
    assert {item.dtype for item in loaded(model.vae).model.parameters()} == {torch.float32}
    assert loaded(model.text_encoder).model.dtype == torch.bfloat16


def test_untied_embeddings_are_tied(folder: Path) -> None:
    edit_json("text_encoder/config.json", tie_word_embeddings=False)(folder)
    encoder = loaded(load_model(str(folder)).text_encoder)
    assert encoder.encode("a dog", 512).abs().sum() > 0
    assert encoder.model.shared.weight is encoder.model.encoder.embed_tokens.weight


def test_prompts_are_encoded_as_transformers_does(folder: Path) -> None:
    ours = loaded(load_model(str(folder)).text_encoder)
    theirs = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
    prompt = "  a  dog &amp;amp; runs\n"
    tokens = ours.tokenizer(
        "a dog & runs", padding="max_length", max_length=64, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = theirs(tokens.input_ids, tokens.attention_mask).last_hidden_state[0]
    got = ours.encode(prompt, 64)
    real = int(tokens.attention_mask.sum())
    assert (got - expected[:real]).abs().max() < 1e-5
    assert ours.encode("a dog & runs", 64) is got
    assert len(ours.encode("a dog runs over the green hill", 4)) == 4


def test_the_prompt_cache_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = loaded(load_model(str(folder)).text_encoder)
    monkeypatch.setattr("helios_serve.model_executor.models.text_encoder.MAX_CACHED_PROMPTS", 2)
    first = encoder.encode("a", 64)
    encoder.encode("b", 64)
    assert encoder.encode("a", 64) is first
    encoder.encode("c", 64)
    assert encoder.encode("a", 64) is first
    assert len(encoder._cache) == 2


def test_dummy_weights_need_only_json_files(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    first, again = (all_parameters(load_model(str(folder), load_format="dummy")) for _ in range(2))
    assert all(torch.equal(first[name], tensor) for name, tensor in again.items())
    assert all(tensor.isfinite().all() for tensor in first.values())


@pytest.mark.parametrize("variant", ["Base", "Mid", "Distilled"])
def test_published_checkpoints_are_known_by_their_numbers(variant: str) -> None:
    checkpoint = open_checkpoint(f"BestWishYsh/Helios-{variant}", "dummy")
    assert checkpoint.config.variant == variant.lower()
    transformer = build_parts(checkpoint.folder, checkpoint.config, torch.bfloat16)[
        "transformer"
    ].module
    state = transformer.state_dict()
    assert len(state) == 1101
    assert sum(tensor.numel() for tensor in state.values()) == 14_312_427_584


def test_a_hub_id_is_taken_from_the_local_cache(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is as huggingface_hub leaves it after a download. Offline, no host is contacted."""
    monkeypatch.setattr(loader, "snapshot_download", partial(snapshot_download, cache_dir=tmp_path))
    repository = tmp_path / "models--someone--Helios"
    shutil.copytree(checkpoints["mid"], repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    assert load_model("someone/Helios").config.variant == "mid"
    with pytest.raises(CheckpointError, match="someone/Else is not a local folder and cannot be"):
        load_model("someone/Else")


def test_unknown_models_are_refused() -> None:
    with pytest.raises(CheckpointError, match="got model 'no/such/thing', expected a folder"):
        load_model("no/such/thing")
    with pytest.raises(
        CheckpointError, match="got model 'nano-max', expected one of nano, nano-mi"
    ):
        load_model("nano-max")


def test_unknown_devices_and_dtypes_are_refused() -> None:
    for name in ("tpu", "cuda:99", "nonsense"):
        with pytest.raises(DeviceError, match=f"got device '{name}', expected auto or one of cpu"):
            resolve_device(name)
    with pytest.raises(DeviceError, match="got dtype 'int4', expected auto or one of bfloat16"):
        resolve_dtype("int4", torch.device("cpu"))


def test_a_device_without_room_is_told_what_it_takes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(loader, "stream_weights", fail)
    with pytest.raises(
        DeviceError, match=r"got cpu, expected .* memory for transformer \d+\.\d MB, te"
    ):
        load_model(str(folder))
