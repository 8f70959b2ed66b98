"""Hooks of mkdocs.

The site has README.md as its first page, and the files of the repository that pages link to.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
UP = re.compile(r"\]\(\.\./")
DOWN = re.compile(r"\]\((?:docs|\.\./docs)/")
LINK = re.compile(r"\]\((?:\.\./)*([^)#:]+)")
PAGES = {"README.md": "index.md"}
"""Pages of the root under another name."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, and every file outside of docs/ to which it or a page of docs/ links."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    wanted = {"README.md"}
    for page in pages:
        for name in LINK.findall(page.read_text()):
            place = (page.parent / name if page.parent == ROOT else ROOT / name).resolve()
            if place.is_file() and ROOT / "docs" not in place.parents:
                wanted.add(place.relative_to(ROOT).as_posix())
    for name in sorted(wanted):
        source = ROOT / name
        uri = PAGES.get(name, name)
        content = source.read_text() if source.suffix == ".md" else source.read_bytes()
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Have links lead to the places that files have on the site."""
    if page.file.src_uri in PAGES.values() or "/" not in page.file.src_uri:
        return DOWN.sub("](", UP.sub("](", markdown))
    return markdown.replace("](../docs/", "](../")
