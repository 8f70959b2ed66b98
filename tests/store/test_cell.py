"""A data folder belongs to one cell."""

from pathlib import Path

import pytest

from helios_serve.errors import InvalidRequestError
from helios_serve.store.cell import claim_cell


def test_a_folder_keeps_its_first_name(tmp_path: Path) -> None:
    assert claim_cell(tmp_path, None) is None
    assert claim_cell(tmp_path, "a") == "a"
    assert [claim_cell(tmp_path, name) for name in ("a", None)] == ["a", "a"]
    with pytest.raises(InvalidRequestError, match="belongs to cell a: expected --cell a, or"):
        claim_cell(tmp_path, "b")
    assert claim_cell(tmp_path, None) == "a"
