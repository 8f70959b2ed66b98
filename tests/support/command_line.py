"""What commands print."""


def without_progress(text: str) -> list[str]:
    """The lines of standard error, but for the one that says which model is being loaded."""
    return [line for line in text.splitlines() if not line.startswith("helios-serve: loading ")]
