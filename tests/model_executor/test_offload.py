"""Offload: the same videos bit for bit, from a device that holds two layers and the rest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helios_serve.model_executor import offload
from helios_serve.model_executor.components import build_parts
from helios_serve.model_executor.loader import LoadedModel, open_checkpoint
from helios_serve.model_executor.offload import (
    ALIGNMENT,
    CopyStream,
    HostMemory,
    LayerStream,
    OnDevice,
    place_part,
)
from helios_serve.model_executor.weights import named_tensors, weight_bytes
from tests.support.fp8 import needs_fp8, with_fp8
from tests.support.lora_files import write_lora
from tests.support.models import load_model
from tests.support.videos import Case, run_sessions

CPU = torch.device("cpu")


class LateLane(CopyStream):
    """A copy stream that copies as late as possible: when the copy is awaited.

    The stream of a CPU copies at once. A result that is right with both is right for any time in
    between.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.waiting: list[tuple[torch.Event, Sequence[Tensor], Sequence[Tensor]]] = []

    def copy(self, buffers: Sequence[Tensor], sources: Sequence[Tensor]) -> torch.Event:
        event = torch.Event()
        self.waiting.append((event, buffers, sources))
        return event

    def wait(self, copied: torch.Event | None) -> None:
        while any(copied is event for event, _, _ in self.waiting):
            _, buffers, sources = self.waiting.pop(0)
            offload.copy_all(buffers, sources)


@pytest.fixture(params=["at once", "late"])
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "late":
        monkeypatch.setattr(offload, "CopyStream", LateLane)


def layers_of(count: int) -> tuple[nn.Module, list[list[str]]]:
    module = nn.Sequential(*(nn.Linear(4, 4) for _ in range(count))).requires_grad_(False)
    return module, [[f"{layer}.weight", f"{layer}.bias"] for layer in range(count)]


@pytest.mark.usefixtures("lane")
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_layers_take_turns_in_two_places(count: int) -> None:
    module, names = layers_of(count)
    x = torch.randn(3, 4)
    expected = module(x)
    stream = LayerStream(module, names, CPU)
    for layer in range(count):
        stream.load_before(module.get_submodule(str(layer)), layer)
    for _ in range(3):
        assert torch.equal(module(x), expected)
    places = {tensor.data_ptr() for tensor in named_tensors(module).values()}
    assert len(places) == 2 * min(2, count)


@pytest.mark.usefixtures("lane")
def test_a_pass_that_was_broken_off_leaves_nothing_wrong() -> None:
    module, names = layers_of(5)
    weights = [module.get_parameter(f"{layer}.weight").clone() for layer in range(5)]
    stream = LayerStream(module, names, CPU)
    for layer in (0, 1, 2, 0, 1, 0, 3, 4, 4, 0, 2):
        stream.load(layer)
        assert torch.equal(module.get_parameter(f"{layer}.weight"), weights[layer])


def test_each_pass_copies_each_layer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    monkeypatch.setattr(CopyStream, "copy", lambda *sides: copied.append(len(sides)))
    module, names = layers_of(4)
    stream = LayerStream(module, names, CPU)
    for passes in (1, 2, 3):
        for layer in range(4):
            stream.load(layer)
        assert len(copied) == 4 * passes + 1  # and the first of the next


def test_a_guest_is_there_only_within_its_visit() -> None:
    module, _ = layers_of(1)
    host = module.get_parameter("0.weight")
    with OnDevice(module, ["0.weight"], CPU):
        there = module.get_parameter("0.weight")
        assert there is not host
        assert torch.equal(there, host)
    assert module.get_parameter("0.weight").data_ptr() == host.data_ptr()


def test_host_memory_holds_what_it_was_given_in_few_pieces() -> None:
    tensors = [torch.randn(size).to(torch.bfloat16) for size in (3, 500, 1, 3000, 300)]
    memory = HostMemory((tensor.nbytes for tensor in tensors), CPU, piece_bytes=4096)
    kept = [memory.store(tensor) for tensor in tensors]
    assert all(map(torch.equal, kept, tensors))
    pieces = {copy.untyped_storage().data_ptr(): len(copy.untyped_storage()) for copy in kept}
    assert list(pieces.values()) == [4096, 6144, 768]
    assert all(copy.storage_offset() * copy.itemsize % ALIGNMENT == 0 for copy in kept)


@pytest.mark.parametrize(
    ("variant", "quantization"),
    [
        ("base", None),
        ("mid", None),
        ("distilled", None),
        pytest.param("distilled", "fp8", marks=needs_fp8),
    ],
)
def test_latents_are_the_same_bit_for_bit(
    variant: str,
    quantization: Any,
    checkpoints: dict[str, Path],
    latent_model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sessions with guidance, an image and an adapter."""
    plain: LoadedModel = latent_model(checkpoints[variant], quantization=quantization)
    monkeypatch.setattr(offload, "CopyStream", LateLane)
    offloaded = load_model(str(checkpoints[variant]), quantization=quantization, offload=True)
    assert plain.vae is not None
    assert offloaded.vae is not None
    offloaded.vae.render = plain.vae.render  # type: ignore[method-assign]
    assert plain.transformer is not None
    lora = write_lora(tmp_path / "adapter.safetensors", plain.transformer)
    case = Case(variant, chunks=1, height=64, width=64).with_defaults()
    image = Case(variant, "i2v", height=64, width=64, chunks=1, seed=1).with_defaults()
    requests = [
        case.request("plain"),
        image.request("image", keep_input_latents=True),
        case.request("adapted", lora=str(lora)),
    ]
    expected = run_sessions(plain, requests, batch_invariant=True)
    got = run_sessions(offloaded, requests, batch_invariant=True)
    assert all(torch.equal(got[name], latents) for name, latents in expected.items())


def test_pixels_are_the_same_bit_for_bit(checkpoints: dict[str, Path]) -> None:
    latents = torch.randn(16, 9, 2, 2)
    frames = []
    for is_offloaded in (False, True):
        vae = load_model(str(checkpoints["base"]), roles=("decode",), offload=is_offloaded).vae
        assert vae is not None
        frames.append(vae.decode(latents))
    assert torch.equal(*frames)


def resident_bytes(model: LoadedModel) -> dict[str, int]:
    """Return the bytes of distinct memory of the parameters and buffers of each part."""
    assert model.text_encoder is not None
    assert model.vae is not None
    modules = {
        "transformer": model.transformer,
        "text_encoder": model.text_encoder.model,
        "vae": model.vae.model,
    }
    held = {}
    for part, module in modules.items():
        tensors = named_tensors(module)
        if part == "text_encoder":
            tensors.pop("shared.weight")  # on the host
        held[part] = sum({item.data_ptr(): item.nbytes for item in tensors.values()}.values())
    return held


@pytest.mark.parametrize("quantization", [None, with_fp8])
def test_the_device_holds_what_arithmetic_says(
    quantization: Any, checkpoints: dict[str, Path]
) -> None:
    checkpoint = open_checkpoint(str(checkpoints["mid"]), "auto")
    parts = build_parts(checkpoint.folder, checkpoint.config, torch.bfloat16, quantization)
    counted = {}
    for name, part in parts.items():
        sizes = weight_bytes(*part)
        counted[name] = place_part(name, sizes).device_bytes(sizes)
    model = load_model(
        str(checkpoints["mid"]), dtype="bfloat16", quantization=quantization, offload=True
    )
    assert resident_bytes(model) == counted


@pytest.mark.parametrize(
    ("quantization", "transformer", "forward", "text"),
    [(None, 1.98, 23.91, 4.20), ("fp8", 1.28, 11.97, 2.10)],
)
def test_14b_takes_little_of_a_small_device(
    quantization: Any, transformer: float, forward: float, text: float
) -> None:
    """The figures of docs/memory.md, in GB."""
    checkpoint = open_checkpoint("BestWishYsh/Helios-Distilled", "dummy")
    parts = build_parts(checkpoint.folder, checkpoint.config, torch.bfloat16, quantization)
    sizes = {name: weight_bytes(*part) for name, part in parts.items()}
    placements = {name: place_part(name, size) for name, size in sizes.items()}
    held = {name: item.device_bytes(sizes[name]) / 1e9 for name, item in placements.items()}
    copied = placements["transformer"]

    def near(value: float) -> object:
        return pytest.approx(value, abs=0.005)

    assert held == {
        "transformer": near(transformer),
        "text_encoder": near(0.77),
        "vae": near(0.51),
    }
    assert sum(held.values()) < 4
    assert copied.copied_bytes(sizes["transformer"], "forward") / 1e9 == near(forward)
    assert copied.copied_bytes(sizes["transformer"], "text") / 1e9 == near(text)
    encoder = placements["text_encoder"].copied_bytes(sizes["text_encoder"], "forward")
    assert encoder / 1e9 == near(9.26)
