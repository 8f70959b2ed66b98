"""One word means one thing, and what documents name exists."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("helios_serve", "model_executor", "kernels")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PATH = re.compile(
    r"`((?:helios_serve|model_executor|kernels|benchmarks(?!/results)|tests|docs)/[\w./]*)`"
)


def test_no_two_classes_share_a_name() -> None:
    where: defaultdict[str, list[str]] = defaultdict(list)
    for folder in FOLDERS:
        for source in (ROOT / folder).rglob("*.py"):
            for node in ast.parse(source.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    where[node.name].append(str(source.relative_to(ROOT)))
    assert {name: places for name, places in where.items() if len(places) > 1} == {}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_in_documents_exist(document: Path) -> None:
    for name in PATH.findall(document.read_text()):
        assert (ROOT / name).exists(), f"{document.name} names {name}"
