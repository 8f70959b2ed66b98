"""Classes, functions, files and folders stay small."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.meta.measures import FOLDERS, LONG_FUNCTION, ROOT, Function, lines_of

LIMITS = {"methods": 24, "function lines": LONG_FUNCTION, "file lines": 420, "modules": 20}
"""Properties count as methods. Lines are those of `measures`; a folder's modules include its
`__init__.py`."""


class Part(NamedTuple):
    """A part of the source tree and its size in one of the units of LIMITS."""

    unit: str
    where: str
    size: int


def parts() -> Iterator[Part]:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    for folder, count in Counter(path.parent for path in paths).items():
        yield Part("modules", str(folder.relative_to(ROOT)), count)
    for path in paths:
        yield from parts_of(path)


def parts_of(path: Path) -> Iterator[Part]:
    text, where = path.read_text(), str(path.relative_to(ROOT))
    yield Part("file lines", where, len(text.splitlines()))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            methods = sum(isinstance(child, Function) for child in node.body)
            yield Part("methods", f"{where}:{node.name}", methods)
        elif isinstance(node, Function):
            yield Part("function lines", f"{where}:{node.name}", lines_of(node))


def test_nothing_exceeds_its_limit() -> None:
    assert [part for part in parts() if part.size > LIMITS[part.unit]] == []
