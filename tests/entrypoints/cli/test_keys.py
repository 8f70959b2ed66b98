"""`helios-serve keys`, and servers without keys."""

import io
import re
from contextlib import closing
from pathlib import Path

import pytest

from helios_serve.entrypoints.cli.main import main
from helios_serve.store.keys import KeyStore

SECRET = re.compile(r"sk-helios-[A-Za-z0-9_-]{43}")


def test_keys_are_made_listed_and_revoked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ["--data-dir", str(tmp_path / "data")]
    assert main(["keys", "create", "--tenant", "acme", "--name", "my laptop", *folder]) == 0
    told = capsys.readouterr()
    assert SECRET.fullmatch(told.out.strip())
    assert told.out.strip() not in told.err
    key_id = told.err.split()[0]
    assert main(["keys", "list", *folder]) == 0
    listed = capsys.readouterr().out
    assert re.search(rf"{key_id}  acme    my laptop  \d{{4}}-\d\d-\d\dT\d\d:\d\dZ  -", listed)
    assert listed.rstrip().endswith("valid")
    assert not SECRET.search(listed)
    assert main(["keys", "revoke", key_id, *folder]) == 0
    assert capsys.readouterr().out == f"{key_id} of tenant acme is revoked\n"
    assert main(["keys", "list", *folder]) == 0
    assert re.search(r"revoked \d{4}-", capsys.readouterr().out)


def test_a_key_of_one_folder_is_added_to_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["keys", "create", "--tenant", "acme", "--data-dir", str(tmp_path / "a")]) == 0
    secret = capsys.readouterr().out
    other = ["--tenant", "acme", "--data-dir", str(tmp_path / "b")]
    for given, status in ((secret, 0), (secret, 2), ("sk-helios-short", 2), ("", 2)):
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        assert main(["keys", "add", *other]) == status
        told = capsys.readouterr()
        assert secret.strip() not in told.out + told.err
        assert status == 0 or "helios-serve: error: got a key " in told.err
    with closing(KeyStore(tmp_path / "b")) as store:
        key = store.ring().find(secret.strip())
    assert key is not None
    assert key.tenant == "acme"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "--tenant", "a b"], "got tenant 'a b', expected 1 to 64 letters"),
        (["list"], "expected a folder with keys.sqlite3: no key was created there"),
        (["revoke", "key_1"], "expected a folder with keys.sqlite3: no key was created there"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["keys", *arguments, "--data-dir", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("helios-serve: error: got ")
    assert message in error
    assert error.count("\n") == 1


def test_without_keys_others_cannot_reach_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "got --host 0.0.0.0 without any API key, expected 127.0.0.1" in error
    assert "--without-keys" in error
    assert error.count("\n") == 1
