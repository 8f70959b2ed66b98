"""Ids of videos, files and batches. With cells, an id names the cell that holds the object."""

import re
import secrets

from helios_serve.options.server import CELL_NAME
from helios_serve.service.errors import ApiError, not_found

SEPARATORS = {"video": "_", "batch": "_", "file": "-"}
"""What separates the parts of an id, by kind of object."""
CELL_ID = re.compile(
    rf"(?:video|batch)_(?P<cell>{CELL_NAME.pattern})_[0-9a-f]{{32}}"
    rf"|file-(?P<file_cell>{CELL_NAME.pattern})-[0-9a-f]{{32}}"
)
MISDIRECTED = 421


class Ids:
    """Makes ids: `video_` and 32 hexadecimal digits, or `video_CELL_` and the digits in a cell.

    So an ordinary balancer routes by path, without state. Ids from before there were cells stay
    valid: an object is looked up by its whole id.
    """

    def __init__(self, cell: str | None = None) -> None:
        self.cell = cell

    def new(self, kind: str) -> str:
        """Return a new id of a `kind` of object: a key of SEPARATORS."""
        return self.named(kind, secrets.token_hex(16))

    def named(self, kind: str, digest: str) -> str:
        """Return the id with `digest`, 32 hexadecimal digits."""
        return join(kind, self.cell, digest)

    def missing(self, item_id: str, kind: str = "video") -> ApiError:
        """Return the error for an object that is not in this cell: 421 if its id names another."""
        cell = cell_of(item_id)
        if self.cell is not None and cell not in (None, self.cell):
            return other_cell(f"{kind} {item_id!r}", str(cell), self.cell)
        return not_found(item_id, kind)


def join(kind: str, cell: str | None, digest: str) -> str:
    """Return an id with the given parts; `cell` None: without one."""
    parts = (kind, digest) if cell is None else (kind, cell, digest)
    return SEPARATORS[kind].join(parts)


def cell_of(item_id: str) -> str | None:
    """Return the cell that an id names; None if it names none."""
    match = CELL_ID.fullmatch(item_id)
    return None if match is None else match["cell"] or match["file_cell"]


def other_cell(what: str, cell: str, own: str) -> ApiError:
    """Return the error for a request to cell `own` that belongs to `cell`."""
    return ApiError(
        MISDIRECTED,
        f"got {what} of cell {cell!r} in cell {own!r}: send the request to its cell, with the "
        f"header x-helios-cell: {cell} or the query ?cell={cell}",
        code="other_cell",
    )
