"""Idempotency keys: a repeated request does not create a second video."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import msgspec

from helios_serve.service.errors import ApiError
from helios_serve.service.ids import Ids, join
from helios_serve.service.media.uploads import Upload
from helios_serve.service.protocol import Json
from helios_serve.store.jobs import StoredJob
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest

MAX_KEY = 255
"""Maximum length of a key, in characters."""
KEPT_SECONDS = 24 * 3600.0
"""Lifetime of a key. A later request with the same key creates a new video."""
MAX_USES = 10_000
"""Maximum number of stored videos of one key. It takes 27 years to reach, or a damaged clock."""
PIECE = 1 << 20
"""Bytes hashed at a time."""


class KeyedRequest(NamedTuple):
    """A request with an idempotency key: its video's id, and `job` if the video exists."""

    video_id: str
    fingerprint: str
    job: StoredJob | None

    def claim(self, asked: VideoRequest) -> VideoRequest:
        """Return `asked` with this request's id and fingerprint."""
        return msgspec.structs.replace(
            asked, request_id=self.video_id, fingerprint=self.fingerprint
        )


class IdempotencyKeys:
    """Derives a video's id from the tenant and the key.

    Requests with the same key take turns, so that the second one finds what became of the first:
    its video, or nothing if it was refused.
    """

    def __init__(self, store: VideoStore, ids: Ids) -> None:
        self.store = store
        self.ids = ids
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, key: str | None, tenant: str) -> AsyncIterator[None]:
        """Wait until no other request with this key is being answered. None: do not wait."""
        if key is None:
            yield
            return
        lock = self._turns.setdefault((tenant, key), asyncio.Lock())
        async with lock:
            yield

    async def find(
        self, key: str | None, tenant: str, path: str, fields: Json
    ) -> KeyedRequest | None:
        """Return the request that `key` identifies, or None without a key.

        Raises ApiError 400 if the key is too long, was used with a different request, or has too
        many videos.
        """
        if key is None:
            return None
        if not 1 <= len(key) <= MAX_KEY:
            raise ApiError(
                400,
                f"got an Idempotency-Key of {len(key)} characters, expected 1 to {MAX_KEY}",
                code="invalid_idempotency_key",
                param="Idempotency-Key",
            )
        fingerprint = await asyncio.to_thread(fingerprint_of, path, fields)
        keyed = await asyncio.to_thread(self._look_up, tenant, key, fingerprint)
        if keyed.job is not None and keyed.job.request.fingerprint != fingerprint:
            raise ApiError(
                400,
                f"got Idempotency-Key {key!r} with a different request than before, expected the "
                "same request or a new key",
                code="idempotency_mismatch",
                param="Idempotency-Key",
            )
        return keyed

    def _look_up(self, tenant: str, key: str, fingerprint: str) -> KeyedRequest:
        """Return the video of a key. An expired key maps to a new id.

        Raises ApiError 400 if the store has `MAX_USES` videos of the key, all expired.
        """
        for use in range(MAX_USES):
            digest = hashlib.sha256(f"{tenant}\0{key}\0{use}".encode()).hexdigest()[:32]
            video_id = self.ids.named("video", digest)
            # The second id is from before the server became a cell.
            job = self.store.job(video_id) or self.store.job(join("video", None, digest))
            if job is None or job.created_at > time.time() - KEPT_SECONDS:
                return KeyedRequest(video_id if job is None else job.id, fingerprint, job)
        raise ApiError(
            400,
            f"got Idempotency-Key {key!r}, which has {MAX_USES} stored videos, expected fewer: "
            "send a new key, or delete the key's old videos",
            code="invalid_idempotency_key",
            param="Idempotency-Key",
        )


def fingerprint_of(path: str, fields: Json) -> str:
    """Return the SHA-256 of a request's path and fields, the same for JSON and forms."""
    digest = hashlib.sha256(path.encode())
    digest.update(msgspec.json.encode(hash_uploads(fields), order="sorted"))
    return digest.hexdigest()


def hash_uploads(value: Any) -> Any:
    """Return `value` with each uploaded file replaced by the hash of its content."""
    if isinstance(value, Upload):
        return hash_file(value)
    if isinstance(value, dict):
        return {name: hash_uploads(item) for name, item in value.items()}
    if isinstance(value, list):
        return [hash_uploads(item) for item in value]
    return value


def hash_file(upload: Upload) -> str:
    """Return the SHA-256 of an upload's content."""
    digest = hashlib.sha256()
    upload.file.seek(0)
    while piece := upload.file.read(PIECE):
        digest.update(piece)
    upload.file.seek(0)
    return digest.hexdigest()
