"""What commands print."""

import re

LOADING = re.compile(r"(helios-serve:|\S+Z INFO \[-\]) loading ")


def without_progress(text: str) -> list[str]:
    """The lines of standard error, but for the one that says which model is being loaded."""
    return [line for line in text.splitlines() if not LOADING.match(line)]
