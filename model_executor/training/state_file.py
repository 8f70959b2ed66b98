"""Files that hold tensors and numbers of a training: written at once or not at all, and checked."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from helios_serve.errors import CheckpointError


class State(NamedTuple):
    """Tensors by name, and JSON values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save_state(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write a state. A reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {"values": json.dumps(values), "sha256": digest(kept)}
    scratch = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file(kept, scratch, metadata=header)
    with scratch.open("rb") as file:
        os.fsync(file.fileno())
    scratch.rename(path)


def load_state(path: Path) -> State:
    """Read a state. Raises CheckpointError, which names the file, if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is missing, damaged or truncated: {error}") from error
    if "sha256" not in header or "values" not in header:
        raise CheckpointError(f"{path} was not written by a training: it has no checksum")
    if header["sha256"] != digest(tensors):
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    return State(tensors, json.loads(header["values"]))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes, dtypes and bytes, whatever the order."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        total.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
