"""Objects in a real S3 server, and what goes wrong with it."""

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest

from helios_serve.errors import InvalidRequestError
from helios_serve.store.files import DamagedFileError
from helios_serve.store.objects.object_store import (
    DIGEST,
    MAX_SINGLE_PUT,
    ObjectStore,
    ObjectStoreError,
    digest_of,
)
from tests.support.objects import CREDENTIALS, Bucket, Gate, running_s3
from tests.support.scripts import with_tests


@pytest.fixture
def objects(bucket: Bucket) -> ObjectStore:
    return ObjectStore(bucket.url, bucket.endpoint)


def test_a_check_leaves_nothing(objects: ObjectStore, bucket: Bucket) -> None:
    objects.check()
    assert bucket.names() == []


def test_what_is_put_is_got(objects: ObjectStore, bucket: Bucket, tmp_path: Path) -> None:
    async def main() -> None:
        data, large = b"fragment" * 1000, tmp_path / "video.mp4"
        large.write_bytes(bytes(range(256)) * (MAX_SINGLE_PUT // 256 + 1))
        assert await objects.put("a/00000.m4s", data, "video/iso.segment") == len(data)
        assert await objects.put("a/video.mp4", large, "video/mp4") == large.stat().st_size
        assert objects.get("a/00000.m4s") == data
        info = await objects.info("a/video.mp4")
        assert info is not None
        assert info.size == large.stat().st_size
        assert await objects.info("a/none") is None
        got = [part async for part in objects.parts("a/video.mp4", 5, 20_000_000)]
        assert b"".join(got) == large.read_bytes()[5:20_000_000]
        assert await objects.is_whole("a/00000.m4s", data)
        assert await objects.is_whole("a/video.mp4", None)
        assert not await objects.is_whole("a/00000.m4s", b"other")
        assert not await objects.is_whole("a/none", data)

    asyncio.run(main())
    assert bucket.get("a/00000.m4s").headers["content-type"] == "video/iso.segment"
    assert bucket.get("a/video.mp4").headers["content-type"] == "video/mp4"


def test_a_signed_url_is_for_one_method(objects: ObjectStore) -> None:
    async def main() -> tuple[str, str]:
        await objects.put("a/video.mp4", b"0123456789", "video/mp4")
        return (
            await objects.sign("a/video.mp4", "GET", 60),
            await objects.sign("a/video.mp4", "HEAD", 60),
        )

    url, head = asyncio.run(main())
    assert "X-Amz-Expires=60" in url
    assert "testing%2F" in url, "the access key is named, the secret is not"
    answer = httpx.get(url, headers={"range": "bytes=2-4"})
    assert (answer.status_code, answer.content) == (206, b"234")
    assert answer.headers["content-type"] == "video/mp4"
    assert httpx.head(head).headers["content-length"] == "10"


def test_a_folder_is_deleted_and_its_neighbours_stay(objects: ObjectStore, bucket: Bucket) -> None:
    async def main() -> None:
        for name in ("a/1", "a/2", "ab/1", "b"):
            await objects.put(name, b"data", "video/mp4")
        await objects.delete_folder("a")
        await objects.delete_folder("none")

    asyncio.run(main())
    assert bucket.names() == ["ab/1", "b"]


def test_damage_is_found(objects: ObjectStore, bucket: Bucket) -> None:
    bucket.put("a/1", b"other", **{DIGEST: digest_of(b"data")})
    with pytest.raises(DamagedFileError, match="a/1 is damaged: its checksum does not match"):
        objects.get("a/1")
    with pytest.raises(DamagedFileError, match="a/2 is missing"):
        objects.get("a/2")
    assert not asyncio.run(objects.is_whole("a/1", None))


def test_an_outage_is_named_and_ends(bucket: Bucket) -> None:
    gate = Gate(bucket.endpoint)
    objects = ObjectStore(bucket.through(gate).url, bucket.through(gate).endpoint)
    asyncio.run(objects.put("a/1", b"data", "video/mp4"))
    gate.close()
    with pytest.raises(ObjectStoreError, match=rf"no connection to http://127.0.0.1:{gate.port}"):
        asyncio.run(objects.put("a/2", b"data", "video/mp4"))
    gate.open()
    asyncio.run(objects.put("a/2", b"data", "video/mp4"))
    gate.close()
    assert bucket.names() == ["a/1", "a/2"]


@pytest.mark.parametrize("url", ["", "bucket", "s3://", "http://host/bucket", "s3://bucket?x=1"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="expected a URL such as s3://bucket/prefix"):
        ObjectStore(url)


def test_other_endpoints_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="expected a URL such as http://minio:9000"):
        ObjectStore("s3://bucket", "minio:9000")


def started(folder: Path, *flags: str, **environment: str) -> str:
    """Start a server, and return what it says before it ends."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "helios_serve",
            "serve",
            "--port",
            "0",
            "--data-dir",
            folder,
            *flags,
        ],
        env=with_tests() | CREDENTIALS | {"PATH": "", "PYTHONSAFEPATH": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    return done.stderr


def test_a_server_does_not_start_without_its_object_store(tmp_path: Path, bucket: Bucket) -> None:
    """Each reason is one line."""
    gate = Gate(bucket.endpoint)
    gate.close()
    closed = f"http://127.0.0.1:{gate.port}"
    assert started(
        tmp_path, "--object-store", "s3://videos/x", "--object-store-endpoint", closed
    ) == (f"helios-serve: error: cannot write to s3://videos/x: no connection to {closed}\n")
    assert started(tmp_path, "--object-store", "s3://none/x", AWS_ENDPOINT_URL=bucket.endpoint) == (
        "helios-serve: error: cannot write to s3://none/x: no such bucket\n"
    )


def test_a_server_does_not_start_with_wrong_credentials(tmp_path: Path) -> None:
    with running_s3() as url:
        # From now on, moto checks signatures and rights.
        httpx.post(f"{url}/moto-api/reset-auth", content=b"0")
        said = started(tmp_path, "--object-store", "s3://videos", AWS_ENDPOINT_URL=url)
    assert said == (
        "helios-serve: error: cannot write to s3://videos: access denied: check "
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their rights\n"
    )
