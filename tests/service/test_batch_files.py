"""Batch files as other systems write them."""

import json
from pathlib import Path

import pytest

from helios_serve.entrypoints.cli.run_batch import read_lines
from helios_serve.errors import InvalidRequestError
from helios_serve.service.batches import batch_line
from helios_serve.service.batches.batch_line import check_file, parse_line, read_line
from helios_serve.store.batches import LineError

LINES = [
    json.dumps({"custom_id": name, "body": {"prompt": prompt}}, ensure_ascii=False)
    for name, prompt in (("a", "waves"), ("b", "naïve\u2028\u0085"), ("c", "\U0001f600"))
]
MARK = b"\xef\xbb\xbf"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "batch.jsonl"


@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\r\n \r\n", "\n\t\n"])
@pytest.mark.parametrize("last", ["", "\n", "\r\n"])
def test_marks_and_line_endings_make_no_difference(
    path: Path, mark: bytes, end: str, last: str
) -> None:
    path.write_bytes(mark + (end.join(LINES) + last).encode())
    spans, errors = check_file(path)
    assert errors == []
    found = [read_line(path, span) for span in spans]
    assert [(line.custom_id, line.body["prompt"]) for line in found] == [
        ("a", "waves"),
        ("b", "naïve\u2028\u0085"),
        ("c", "\U0001f600"),
    ]
    local = [parse_line(line, number) for number, line in enumerate(read_lines(path), 1)]
    assert local == found


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_other_encodings_are_named(path: Path, encoding: str) -> None:
    path.write_bytes("\r\n".join(LINES).encode(encoding))
    (error,) = check_file(path).errors
    assert (error.code, error.message) == (
        "invalid_encoding",
        "got a file in UTF-16 or UTF-32, expected UTF-8",
    )
    with pytest.raises(InvalidRequestError, match="in UTF-16 or UTF-32, expected UTF-8"):
        read_lines(path)


@pytest.mark.parametrize("content", [b"", MARK, b"\r\n", MARK + b"\r\n\n"])
def test_a_file_without_requests_is_named(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert [error.code for error in check_file(path).errors] == ["empty_file"]
    with pytest.raises(InvalidRequestError, match="at least one request"):
        read_lines(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINES[0].encode("latin-1").replace(b"waves", b"\xe9"), "utf-8"),
        (b'{"custom_id": "a", "body": {"prompt": ' + 100 * b"[", "nested too deeply"),
        (b'{"custom_id": "a", "body": [' + 60_000 * b"1,", "too complex"),
        (b'{"custom_id": "a", "body": {"prompt": "' + (2 << 20) * b"a" + b'"}}', "too large"),
    ],
)
def test_a_line_that_no_order_needs_is_refused(path: Path, line: bytes, message: str) -> None:
    path.write_bytes(LINES[1].encode() + b"\n" + line + b"\n")
    (error,) = check_file(path).errors
    assert (error.code, error.line) == ("invalid_json_line", 2)
    assert message in error.message
    assert isinstance(parse_line(line, 2), LineError)


def test_a_line_has_a_length(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_line, "MAX_LINE", 100)
    path.write_bytes(LINES[0].encode() + b"\n" + 1000 * b"x" + b"\n" + LINES[0].encode())
    (error,) = check_file(path).errors
    assert (error.code, error.line) == ("line_too_long", 2)


def test_a_line_may_have_a_data_url(path: Path) -> None:
    url = "data:image/png;base64," + (2 << 20) * "A"
    body = {"prompt": "a", "input_reference": {"image_url": url}}
    path.write_text(json.dumps({"custom_id": "a", "body": body}))
    spans, errors = check_file(path)
    assert errors == []
    assert read_line(path, spans[0]).body == body


def test_long_ids_are_refused_and_not_repeated(path: Path) -> None:
    ids = ("x" * 513, "y" * 512, "y" * 512)
    lines = [json.dumps({"custom_id": name, "body": {"prompt": "waves"}}) for name in ids]
    path.write_text("\n".join(lines))
    too_long, repeated = check_file(path).errors
    assert (too_long.code, too_long.line) == ("custom_id_too_long", 1)
    assert "513 characters, expected at most 512" in too_long.message
    assert (repeated.code, repeated.line) == ("duplicate_custom_id", 3)
    assert len(repeated.message) < 200
