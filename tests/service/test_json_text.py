"""Limits on JSON of clients, checked before it is decoded."""

import json
import random
import time
import tracemalloc
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_serve.service.errors import ApiError
from helios_serve.service.json_text import MAX_TEXT, check_shape, decode_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda items: st.lists(items) | st.dictionaries(st.text(), items),
    max_leaves=30,
)
DATA_URL = "data:image/png;base64," + (2 << 20) * "A"


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_values_are_those_of_the_standard_library(value: Any) -> None:
    for options in ({}, {"ensure_ascii": False}, {"indent": 2}):
        text = json.dumps(value, **options)
        data = text.encode("utf-8", "surrogatepass")
        try:
            expected = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # lone surrogates
        assert decode_json(data) == expected
        assert decode_json(b"\xef\xbb\xbf" + data) == expected


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_checked_without_another_error(data: bytes) -> None:
    with suppress(ApiError):
        assert check_shape(data).media <= len(data)


HOSTILE = {
    "lists": b"[" + b"[]," * 300_000 + b"1]",
    "objects": b"[" + b'{"":[]},' * 120_000 + b"1]",
    "short strings": b"[" + b'"a",' * 250_000 + b"1]",
    "numbers": b"[" + b"1," * 500_000 + b"1]",
    "depth": b"[" * 500_000,
    "depth of objects": b'{"a":' * 180_000,
    "escaped quotes without an end": b'"' + b'\\"' * 500_000,
    "quotes": b'"' * 1_000_000,
    "backslashes": b'"' + b"\\" * 1_000_001,
    "data: URLs": b'"data:' * 170_000,
    "torn data: URLs": b'"data:\\' * 140_000,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_refused_in_little_time_and_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        began = time.process_time()
        with pytest.raises(ApiError) as refused:
            decode_json(data)
        assert time.process_time() - began < 2  # tracing takes most of it
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
    assert refused.value.status in (400, 413)


@pytest.mark.parametrize("escape", [False, True])
def test_a_data_url_does_not_count_as_text(escape: bool) -> None:
    text = json.dumps({"prompt": "a", "input_reference": {"image_url": DATA_URL}})
    if escape:  # as PHP writes it
        text = text.replace("/", "\\/")
    assert decode_json(text.encode())["input_reference"]["image_url"] == DATA_URL
    with pytest.raises(ApiError, match="at most 1048576 bytes") as refused:
        decode_json(text.replace("data:", "date:").encode())
    assert refused.value.status == 413
    beside = json.dumps({"image_url": DATA_URL, "prompt": MAX_TEXT * "a"})
    with pytest.raises(ApiError, match="at most 1048576 bytes"):
        decode_json(beside.encode())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_other_encodings_are_named(encoding: str) -> None:
    with pytest.raises(ApiError, match="UTF-16 or UTF-32, expected UTF-8"):
        decode_json('{"prompt": "a"}'.encode(encoding))


@pytest.mark.parametrize("data", [b'{"a": "\xff"}', b'{"a": "\xe9"}', b"", b"{", b"\xef\xbb\xbf"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ApiError, match="not valid JSON"):
        decode_json(data)


def test_prompts_may_contain_all_that_json_escapes() -> None:
    rng = random.Random(1)
    prompt = "".join(rng.choices('"\\/\n\t,[]{}\u2028é\U0001f600', k=10_000))
    for ascii_only in (True, False):
        data = json.dumps({"prompt": prompt}, ensure_ascii=ascii_only).encode()
        assert decode_json(data) == {"prompt": prompt}
        assert check_shape(data).tokens <= 4 + prompt.count('"')  # braces, two strings
