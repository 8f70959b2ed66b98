"""LoRA adapters: their terms, and refusals."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helios_serve.errors import CheckpointError
from helios_serve.logger import logger
from helios_serve.model_executor.loader import LoadedModel
from helios_serve.model_executor.lora_files import adapter_key, load_adapter
from helios_serve.model_executor.worker.model_runner import ModelRunner
from tests.support.lora_files import LAYERS, write_full_lora, write_lora
from tests.support.models import load_model, loaded
from tests.support.videos import Case, our_latents, run_sessions


@pytest.fixture
def model(checkpoints: dict[str, Path], latent_model: Any) -> LoadedModel:
    loaded: LoadedModel = latent_model(checkpoints["distilled"])
    return loaded


@pytest.fixture
def lora(model: LoadedModel, tmp_path: Path) -> Path:
    return write_lora(tmp_path / "pytorch_lora_weights.safetensors", loaded(model.transformer))


def test_an_adapter_equals_the_same_terms_merged_into_the_weights(
    checkpoints: dict[str, Path], model: LoadedModel, lora: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoints["distilled"], tmp_path / "merged")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors, terms = load_file(weights), load_file(lora)
    for key in (key for key in terms if key.endswith("lora_A.weight")):
        name = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
        up = terms[key.replace("lora_A", "lora_B")]
        tensors[f"{name}.weight"] += 0.7 * up @ terms[key]
    save_file(tensors, weights)
    case = Case("distilled", chunks=1).with_defaults()
    merged_model = load_model(str(folder))
    loaded(merged_model.vae).decode = loaded(model.vae).decode  # type: ignore[method-assign]
    merged = our_latents(merged_model, case)
    added = our_latents(model, case, lora=str(lora), lora_scale=0.7)
    assert (merged - added).abs().max() < 5e-5
    assert (added - our_latents(model, case)).abs().max() > 0.01


def test_every_layer_is_applied_and_their_number_is_told(
    model: LoadedModel, lora: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    count = model.config.transformer.num_layers * len(LAYERS)
    assert len(load_adapter(str(lora.parent), loaded(model.transformer), 1.0).layers) == count
    with caplog.at_level("INFO", logger="helios_serve"):
        our_latents(model, Case("distilled", chunks=1).with_defaults(), lora=str(lora))
    assert f"{lora}: {count} LoRA layers applied" in caplog.messages


def test_a_scale_of_zero_changes_nothing(model: LoadedModel, lora: Path) -> None:
    case = Case("distilled", chunks=1).with_defaults()
    added = our_latents(model, case, lora=str(lora), lora_scale=0.0)
    assert torch.equal(added, our_latents(model, case))


def test_sessions_with_the_same_adapter_share_it(model: LoadedModel, lora: Path) -> None:
    runner = ModelRunner(
        model.config, loaded(model.transformer), model.device, num_blocks=100, text_bytes=1 << 20
    )
    adapters = [
        runner._adapter(Case("distilled").request(lora=str(lora), lora_scale=scale))
        for scale in (1.0, 1.0, 0.5)
    ]
    assert adapters[0] is adapters[1]
    assert adapters[0] is not adapters[2]


def test_sessions_with_and_without_adapters_share_steps(
    model: LoadedModel, lora: Path, tmp_path: Path
) -> None:
    """With adapters of every layer, which change the embedding of a timestep for each session."""
    files = [
        write_full_lora(tmp_path / f"{seed}.safetensors", loaded(model.transformer), seed=seed)
        for seed in (1, 2)
    ]
    case = Case("distilled", "v2v", chunks=1).with_defaults()
    adapters = {"none": None, "first": files[0], "second": files[1], "blocks": lora}
    requests = [
        case.request(name, lora=None if path is None else str(path), keep_input_latents=True)
        for name, path in adapters.items()
    ]
    together = run_sessions(model, requests)
    alone: dict[str, torch.Tensor] = {}
    for request in requests:
        alone |= run_sessions(model, [request])
    for name, latents in alone.items():
        assert (together[name] - latents).abs().max() < 5e-5, name
    for name in ("first", "second", "blocks"):
        assert (alone[name] - alone["none"]).abs().max() > 0.01


NAME = "blocks.0.attn1.to_q"
KOHYA = "lora_unet_blocks_0_self_attn_q"
JSON = "lora_adapter_metadata"


def strength(path: Path, model: LoadedModel, *, name: str = NAME) -> float:
    """Return the scale of the adapter at `path`, whose matrices are all ones."""
    term = load_adapter(str(path), loaded(model.transformer), 1.0).layers[name]
    return float(term.up.mean() / term.down.mean())


def ones(layer: str, *, down: str = "lora_A", up: str = "lora_B", rank: int = 4) -> dict[str, Any]:
    """Matrices of ones for one layer of the tiny checkpoint, whose width is 128."""
    shapes = {f"{layer}.{down}.weight": (rank, 128), f"{layer}.{up}.weight": (128, rank)}
    return {key: torch.ones(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("layer", "header", "expected"),
    [
        (f"transformer.{NAME}", {}, 1.0),
        (NAME, {}, 1.0),
        (f"transformer.{NAME}", {JSON: {"transformer.lora_alpha": 8, "transformer.r": 4}}, 2.0),
        (NAME, {JSON: {"lora_alpha": 8, "r": 4}}, 2.0),
        (f"transformer.{NAME}", {JSON: {"lora_alpha": 8}}, 2.0),
        (NAME, {JSON: {"lora_alpha": 8, "use_rslora": True}}, 4.0),
        (NAME, {JSON: {"lora_alpha": 8, "alpha_pattern": {"to_q": 2}}}, 0.5),
        (NAME, {JSON: {"lora_alpha": 8, "alpha_pattern": {"q": 2, "attn2.to_q": 3}}}, 2.0),
        (NAME, {JSON: {"lora_alpha": 8, "alpha_pattern": {r"blocks\.\d+\.attn1.*": 6}}}, 1.5),
        (NAME, {JSON: {"lora_alpha": 8, "r": 64, "rank_pattern": {"to_q": 4}}}, 2.0),
        (NAME, {"lora_alpha": "8", "r": "4"}, 2.0),
        (NAME, {"alpha": "2"}, 0.5),
        (NAME, {"rank": "4", "format": "pt"}, 1.0),
        (f"transformer.{NAME}", {"transformer.lora_alpha": "6"}, 1.5),
        (NAME, {"lora_alpha": "8", "use_rslora": "True"}, 4.0),
        (NAME, {"lora_alpha": "8", "alpha_pattern": {"to_q": 2}}, 0.5),
        (KOHYA, {"ss_network_alpha": "2.0", "ss_network_dim": "4"}, 0.5),
        (NAME, {"lora_alpha": "8", JSON: {"lora_alpha": 8}}, 2.0),
    ],
)
def test_the_strength_comes_from_wherever_it_is_stated(
    layer: str, header: dict[str, Any], expected: float, model: LoadedModel, tmp_path: Path
) -> None:
    texts = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in header.items()
    }
    path = tmp_path / "lora.safetensors"
    save_file(ones(layer), path, texts)
    assert strength(path, model) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (ones(KOHYA, down="lora_down", up="lora_up") | {f"{KOHYA}.alpha": torch.tensor(2.0)}, 0.5),
        (ones(NAME, down="lora_down", up="lora_up"), 1.0),
        (ones(NAME, down="lora.down", up="lora.up"), 1.0),
        (ones(f"diffusion_model.{NAME}"), 1.0),
        (
            ones("diffusion_model.blocks.0.self_attn.q", down="lora_down", up="lora_up")
            | {"diffusion_model.blocks.0.self_attn.q.alpha": torch.tensor([8.0])},
            2.0,
        ),
        (ones(NAME, down="lora_A.default", up="lora_B.default"), 1.0),
        (ones(f"transformer.{NAME}", down="lora_A.style", up="lora_B.style"), 1.0),
        (
            {key: value.half() for key, value in ones(NAME).items()}
            | {f"{NAME}.alpha": torch.tensor(2.0, dtype=torch.bfloat16)},
            0.5,
        ),
        (ones(NAME, rank=1), 1.0),
    ],
    ids=[
        *("kohya", "lora_down", "lora.down", "diffusion_model", "Wan", "default", "named"),
        *("half", "rank 1"),
    ],
)
def test_forms_that_people_have(
    tensors: dict[str, Any], expected: float, model: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    assert strength(path, model) == pytest.approx(expected)


def test_the_summary_of_kohya_gives_way_to_its_tensors(model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    tensors = ones(KOHYA, down="lora_down", up="lora_up") | {f"{KOHYA}.alpha": torch.tensor(2.0)}
    save_file(tensors, path, {"ss_network_alpha": "16", "ss_network_dim": "Dynamic"})
    assert strength(path, model) == 0.5


def peft_folder(folder: Path, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(ones(f"base_model.model.{NAME}"), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_of_peft_states_its_strength_in_its_config(
    model: LoadedModel, tmp_path: Path
) -> None:
    folder = peft_folder(tmp_path / "peft", peft_type="LORA", r=4, lora_alpha=6, bias="none")
    assert strength(folder, model) == 1.5
    assert strength(folder / "adapter_model.safetensors", model) == 1.5
    renamed = (folder / "adapter_model.safetensors").rename(folder / "mine.safetensors")
    assert strength(renamed, model) == strength(folder, model) == 1.5
    before = adapter_key(str(folder), 1.0)
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2}))
    os.utime(folder / "adapter_config.json", ns=(1 << 62, 1 << 62))
    assert adapter_key(str(folder), 1.0) != before
    assert strength(folder, model) == 0.5
    (folder / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"expected adapter_config\.json next to it"):
        strength(folder, model)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 4}, f"got no lora_alpha for {NAME}, expected the strength of every layer"),
        ({"lora_alpha": 4, "r": 8}, f"got rank 8 for {NAME}, expected 4"),
        ({"lora_alpha": 4, "rank_pattern": {"to_q": 2}}, "got rank 2 for"),
        ({"lora_alpha": "much"}, "lora_alpha: got 'much', expected a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha: got nan, expected a number"),
        ({"lora_alpha": True}, "lora_alpha: got True, expected a number"),
        ({"lora_alpha": 4, "alpha_pattern": {"(": 2}}, r"alpha_pattern: '\(': missing \)"),
        ({"lora_alpha": 4, "alpha_pattern": [2]}, "alpha_pattern: got .*, expected a JSON object"),
        ({"lora_alpha": 4, "use_dora": True}, "adapters with use_dora are not supported"),
        ({"lora_alpha": 4, "modules_to_save": ["x"]}, "with modules_to_save are not supported"),
        ({"lora_alpha": 4, "bias": "all"}, "got bias 'all', expected none"),
        ({"lora_alpha": 4, "peft_type": "LOHA"}, "got peft_type 'LOHA', expected LORA"),
        ({"lora_alpha": 4, "init_lora_weights": "pissa_niter_4"}, "changes the model's weights"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(
    config: dict[str, Any], message: str, model: LoadedModel, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        strength(peft_folder(tmp_path / "peft", **config), model)
    path = tmp_path / "lora.safetensors"
    save_file(ones(NAME), path, {JSON: json.dumps(config)})
    with pytest.raises(CheckpointError, match=message):
        strength(path, model)


def changed(key: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**ones(NAME), f"{NAME}.{key}": value}


def spoiled(value: float) -> torch.Tensor:
    tensor = torch.ones(4, 128)
    tensor[1, 2] = value
    return tensor


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        (ones(NAME, rank=0), {}, "lora_A.weight: got rank 0, expected 1 or more"),
        (changed("lora_A.weight", spoiled(torch.nan)), {}, "lora_A.weight: contains NaN or inf"),
        (changed("lora_A.weight", spoiled(torch.inf)), {}, "lora_A.weight: contains NaN or inf"),
        (
            changed("lora_B.weight", spoiled(-torch.inf).T.contiguous()),
            {},
            "lora_B.weight: contains NaN or inf",
        ),
        (changed("alpha", torch.tensor(torch.nan)), {}, "alpha: expected one finite number"),
        (changed("alpha", torch.ones(2)), {}, "alpha: expected one finite number"),
        (changed("lora_A.weight", torch.ones(4, 95)), {}, r"got shapes \[4, 95\] and \[128, 4\]"),
        (changed("lora_B.weight", torch.ones(128, 5)), {}, r"got shapes \[4, 128\] and \[128, 5\]"),
        (changed("lora_B.weight", torch.ones(4)), {}, r"got shapes \[4, 128\] and \[4\]"),
        (changed("lora_A.weight", torch.tensor(1.0)), {}, "got rank 0, expected 1 or more"),
        *(
            (changed("lora_A.weight", torch.ones(4, 128, dtype=kind)), {}, f"got {kind}, expected")
            for kind in (torch.int8, torch.uint8, torch.bool, torch.complex64)
        ),
        (changed("lora_B.weight", torch.full((128, 4), 3e38)), {"lora_alpha": "8"}, "exceed the r"),
        (ones("patch_long"), {}, r"expected \[4, 16, 4, 8, 8\] and \[128, 4, 1, 1, 1\]"),
        (
            changed("alpha", torch.tensor(2.0)),
            {"lora_alpha": "8"},
            rf"got strengths 0\.5 \({NAME}\.alpha\) and 2 \(.*header\) for {NAME}, expected one",
        ),
        (
            ones(NAME),
            {"lora_alpha": "8", JSON: json.dumps({"lora_alpha": 4})},
            "got strengths 1 .* and 2 .*, expected one",
        ),
        (ones(KOHYA, down="lora_down", up="lora_up"), {}, f"{KOHYA[10:]}.alpha is missing"),
        (ones(NAME) | ones(f"transformer.{NAME}"), {}, "are for the same layer"),
        (
            ones(NAME, down="lora_A.a", up="lora_B.a")
            | ones("blocks.0.attn1.to_k", down="lora_A.b", up="lora_B.b"),
            {},
            r"got several adapters \(a, b\), expected one",
        ),
        (changed("lora_magnitude_vector", torch.ones(128)), {}, "DoRA cannot be applied"),
        (changed("dora_scale", torch.ones(128)), {}, "DoRA cannot be applied"),
        (changed("lora_B.bias", torch.ones(128)), {}, "a bias of a LoRA layer cannot be applied"),
        (changed("diff_b", torch.ones(128)), {}, "a difference of whole weights cannot be applied"),
        ({f"{NAME}.hada_w1_a": torch.ones(4, 4)}, {}, "LoHa cannot be applied"),
        ({f"{NAME}.lokr_w1": torch.ones(4, 4)}, {}, "LoKr cannot be applied"),
        ({"lora_te_x.alpha": torch.ones(1)}, {}, "the model has no such linear layer"),
        (ones(NAME), {"use_dora": "True"}, "adapters with use_dora are not supported"),
        (ones(NAME), {"lora_alpha": "x"}, "lora_alpha: got 'x', expected a number"),
        (ones(NAME), {JSON: "[1]"}, "got list, expected a JSON object"),
    ],
)
def test_files_that_cannot_be_applied_are_refused(
    tensors: dict[str, torch.Tensor],
    header: dict[str, str],
    message: str,
    model: LoadedModel,
    tmp_path: Path,
) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path, header)
    with pytest.raises(CheckpointError, match=message):
        strength(path, model)


def test_alpha_comes_from_the_file(model: LoadedModel, lora: Path) -> None:
    tensors, transformer = load_file(lora), loaded(model.transformer)
    name = "transformer.blocks.0.attn1.to_q"
    plain = load_adapter(str(lora), transformer, 1.0).layers["blocks.0.attn1.to_q"].up
    save_file(tensors, lora, {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 8})})
    doubled = load_adapter(str(lora), transformer, 1.0).layers["blocks.0.attn1.to_q"].up
    save_file(tensors | {f"{name}.alpha": torch.tensor(2.0)}, lora)
    halved = load_adapter(str(lora), transformer, 1.0).layers["blocks.0.attn1.to_q"].up
    torch.testing.assert_close(doubled, 2 * plain)
    torch.testing.assert_close(halved, plain / 2)


def test_adapters_that_would_do_nothing_or_fit_nowhere_are_refused(
    model: LoadedModel, lora: Path, tmp_path: Path
) -> None:
    empty, stranger, torn = (tmp_path / f"{name}.safetensors" for name in "abc")
    save_file({"some.weight": torch.zeros(1)}, empty)
    write_lora(stranger, loaded(model.transformer), prefix="unet.")
    torn.write_bytes(lora.read_bytes()[:-10])
    tensors = load_file(lora)
    halves = tmp_path / "halves.safetensors"
    save_file({key: value for key, value in tensors.items() if "lora_A" in key}, halves)
    misshapen = tmp_path / "misshapen.safetensors"
    save_file({key: value[:, :2].contiguous() for key, value in tensors.items()}, misshapen)
    surplus, pattern, torn_metadata = (tmp_path / f"{name}.safetensors" for name in "def")
    save_file(tensors | {"transformer.blocks.0.attn1.to_q.dora": torch.zeros(1)}, surplus)
    metadata = {"transformer.alpha_pattern": {"to_q": 2}}
    save_file(tensors, pattern, {"lora_adapter_metadata": json.dumps(metadata)})
    save_file(tensors, torn_metadata, {"lora_adapter_metadata": "{"})
    for path, message in (
        (surplus, "attn1.to_q.dora: cannot be applied"),
        (pattern, "got no lora_alpha for blocks.0.attn1.to_out.0"),
        (torn_metadata, "lora_adapter_metadata is not valid JSON"),
        (empty, "no LoRA layer found"),
        (stranger, "the model has no such linear layer"),
        (torn, "is damaged"),
        (halves, "blocks.0.*: the layer lacks its lora_B.weight"),
        (misshapen, "got shapes"),
        (tmp_path / "nothing", "expected a safetensors file or a folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_adapter(str(path), loaded(model.transformer), 1.0)
