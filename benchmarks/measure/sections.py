"""A result that is written section by section, so that a later failure loses nothing."""

import json
import os
from pathlib import Path
from typing import Any


class Sections:
    """The sections of a result, and the JSON file that has them; without a path there is no file.

    The file is replaced as a whole, so that it can be read at any time.
    """

    def __init__(self, path: Path | None, **head: Any) -> None:
        self.path = path
        self.result = dict(head)
        self._write()

    def add(self, name: str, value: Any) -> None:
        """Add a section, or replace it, and write the file."""
        self.result[name] = value
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.result, indent=2) + "\n")
        os.replace(temporary, self.path)
