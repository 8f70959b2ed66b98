"""Helpers for the output of commands."""

import re

LOADING = re.compile(r"(helios-serve:|\S+Z INFO \[-\]) loading ")


def without_progress(text: str) -> list[str]:
    """Return the lines of standard error, except the one that names the model being loaded."""
    return [line for line in text.splitlines() if not LOADING.match(line)]
