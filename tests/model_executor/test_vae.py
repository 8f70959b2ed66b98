"""The VAE wrapper against diffusers' own arithmetic."""

import queue
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from msgspec import json
from torch import Tensor, nn
from torch._dynamo.utils import counters

from helios_serve.errors import DeviceError, InvalidRequestError
from helios_serve.model_config import Geometry
from helios_serve.model_executor.components import DECODER_PARTS, build_vae
from helios_serve.model_executor.device import resolve_dtype
from helios_serve.model_executor.models import vae as vae_module
from helios_serve.model_executor.models.vae import Vae
from helios_serve.model_executor.models.wan_vae.autoencoder import WanVae
from helios_serve.model_executor.worker.side_thread import side_thread
from helios_serve.options.workers import WorkerOptions
from tests.support.models import load_model, loaded


@pytest.fixture(scope="module")
def vae(checkpoints: dict[str, Path]) -> Vae:
    return loaded(load_model(str(checkpoints["base"])).vae)


def random_frames(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator).to(torch.uint8)


def test_a_chunk_decodes_as_diffusers_does(vae: Vae) -> None:
    latents = torch.randn(16, 9, 8, 16, generator=torch.Generator().manual_seed(0))
    settings = vae.model.config
    mean = torch.tensor(settings.latents_mean).view(1, 16, 1, 1, 1)
    std = torch.tensor(settings.latents_std).view(1, 16, 1, 1, 1)
    reference = AutoencoderKLWan.from_config(json.decode(json.encode(settings))).eval()
    reference.load_state_dict(vae.model.state_dict())
    with torch.inference_mode():
        video = reference.decode(latents[None] * std + mean).sample[0]
    expected = ((video / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 3, 0)
    got = vae.decode(latents)
    assert got.shape == (33, 64, 128, 3)
    assert (got - expected).abs().max() <= 0.5 + 1e-3


def test_a_decoder_in_half_precision_makes_nearly_the_same_pictures(
    vae: Vae, checkpoints: dict[str, Path]
) -> None:
    """References are encoded in fp32 as before."""
    half = load_model(str(checkpoints["base"]), decode_dtype="bfloat16").vae
    assert half is not None
    latents = torch.randn(16, 9, 8, 8, generator=torch.Generator().manual_seed(0))
    error = half.decode(latents).double() - vae.decode(latents).double()
    assert 40 < -10 * (error / 255).square().mean().log10() < 70
    frames = random_frames(33, 64, 64)
    assert torch.equal(half.encode(frames).mean, vae.encode(frames).mean)


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("cuda", torch.bfloat16)])
def test_decoders_are_in_half_precision_on_gpus_by_default(
    device: str, dtype: torch.dtype, checkpoints: dict[str, Path]
) -> None:
    options = WorkerOptions()
    decode_dtype = resolve_dtype(options.decode_dtype, torch.device(device))
    module, component = build_vae(checkpoints["base"], decode_dtype)
    stored = {name: component.dtype_of(name) for name, _ in module.named_parameters()}
    assert {stored[name] for name in stored if name.startswith(DECODER_PARTS)} == {dtype}
    assert {stored[name] for name in stored if name.startswith("encoder.")} == {torch.float32}


def test_encoding_undoes_normalisation(vae: Vae) -> None:
    posterior = vae.encode(random_frames(33, 64, 64))
    assert posterior.mean.shape == posterior.std.shape == (1, 16, 9, 8, 8)
    settings = vae.model.config
    expected = (posterior.mean[0, 3] - settings.latents_mean[3]) / settings.latents_std[3]
    assert (vae.normalize(posterior.mean)[0, 3] - expected).abs().max() < 1e-5


def test_posteriors_are_cached_by_pixels_and_size(vae: Vae) -> None:
    wide = random_frames(1, 64, 128)
    tall = wide.reshape(1, 128, 64, 3)
    first = vae.encode(wide)
    assert vae.encode(wide.clone()) is first
    assert vae.encode(tall).mean.shape == (1, 16, 1, 16, 8)


def test_the_posterior_cache_forgets_the_oldest(vae: Vae, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Vae(vae.model, vae.device, vae.on_device)
    first, second, third = (random_frames(1, 32, 32) + shade for shade in range(3))
    room = vae_module.num_bytes(vae.encode(first))
    monkeypatch.setattr(vae_module, "MAX_CACHED_BYTES", 2 * room)
    kept, dropped = small.encode(first), small.encode(second)
    assert small.encode(first) is kept
    small.encode(third)
    assert small.encode(first) is kept
    assert small.encode(second) is not dropped


def small_vae() -> Vae:
    """Return a VAE with one upsampling instead of three: each layer takes seconds to compile."""
    torch.manual_seed(0)
    widths = {"base_dim": 8, "dim_mult": [1, 1], "num_res_blocks": 0}
    model = WanVae(widths | {"temperal_downsample": [True]})
    for name, parameter in model.named_parameters():
        nn.init.ones_(parameter) if "gamma" in name else nn.init.normal_(parameter, std=0.1)
    return Vae(model.eval().requires_grad_(False), torch.device("cpu"), nullcontext())


def decode_beside(vae: Vae, latents: Tensor) -> Tensor:
    """In a worker's thread."""
    tasks: queue.SimpleQueue[Tensor | None] = queue.SimpleQueue()
    decoded: list[Tensor] = []
    tasks.put(latents)
    tasks.put(None)
    with side_thread(lambda task: decoded.append(vae.decode(task)), tasks, "decoder"):
        pass
    [frames] = decoded
    return frames


@pytest.mark.slow
def test_a_compiled_decoder_makes_the_same_pictures_and_compiles_nothing_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch._dynamo.reset()  # compiled code belongs to a class: that of other tests would be found
    plain, compiled = small_vae(), small_vae()
    compiled.compile([Geometry(64, 64)])
    before = counters["stats"]["unique_graphs"]
    assert before > 0
    generator = torch.Generator().manual_seed(0)
    small, wide = (torch.randn(16, 9, 8, width, generator=generator) for width in (8, 16))
    assert torch.equal(decode_beside(compiled, wide), plain.decode(wide))
    monkeypatch.setattr(vae_module, "STANCE", "fail_on_recompile")
    difference = (decode_beside(compiled, small).int() - plain.decode(small).int()).abs()
    assert difference.max() <= 1
    assert difference.double().mean() < 1e-3
    assert counters["stats"]["unique_graphs"] == before


@pytest.mark.slow
def test_a_compiled_decoder_continues_videos_and_compiles_nothing_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch._dynamo.reset()
    plain, compiled = small_vae(), small_vae()
    compiled.compile([Geometry(64, 64)], is_continuous=True)
    monkeypatch.setattr(vae_module, "STANCE", "fail_on_recompile")
    generator = torch.Generator().manual_seed(0)
    states = plain.new_state(), compiled.new_state()
    for _ in range(3):
        latents = torch.randn(16, 9, 8, 8, generator=generator)
        expected, got = plain.render(latents, states[0]), compiled.render(latents, states[1])
        assert (got.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"compile_sizes": ["100x64"]}, InvalidRequestError, "got size 100x64, .* such as 96x64"),
        ({"compile_sizes": ["big"]}, InvalidRequestError, "got compile size 'big', expected WI"),
        ({"compile_sizes": ["64x64"], "offload": True}, DeviceError, "sizes with offload"),
    ],
)
def test_what_cannot_be_compiled_is_refused_at_once(
    checkpoints: dict[str, Path], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_model(str(checkpoints["base"]), **options)


def test_a_machine_without_a_compiler_is_told_so(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    with pytest.raises(DeviceError, match="could not be compiled for 64x64 on cpu.*C\\+\\+ comp"):
        load_model(str(checkpoints["base"]), compile_sizes=["64x64"])
