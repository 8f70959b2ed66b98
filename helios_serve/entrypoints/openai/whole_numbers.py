"""Whole numbers in URLs."""

import re

NUMBER = re.compile(r"[0-9]{1,9}")


def whole_number(text: str) -> int | None:
    """None for what is not up to nine plain digits: Python raises ValueError at thousands of
    them."""
    return int(text) if NUMBER.fullmatch(text) else None
