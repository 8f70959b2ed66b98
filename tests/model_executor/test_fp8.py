"""FP8 linear layers: accuracy, memory and refusals."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helios_serve.errors import DeviceError
from helios_serve.kernels import linear
from helios_serve.kernels.fp8 import FP8, Quantized
from helios_serve.kernels.reference import quantize_rows
from helios_serve.kernels.registry import REFERENCE
from helios_serve.model_executor import loader
from helios_serve.model_executor.components import build_parts, quantize_weight
from helios_serve.model_executor.loader import LoadedModel, open_checkpoint
from helios_serve.model_executor.models.helios.inputs import PackLayout
from helios_serve.model_executor.models.helios.lora import (
    LoraAdapter,
    LoraLinear,
    LowRank,
    Projections,
)
from helios_serve.model_executor.models.helios.transformer import Block
from helios_serve.model_executor.weights import set_tensors, weight_bytes
from tests.support.fp8 import FP8_LACK, needs_fp8, with_fp8
from tests.support.lora_files import write_lora
from tests.support.models import load_model, loaded
from tests.support.videos import Case, run_sessions

LATENT_ERROR = {"base": 0.03, "mid": 0.06, "distilled": 0.03}
"""Allowed error of latents, as a share of their norm. docs/memory.md has the measured values."""


def sibling(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def layer_of(inputs: int, outputs: int) -> tuple[LoraLinear, LoraLinear]:
    """Return the same random layer, plain and quantized."""
    torch.manual_seed(inputs)
    plain, quantized = LoraLinear(inputs, outputs), LoraLinear(inputs, outputs)
    set_tensors(quantized, quantize_weight("weight", plain.weight.detach()))
    set_tensors(quantized, {"bias": plain.bias.detach()})
    return plain.requires_grad_(False), quantized


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [1e-6, 1.0, 1e6])
def test_entries_are_off_by_a_sixteenth_at_most(dtype: torch.dtype, spread: float) -> None:
    torch.manual_seed(0)
    rows = (torch.randn(64, 96) * torch.logspace(-6, 0, 96) * spread).to(dtype)
    values, scale = quantize_rows(rows)
    assert values.dtype == FP8
    largest = rows.float().abs().amax(dim=1, keepdim=True)
    bound = torch.maximum(rows.float().abs(), largest / 28672) / 16
    assert ((values.float() * scale - rows.float()).abs() <= bound * 1.00001).all()
    assert values.float().abs().amax(dim=1).eq(448).all()


def test_zeros_stay_zeros_and_nan_is_not_hidden() -> None:
    values, scale = quantize_rows(torch.tensor([[0.0, 0.0], [1.0, torch.nan]]))
    restored = values.float() * scale
    assert restored[0].eq(0).all()
    assert restored[1].isnan().any()


@needs_fp8
@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs"), [(1, 16, 16), (37, 128, 256), (5, 96, 48)]
)
def test_a_layer_is_close_to_fp32_and_exact_for_what_it_keeps(
    tokens: int, inputs: int, outputs: int
) -> None:
    plain, quantized = layer_of(inputs, outputs)
    x = torch.randn(tokens, inputs)
    got = quantized(x)
    assert sibling(got, plain(x)) < 0.05
    (rows, scale), (weight, weight_scale) = quantize_rows(x), quantize_rows(plain.weight)
    kept = (rows.float() * scale) @ (weight.float() * weight_scale).t() + plain.bias
    assert (got - kept).abs().max() < 1e-5
    alone = torch.cat([quantized(row[None]) for row in x])
    assert (got - alone).abs().max() < 1e-5


@needs_fp8
def test_an_adapter_is_added_in_full_precision() -> None:
    _, layer = layer_of(64, 32)
    layer.name = "here"
    term = LowRank(torch.randn(4, 64), torch.randn(32, 4))
    x = torch.randn(10, 64)
    got = layer(x, [(slice(3, 7), LoraAdapter({"here": term}))])
    change = got - layer(x)
    assert change[:3].eq(0).all()
    assert change[7:].eq(0).all()
    assert (change[3:7] - x[3:7] @ term.down.t() @ term.up.t()).abs().max() < 1e-4


@needs_fp8
def test_joined_layers_are_the_same_and_quantise_their_rows_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = [layer_of(48, outputs)[1] for outputs in (16, 32, 64)]
    x = torch.randn(9, 48)
    expected = [layer(x) for layer in layers]
    projections = Projections(*layers)
    projections.join()
    counted: list[int] = []

    def counting(rows: Tensor, dtype: torch.dtype = FP8) -> Quantized:
        counted.append(len(rows))
        return quantize_rows(rows, dtype)

    monkeypatch.setattr(linear, "kernels_of", lambda _: REFERENCE._replace(quantize_rows=counting))
    for skip in (0, 1):
        for got, alone in zip(projections(x, (), skip=skip), expected[skip:], strict=True):
            assert (got - alone).abs().max() < 1e-6
    assert counted == [9, 9]


@needs_fp8
def test_the_large_layers_of_blocks_are_quantised_and_nothing_else(
    checkpoints: dict[str, Path],
) -> None:
    folder = str(checkpoints["distilled"])
    model = load_model(folder, dtype="bfloat16", quantization="fp8").transformer
    plain = load_model(folder, dtype="bfloat16").transformer
    assert model is not None
    assert plain is not None
    layers = {name for name, layer in plain.blocks.named_modules() if isinstance(layer, LoraLinear)}
    state, expected = model.state_dict(), plain.state_dict()
    assert {name for name, tensor in state.items() if tensor.dtype == FP8} == {
        f"blocks.{name}.weight" for name in layers
    }
    assert len(layers) == 3 * 10
    for name, tensor in state.items():
        if tensor.dtype != FP8:
            assert torch.equal(tensor, expected[name]), name
        else:
            values, scale = quantize_rows(expected[name])
            assert torch.equal(tensor.view(torch.uint8), values.view(torch.uint8))
            assert torch.equal(model.get_buffer(f"{name}_scale"), scale)
    assert model.dtype == torch.bfloat16


def test_a_layer_takes_a_byte_a_weight_and_the_published_ones_half_the_memory() -> None:
    plain, quantized = layer_of(512, 256)
    assert plain.weight.nbytes == 4 * 512 * 256
    assert quantized.weight.nbytes == 512 * 256
    assert quantized.get_buffer("weight_scale").nbytes == 4 * 256
    checkpoint = open_checkpoint("BestWishYsh/Helios-Distilled", "dummy")

    def gigabytes(quantization: Any) -> float:
        parts = build_parts(checkpoint.folder, checkpoint.config, torch.bfloat16, quantization)
        return sum(weight_bytes(*parts["transformer"]).values()) / 1e9

    assert gigabytes(None) == pytest.approx(28.68, abs=0.005)
    assert gigabytes("fp8") == pytest.approx(14.64, abs=0.005)
    assert 4 * gigabytes("fp8") < 60


@pytest.mark.parametrize("quantization", [None, with_fp8])
def test_bytes_are_counted_as_they_are_loaded(
    quantization: Any, checkpoints: dict[str, Path]
) -> None:
    checkpoint = open_checkpoint(str(checkpoints["base"]), "auto")
    part = build_parts(checkpoint.folder, checkpoint.config, torch.bfloat16, quantization)
    module = load_model(
        str(checkpoints["base"]), dtype="bfloat16", quantization=quantization
    ).transformer
    assert module is not None
    held = dict(module.named_parameters()) | dict(module.named_buffers())
    assert weight_bytes(*part["transformer"]) == {name: item.nbytes for name, item in held.items()}


@needs_fp8
def test_random_weights_are_quantised_ones_of_the_same_model() -> None:
    model, plain = (
        load_model("nano", load_format="dummy", quantization=quantization).transformer
        for quantization in ("fp8", None)
    )
    assert model is not None
    assert plain is not None
    name = "blocks.1.ffn.net.2"
    kept = model.get_parameter(f"{name}.weight").float() * model.get_buffer(f"{name}.weight_scale")
    assert sibling(kept, plain.get_parameter(f"{name}.weight")) < 0.04


@needs_fp8
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param("base", marks=pytest.mark.slow),
        pytest.param("mid", marks=pytest.mark.slow),
        "distilled",
    ],
)
def test_latents_stay_close(
    variant: str, checkpoints: dict[str, Path], latent_model: Any, tmp_path: Path
) -> None:
    """Sessions in one pack, one of them with an adapter, against the same in fp32."""
    plain: LoadedModel = latent_model(checkpoints[variant])
    quantized: LoadedModel = latent_model(checkpoints[variant], quantization="fp8")
    assert plain.transformer is not None
    lora = write_lora(tmp_path / "adapter.safetensors", plain.transformer)
    case = Case(variant, chunks=2).with_defaults()
    other = Case(variant, "i2v", height=128, chunks=1, prompt="waves rise", seed=1).with_defaults()
    requests = [
        case.request("plain"),
        other.request("other"),
        case.request("adapted", lora=str(lora)),
    ]
    expected, got = run_sessions(plain, requests), run_sessions(quantized, requests)
    errors = {name: sibling(got[name], latents) for name, latents in expected.items()}
    print(errors)
    assert all(1e-3 < error < LATENT_ERROR[variant] for error in errors.values()), errors
    assert sibling(got["adapted"], got["plain"]) > 0.05


@needs_fp8
def test_norms_and_gelu_quantise_as_steps_of_their_own_would(
    checkpoints: dict[str, Path],
    latent_model: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """But for packs with an adapter, whose terms need the rows in full precision."""
    model: LoadedModel = latent_model(checkpoints["distilled"], quantization="fp8")
    lora = write_lora(tmp_path / "adapter.safetensors", loaded(model.transformer))
    case = Case("distilled", chunks=2, steps=(1, 1, 1)).with_defaults()
    requests = [case.request("a"), replace(case, task="i2v", height=128).request("b")]
    takes_fp8, taken = Block.takes_fp8, set[bool]()

    def noting(block: Block, layout: PackLayout) -> bool:
        taken.add(takes_fp8(block, layout))
        return takes_fp8(block, layout)

    monkeypatch.setattr(Block, "takes_fp8", noting)
    expected = run_sessions(model, requests)
    assert taken == {True}
    taken.clear()
    run_sessions(model, [case.request("c", lora=str(lora))])
    assert taken == {False}
    monkeypatch.setattr(Block, "takes_fp8", lambda *_: False)
    for name, latents in run_sessions(model, requests).items():
        assert torch.equal(latents, expected[name])


@needs_fp8
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.usefixtures("threads")
def test_in_batch_invariant_mode_a_session_repeats_bitwise(
    checkpoints: dict[str, Path], latent_model: Any
) -> None:
    model = latent_model(checkpoints["distilled"], quantization="fp8")
    requests = [
        Case("distilled", chunks=1, seed=seed, steps=(1, 1, 1)).with_defaults().request(str(seed))
        for seed in range(3)
    ]
    together = run_sessions(model, requests, batch_invariant=True)
    alone = run_sessions(model, requests[1:2], batch_invariant=True)
    assert torch.equal(together["1"], alone["1"])


def test_a_cpu_runs_fp8_from_torch_2_12_on() -> None:
    """Before, it has one scale for a whole tensor only, and `check_fp8` refuses it in one line."""
    major, minor = map(int, torch.__version__.split(".")[:2])
    if (major, minor) >= (2, 12):
        assert FP8_LACK is None
    else:
        expected = "got quantization fp8, which cpu with float32 cannot do: .*per-tensor scaling"
        assert re.match(expected, str(FP8_LACK))


def test_a_device_that_cannot_is_told_before_anything_is_read(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("only supported with compute capability >= 8.9\nmore")

    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    expected = r"got quantization fp8, which cpu with float32 cannot do: only supported .* 8.9$"
    folder = str(checkpoints["distilled"])
    load_model(folder, roles=("decode",), quantization="fp8")
    monkeypatch.setattr(loader, "stream_weights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(DeviceError, match=expected):
        load_model(folder, quantization="fp8")
