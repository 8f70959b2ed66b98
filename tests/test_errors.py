"""Messages for clients."""

import pytest

from helios_serve.errors import StorageError, public_message, without_paths


@pytest.mark.parametrize(
    ("message", "public"),
    [
        ("cannot write /srv/data/files/x: No space", "cannot write x: No space"),
        ("cannot read '/srv/a b/c.safetensors'", "cannot read 'a b/c.safetensors'"),
        ("/data/lora.safetensors: no such key", "lora.safetensors: no such key"),
        ("see https://host.example/a/b for /x/y", "see https://host.example/a/b for y"),
        ("got 33/66 frames and n/a", "got 33/66 frames and n/a"),
        ("image/png, a/b", "image/png, a/b"),
        ("no path", "no path"),
    ],
)
def test_paths_are_shortened_and_nothing_else(message: str, public: str) -> None:
    assert without_paths(message) == public
    assert public_message(StorageError(message)) == public


def test_a_public_message_may_be_its_own() -> None:
    assert public_message(StorageError("/a/b is full", public="full")) == "full"
    assert public_message(OSError("cannot open /a/b")) == "OSError: cannot open b"
