"""Defaults that every command shares."""

DEFAULT_MODEL = "nano"

NANO_SIZE = (128, 64)
PUBLISHED_SIZE = (640, 384)


def default_size(model: str) -> tuple[int, int]:
    """(width, height) where none is given: what the published checkpoints are made for, or nano."""
    return NANO_SIZE if model.split("-")[0] == DEFAULT_MODEL else PUBLISHED_SIZE
