"""References that the server fetches from allowed hosts."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helios_serve.errors import InvalidRequestError
from helios_serve.media.references import Reference
from helios_serve.service.media import references
from helios_serve.service.media.references import MEDIA_FLAG, ReferenceInput, References
from tests.support.broken_media import movie, picture
from tests.support.https_server import Got, HttpsServer, Reply, https_server

ANSWERS = {
    "/picture?key=secret": Reply(body=picture()),
    "/movie": Reply(body=movie()),
    "/moved": Reply(302, b"", {"location": "/picture?key=secret"}),
    "/page": Reply(body=b"<html>" * 100),
    "/packed": Reply(body=picture(), headers={"content-encoding": "gzip"}),
    "/long": Reply(body=bytes(3000)),
    "/says-long": Reply(body=b"", headers={"content-length": "3000"}),
}


@pytest.fixture(scope="module")
def server() -> Iterator[HttpsServer]:
    def respond(got: Got) -> Reply:
        return ANSWERS.get(got.path, Reply(404))

    with https_server(respond) as made:
        yield made


def read(folder: Path, server: HttpsServer, given: ReferenceInput, **options: Any) -> Reference:
    """Read a reference, and assert that no file of it is left."""

    async def main() -> Reference:
        outbound = server.outbound(MEDIA_FLAG)
        async with References(folder / "incoming", outbound=outbound, **options) as made:
            return await made.read(given, "acme", width=64, height=64)

    try:
        return asyncio.run(main())
    finally:
        assert not list((folder / "incoming").iterdir())


def test_pictures_and_videos_are_fetched(tmp_path: Path, server: HttpsServer) -> None:
    image = ReferenceInput({"image_url": f"{server.url}/picture?key=secret"})
    video = ReferenceInput({"video_url": f"{server.url}/movie"}, "video", "video")
    assert read(tmp_path, server, image).kind == "image"
    assert read(tmp_path, server, video).frames.count == 40


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nothing?key=secret", "got status 404 from receiver.example, expected 200"),
        ("/moved?key=secret", "got status 404"),
        ("/moved", "got status 302"),
        ("/page", "image_url: got an unsupported file format"),
        ("/packed", "got a compressed response from receiver.example"),
        ("/long", "is too large, expected at most 2000 bytes"),
        ("/says-long", "is too large, expected at most 2000 bytes"),
    ],
)
def test_other_answers_are_refused(
    tmp_path: Path,
    server: HttpsServer,
    path: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "long" in path:
        monkeypatch.setattr(references, "MAX_FETCHED", 2000)
    before = len(server.got)
    with pytest.raises(InvalidRequestError, match=message) as caught:
        read(tmp_path, server, ReferenceInput({"image_url": server.url + path}))
    assert caught.value.param == "input_reference"
    assert "secret" not in str(caught.value)
    assert len(server.got) == before + 1


def test_files_by_id_are_those_of_the_sender(tmp_path: Path, server: HttpsServer) -> None:
    """Files of other tenants are not found."""
    path = tmp_path / "kept"
    path.write_bytes(picture())

    async def find(tenant: str, file_id: str) -> Path | None:
        return path if (tenant, file_id) == ("acme", "file-1") else None

    given = ReferenceInput({"file_id": "file-1"})
    assert read(tmp_path, server, given, find_file=find).kind == "image"
    with pytest.raises(InvalidRequestError, match="file 'file-2' not found"):
        read(tmp_path, server, ReferenceInput({"file_id": "file-2"}), find_file=find)
    with pytest.raises(InvalidRequestError, match="expected video_url"):
        read(tmp_path, server, ReferenceInput({"image_url": "data:,"}, "video", "video"))
    assert path.exists()
