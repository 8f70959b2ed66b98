"""The cell that a data folder belongs to."""

from pathlib import Path

from helios_serve.errors import InvalidRequestError
from helios_serve.store.files import storage_errors, write_file

NAME = "cell"
"""File with the name of the cell."""


def claim_cell(folder: Path, name: str | None) -> str | None:
    """Return the cell that serves `folder`, which keeps its first name for good.

    Without `name` it is the one that the folder has; None if it has none. The caller must hold the
    folder's lock. Raises InvalidRequestError if the folder belongs to another cell, as its ids
    would be routed there.
    """
    path = folder / NAME
    with storage_errors("read", path):
        kept = path.read_text().strip() if path.exists() else None
    if name is None or name == kept:
        return kept
    if kept is not None:
        raise InvalidRequestError(
            f"got --cell {name}, but {folder} belongs to cell {kept}: expected --cell {kept}, or "
            "another --data-dir",
            param="cell",
        )
    write_file(path, f"{name}\n".encode())
    return name
