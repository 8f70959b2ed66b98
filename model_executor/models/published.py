"""Folders with the configuration of the published checkpoints, for random weights."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from helios_serve.model_executor.models.architectures import PUBLISHED, published_files
from helios_serve.model_executor.models.nano.tokenizer import build_tokenizer, save_tokenizer


def write_json(folder: Path, name: str, content: dict[str, Any]) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def scratch_folder() -> Path:
    """Create a temporary folder, which is deleted when this process exits."""
    path = tempfile.mkdtemp(prefix="helios-serve-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


@cache
def published_checkpoint(model: str) -> Path | None:
    """Return a folder with the JSON files of a published checkpoint; None for other models."""
    if (variant := PUBLISHED.get(model)) is None:
        return None
    folder = scratch_folder()
    for name, content in published_files(variant).items():
        write_json(folder, name, content)
    save_tokenizer(build_tokenizer(), folder / "tokenizer")
    return folder
