"""The playground's page and files over HTTP."""

import re
from pathlib import Path

import httpx2 as httpx

from tests.support.api import error_of

FOLDER = Path(__file__).parents[3] / "helios_serve/entrypoints/http/playground"
FILES = sorted(file for file in FOLDER.iterdir() if file.suffix in (".html", ".css", ".js", ".svg"))


def test_the_page_is_at_the_root_with_a_strict_policy(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"


def test_every_file_is_served_and_asked_for_once_only(http: httpx.Client) -> None:
    for file in FILES:
        first = http.get(f"/playground/{file.name}")
        assert first.content == file.read_bytes()
        again = http.get(
            f"/playground/{file.name}", headers={"if-none-match": first.headers["etag"]}
        )
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]


def test_what_files_name_is_there_and_ours() -> None:
    names = {file.name for file in FILES}
    for file in FILES:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://", text), file
        named = re.findall(r'(?:"playground/|from "\./)([\w.-]+)', text)
        assert set(named) <= names, file


def test_other_names_are_not_found(http: httpx.Client) -> None:
    for name in ("__init__.py", "none.js", "%2e%2e%2fapp.py"):
        answer = http.get(f"/playground/{name}")
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "not_found"
