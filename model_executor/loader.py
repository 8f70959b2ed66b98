"""Finds checkpoints and loads the parts of a model that a worker's roles need."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from helios_serve.errors import CheckpointError, DeviceError
from helios_serve.kernels.linear import fuses_gelu
from helios_serve.logger import logger
from helios_serve.model_config import Geometry, HeliosConfig
from helios_serve.model_executor.checks import check_compilation
from helios_serve.model_executor.components import (
    Part,
    build_parts,
    parts_of,
    tie_embeddings,
)
from helios_serve.model_executor.device import (
    check_fp8,
    release_cached,
    resolve_dtype,
    resolve_kernels,
)
from helios_serve.model_executor.memory import MemoryCheck, is_out_of_memory, size_text
from helios_serve.model_executor.models.architectures import NANO
from helios_serve.model_executor.models.helios.config import read_config
from helios_serve.model_executor.models.helios.transformer import HeliosTransformer
from helios_serve.model_executor.models.nano.checkpoint import nano_checkpoint
from helios_serve.model_executor.models.published import published_checkpoint
from helios_serve.model_executor.models.text_encoder import TextEncoder
from helios_serve.model_executor.models.vae import Vae, put_channels_last
from helios_serve.model_executor.models.wan_vae.autoencoder import WanVae
from helios_serve.model_executor.offload import WeightPlacement
from helios_serve.model_executor.weights import (
    fill_random,
    find_sources,
    stream_weights,
    weight_bytes,
)
from helios_serve.options.sampling import has_random_weights
from helios_serve.options.workers import (
    DEFAULT_OPTIONS,
    ROLES,
    LoadFormat,
    Role,
    WorkerConfig,
    WorkerOptions,
    worker_config,
)

DUMMY_SEEDS = {"transformer": 0, "text_encoder": 1, "vae": 2}
"""Seeds of random weights, one per part, so that a part does not depend on the parts loaded."""

HUB_PATTERNS = ["*.json", "*.safetensors", "spiece.model", "tokenizer/*"]
HUB_IGNORED = ["transformer_ode/*"]
"""Files of a hub repository to download, and those to skip."""


class Checkpoint(NamedTuple):
    """A checkpoint whose configuration was read. `note` is a warning about its weights, if any."""

    name: str
    folder: Path
    config: HeliosConfig
    load_format: LoadFormat
    note: str | None


class LoadedModel(NamedTuple):
    """The loaded parts of a checkpoint; None for parts that no role needs."""

    config: HeliosConfig
    device: torch.device
    transformer: HeliosTransformer | None = None
    text_encoder: TextEncoder | None = None
    vae: Vae | None = None


def open_checkpoint(model: str, load_format: LoadFormat) -> Checkpoint:
    """Find `model` (a folder, a hub id or a built-in model) and read its configuration.

    With `load_format="dummy"` the weights will be random, so that only the JSON files are needed;
    for a published hub id nothing is downloaded. Raises CheckpointError.
    """
    folder, note = find_checkpoint(model, load_format)
    return Checkpoint(model, folder, read_config(folder), load_format, note)


def load_checkpoint(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    roles: Collection[Role] = ROLES,
    options: WorkerOptions = DEFAULT_OPTIONS,
) -> LoadedModel:
    """Load the parts that `roles` need to `device`.

    The headers of all files are checked before any weight is read. Raises CheckpointError,
    DeviceError if the device does not support an option or lacks memory, and InvalidRequestError
    for a size in `options.compile_sizes` that the model cannot generate.
    """
    compiled = check_compilation(options.compile_sizes, checkpoint.config, offload=options.offload)
    if "denoise" in roles:
        check_support(device, dtype, options)
    if checkpoint.note is not None:
        logger.warning(checkpoint.note)
    folder, config = checkpoint.folder, checkpoint.config
    worker = worker_config(checkpoint.name, options, like=WorkerConfig(roles=tuple(roles)))
    check_memory(checkpoint, device, dtype, worker)
    decode_dtype = resolve_dtype(options.decode_dtype, device)
    needed = parts_of(roles)
    parts = build_parts(
        folder, config, dtype, options.quantization, decode_dtype=decode_dtype, needed=needed
    )
    tokenizer = load_tokenizer(folder) if "text_encoder" in parts else None
    placements = {
        name: WeightPlacement(name, weight_bytes(*part), device, options.offload)
        for name, part in parts.items()
    }
    sizes = {name: placement.device_bytes for name, placement in placements.items()}
    summary = ", ".join(f"{name} {size_text(size)}" for name, size in sizes.items())
    logger.info("%s: %s of weights on %s", checkpoint.name, summary, device)
    with allocation_errors(device, summary):
        fill(parts, placements, device, dummy=checkpoint.load_format == "dummy")
        contexts = {
            name: placement.activate(parts[name].module) for name, placement in placements.items()
        }
    modules = {name: part.module for name, part in parts.items()}
    transformer, text_encoder = modules.get("transformer"), modules.get("text_encoder")
    assert transformer is None or isinstance(transformer, HeliosTransformer)
    if transformer is not None:
        optimize_transformer(transformer, options)
    if text_encoder is not None:
        tie_embeddings(text_encoder)
    vae = None
    if "vae" in modules:
        assert isinstance(modules["vae"], WanVae)
        vae = Vae(modules["vae"], device, contexts["vae"])
        optimize_vae(vae, options, compiled if "decode" in roles else ())
    # Other threads use the weights on streams of their own, and joining them has freed the parts.
    release_cached(device)
    return LoadedModel(
        config,
        device,
        transformer,
        None if text_encoder is None else TextEncoder(text_encoder, tokenizer, device),
        vae,
    )


def check_support(device: torch.device, dtype: torch.dtype, options: WorkerOptions) -> None:
    """Raise DeviceError if `device` cannot run the transformer with `options`."""
    resolve_kernels(device, options.attention_backend)
    if options.quantization is not None:
        check_fp8(device, dtype)


@contextmanager
def allocation_errors(device: torch.device, summary: str) -> Iterator[None]:
    """Raise a failed allocation of the block as DeviceError, with a `summary` of the weights."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"got {device}, expected free memory for {summary} of weights: see docs/memory.md for "
            "ways to use less"
        ) from error


def check_memory(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, worker: WorkerConfig
) -> None:
    """Raise DeviceError unless there is memory for a worker on `device` in `dtype`."""
    dtype_name = str(dtype).removeprefix("torch.")
    worker = msgspec.structs.replace(worker, device=str(device), dtype=dtype_name)
    MemoryCheck(checkpoint.name, checkpoint.folder, checkpoint.config).check_worker(worker)


def optimize_transformer(transformer: HeliosTransformer, options: WorkerOptions) -> None:
    """Set the attention, and join each layer's projections where one large matmul is faster."""
    transformer.use_attention(options.attention_backend)
    logger.info("%s: %s", transformer.device, transformer.kernels)
    if fuses_gelu(transformer.device, transformer.dtype):
        logger.info("%s: GELU at the end of its matmul", transformer.device)
    # On a CPU three are faster; streamed layers cannot be joined.
    if transformer.device.type != "cpu" and not options.offload:
        transformer.join_weights()


def optimize_vae(vae: Vae, options: WorkerOptions, compiled: Sequence[Geometry]) -> None:
    """Lay out the decoder for fast convolutions, and compile it for the sizes in `compiled`."""
    is_half = vae.model.post_quant_conv.weight.dtype.itemsize == 2
    if is_half and not options.offload:
        put_channels_last(vae.model.decoder)
    if compiled:
        vae.compile(compiled, is_continuous=options.continuous_decode)


def fill(
    parts: dict[str, Part],
    placements: dict[str, WeightPlacement],
    device: torch.device,
    *,
    dummy: bool,
) -> None:
    """Fill all parts with weights: random ones if `dummy`, else from files, checked beforehand."""
    sources = {} if dummy else {name: find_sources(*part) for name, part in parts.items()}
    for name, (module, component) in parts.items():
        component = placements[name].apply_to(component)
        if dummy:
            fill_random(module, component, device, DUMMY_SEEDS[name])
        else:
            stream_weights(module, component, sources[name], device)
        module.eval().requires_grad_(False)


def find_checkpoint(model: str, load_format: LoadFormat) -> tuple[Path, str | None]:
    """Return the folder of `model`, and a warning if its weights are random."""
    if (nano := nano_checkpoint(model)) is not None:
        if load_format == "dummy":
            return nano, "weights are random (dummy)"
        is_noise = has_random_weights(model)
        return nano, f"{model} has random weights: its videos show noise" if is_noise else None
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder, "weights are random (dummy)" if load_format == "dummy" else None
    if load_format == "dummy":
        if (published := published_checkpoint(model)) is not None:
            return published, f"{model} with random weights (dummy): for measuring speed only"
        return download(model, ["*.json", "tokenizer/*"]), "weights are random (dummy)"
    return download(model, HUB_PATTERNS), None


def download(model: str, patterns: list[str]) -> Path:
    """Download files of a hub repository, unless they are cached, and return their folder."""
    try:
        return Path(snapshot_download(model, allow_patterns=patterns, ignore_patterns=HUB_IGNORED))
    except HFValidationError as error:
        raise CheckpointError(
            f"got model {model!r}, expected a folder, a hub id such as OWNER/NAME, "
            f"or {', '.join(NANO)}"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{model} is not a local folder and cannot be downloaded from the hub: {reason}"
        ) from error


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer  # imported here: see `build_text_encoder`

    try:
        return AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder / 'tokenizer'} has no usable tokenizer: {error}") from error
