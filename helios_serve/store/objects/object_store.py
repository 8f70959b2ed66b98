"""Objects in a bucket of S3 or of a server that speaks its protocol. Needs the extra `objects`."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from hashlib import file_digest, sha256
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import urlsplit

from helios_serve.errors import InvalidRequestError, StorageError
from helios_serve.store.files import DamagedFileError

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Store

DIGEST = "sha256"
"""Name of the metadata in which an object's SHA-256 is kept."""
PART_BYTES = 8 << 20
"""Size of the parts in which large files are uploaded, checked and sent on."""
MAX_SINGLE_PUT = 2 * PART_BYTES
PROBE = ".helios-serve"


class ObjectStoreError(StorageError):
    """The object store does not answer, or refuses. Trying again later may help."""


class ObjectInfo(NamedTuple):
    """Size in bytes, and the entity tag that the object store has given to an object."""

    size: int
    e_tag: str | None


class ObjectStore:
    """The objects below `url`, such as `s3://bucket/prefix`. Names are relative to it.

    Credentials, region and endpoint come from the variables of AWS' tools; `endpoint` overrides
    the last one. A request takes at most two minutes, retries included. Thread-safe. Methods raise
    ObjectStoreError.

    Raises InvalidRequestError for another URL, or without the extra `objects`.
    """

    def __init__(self, url: str, endpoint: str = "") -> None:
        self.url = url.rstrip("/")
        self.endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL", "")
        self._store = open_store(self.url, self.endpoint)

    def check(self) -> None:
        """Write, read and delete a small object, to find out whether all three are allowed."""
        import obstore

        name, data = f"{PROBE}-{token_hex(8)}", b"helios-serve"
        with self._errors("write to"):
            obstore.put(self._store, name, data)
        with self._errors("read from"):
            found = obstore.get(self._store, name).bytes().to_bytes()
        with self._errors("delete from"):
            obstore.delete(self._store, name)
        if found != data:
            raise ObjectStoreError(f"{self.url} returns other content than was written")

    async def put(self, name: str, data: bytes | Path, media_type: str) -> int:
        """Upload an object, replacing it, and return its size.

        The object store checks its SHA-256, and the size is compared afterwards.
        """
        import obstore

        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        digest = await asyncio.to_thread(digest_of, data)
        with self._errors("write to"):
            await obstore.put_async(
                self._store,
                name,
                data,
                attributes={"Content-Type": media_type, DIGEST: digest},
                use_multipart=size > MAX_SINGLE_PUT,
                chunk_size=PART_BYTES,
            )
        found = await self.info(name)
        if found is None or found.size != size:
            got = "nothing" if found is None else f"{found.size}"
            raise ObjectStoreError(f"got {got} of {size} bytes of {self.url}/{name} after a write")
        return size

    async def info(self, name: str) -> ObjectInfo | None:
        """Return the size of an object and its tag; None if it does not exist."""
        import obstore

        try:
            with self._errors("read from"):
                meta = await obstore.head_async(self._store, name)
        except MissingObjectError:
            return None
        return ObjectInfo(meta["size"], meta["e_tag"])

    def get(self, name: str) -> bytes:
        """Return an object's content. Raises DamagedFileError if it is missing or damaged."""
        import obstore

        try:
            with self._errors("read from"):
                found = obstore.get(self._store, name)
                expected = found.attributes.get(DIGEST)
                data = found.bytes().to_bytes()
        except MissingObjectError as error:
            raise DamagedFileError(f"{self.url}/{name} is missing") from error
        if expected is not None and digest_of(data) != expected:
            raise DamagedFileError(f"{self.url}/{name} is damaged: its checksum does not match")
        return data

    async def parts(self, name: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Yield the bytes of an object from `start` to `end - 1`, at most PART_BYTES at once."""
        import obstore

        for begin in range(start, end, PART_BYTES):
            with self._errors("read from"):
                part = await obstore.get_range_async(
                    self._store, name, start=begin, end=min(end, begin + PART_BYTES)
                )
            yield part.to_bytes()

    async def is_whole(self, name: str, data: bytes | None) -> bool:
        """Read an object back, and return whether its content is `data`.

        Without `data`, the content is compared with the checksum that was uploaded with it.
        """
        import obstore

        try:
            with self._errors("read from"):
                found = await obstore.get_async(self._store, name, options={"head": True})
        except MissingObjectError:
            return False
        seen = sha256()
        async for part in self.parts(name, 0, found.meta["size"]):
            seen.update(part)
        expected = found.attributes.get(DIGEST) if data is None else digest_of(data)
        return seen.hexdigest() == expected

    async def sign(self, name: str, method: Literal["GET", "HEAD"], seconds: int) -> str:
        """Return a URL with which anyone can read an object for some seconds."""
        import obstore

        with self._errors("sign a URL for"):
            return await obstore.sign_async(self._store, method, name, timedelta(seconds=seconds))

    async def delete(self, name: str) -> None:
        """Delete an object, if it exists."""
        import obstore

        with self._errors("delete from"):
            await obstore.delete_async(self._store, name)

    async def delete_folder(self, folder: str) -> None:
        """Delete all objects whose names begin with `folder/`."""
        import obstore

        with self._errors("list"):
            found = await obstore.list(self._store, f"{folder}/").collect_async()
        for item in found:
            await self.delete(item["path"])

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Convert errors of the block to an ObjectStoreError: "cannot DOING URL: REASON"."""
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError as error:
            raise MissingObjectError(f"cannot {doing} {self.url}: no such bucket") from error
        except (BaseError, OSError) as error:
            reason = reason_of(error, self.endpoint)
            raise ObjectStoreError(
                f"cannot {doing} {self.url}: {reason}",
                public=f"the object store cannot be used now: {reason}",
            ) from error


class MissingObjectError(ObjectStoreError):
    """There is no such object, or no such bucket."""


def open_store(url: str, endpoint: str) -> "S3Store":
    """Return obstore's client. Raises InvalidRequestError for a URL that is not of S3."""
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise InvalidRequestError(
            f"got --object-store {url}, expected a URL such as s3://bucket/prefix",
            param="object_store",
        )
    if endpoint and urlsplit(endpoint).scheme not in ("http", "https"):
        raise InvalidRequestError(
            f"got --object-store-endpoint {endpoint}, expected a URL such as http://minio:9000",
            param="object_store_endpoint",
        )
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise InvalidRequestError(
            "got --object-store without the package obstore: pip install 'helios-serve[objects]'",
            param="object_store",
        ) from error
    config: S3Config = {"checksum_algorithm": "SHA256"}
    if endpoint:
        config["endpoint"] = endpoint
    return S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        config=config,
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=5),
            "timeout": timedelta(seconds=60),
        },
        retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=60)},
    )


def digest_of(data: bytes | Path) -> str:
    """Return the SHA-256 of bytes, or of a file's content, as hexadecimal digits."""
    if isinstance(data, bytes):
        return sha256(data).hexdigest()
    with data.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def reason_of(error: Exception, endpoint: str) -> str:
    """Return in a few words why the object store refused a request."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return "access denied: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their rights"
    text = " ".join(str(error).split())
    if "error sending request" in text or "Connect" in text or "connect" in text:
        return f"no connection to {endpoint or 'S3'}"
    return text[:300]
