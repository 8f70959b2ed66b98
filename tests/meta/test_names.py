"""Public class names are unique, and names in documents exist."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("helios_serve", "model_executor", "kernels", "benchmarks")
SCRIPTS = ROOT / "benchmarks" / "micro"
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
]
PATH = re.compile(
    r"`((?:helios_serve|model_executor|kernels|benchmarks(?!/results)|tests|docs)/[\w./]*)`"
)

CLASS = re.compile(r"`([A-Z][a-z]\w*)(?:\.\w+)?`")
ELSEWHERE = {"AssertionError", "Makefile", "Meta", "NamedTuple", "Protocol", "World"}
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def classes() -> dict[str, list[str]]:
    """Return the public class names, each with the files that define it."""
    where: defaultdict[str, list[str]] = defaultdict(list)
    for folder in FOLDERS:
        for source in (ROOT / folder).rglob("*.py"):
            if source.is_relative_to(SCRIPTS):
                continue
            for node in ast.parse(source.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    where[node.name].append(str(source.relative_to(ROOT)))
    return where


def test_no_two_classes_share_a_name() -> None:
    where = classes()
    assert {name: places for name, places in where.items() if len(places) > 1} == {}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_in_documents_exist(document: Path) -> None:
    for name in PATH.findall(document.read_text()):
        assert (ROOT / name).exists(), f"{document.name} names {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_in_documents_lead_to_files(document: Path) -> None:
    for name in LINK.findall(document.read_text()):
        assert (document.parent / name).exists(), f"{document.name} links to {name}"


@pytest.mark.parametrize(
    "name", ["CONTRIBUTING.md", "docs/architecture.md", "docs/debugging.md", "docs/engine.md"]
)
def test_classes_in_documents_exist(name: str) -> None:
    named = set(CLASS.findall((ROOT / name).read_text()))
    assert named - ELSEWHERE - classes().keys() == set()
