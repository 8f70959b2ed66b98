"""Ids with and without a cell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_serve.entrypoints.cli.arguments import cell_name
from helios_serve.options.server import CELL_NAME
from helios_serve.service.batches.batch_runner import line_id
from helios_serve.service.ids import SEPARATORS, Ids, cell_of, join
from helios_serve.store.job_files import folder_name

DIGEST = "0123456789abcdef" * 2
names = st.from_regex(CELL_NAME, fullmatch=True)


def test_without_a_cell_ids_are_as_they_were() -> None:
    made = {kind: Ids().named(kind, DIGEST) for kind in SEPARATORS}
    assert made == {
        "video": f"video_{DIGEST}",
        "batch": f"batch_{DIGEST}",
        "file": f"file-{DIGEST}",
    }
    assert [cell_of(item) for item in made.values()] == [None, None, None]


@given(names, st.sampled_from(sorted(SEPARATORS)))
def test_an_id_names_its_cell_and_is_a_plain_name_of_a_folder(cell: str, kind: str) -> None:
    made = Ids(cell).new(kind)
    assert cell_of(made) == cell
    assert folder_name(made) == made
    assert cell_of(Ids(cell).named(kind, DIGEST)) == cell


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a.b", 32 * "a", "a\n"])
def test_names_that_would_not_be_found_in_an_id_are_refused(name: str) -> None:
    with pytest.raises(Exception, match="expected 1 to 31 lower-case letters"):
        cell_name(name)


def test_what_is_missing_here_may_be_in_another_cell() -> None:
    other = Ids("b").new("video")
    for ids, item_id, status in (
        (Ids("a"), other, 421),
        (Ids("b"), other, 404),
        (Ids(), other, 404),
        (Ids("a"), f"video_{DIGEST}", 404),
        (Ids("a"), "nonsense", 404),
    ):
        assert ids.missing(item_id).status == status
    error = Ids("a").missing(join("file", "b", DIGEST), "file")
    assert error.detail.code == "other_cell"
    assert error.detail.message.startswith(f"got file 'file-b-{DIGEST}' of cell 'b' in cell 'a'")


def test_lines_of_a_batch_keep_their_ids_when_the_server_becomes_a_cell() -> None:
    old, new = f"batch_{DIGEST}", f"batch_a_{DIGEST}"
    assert cell_of(line_id(old, 3)) is None
    assert cell_of(line_id(new, 3)) == "a"
