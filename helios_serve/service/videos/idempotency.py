"""Orders that a client repeats because it did not hear the answer: made once."""

import asyncio
import hashlib
import time
from typing import Any, NamedTuple

import msgspec

from helios_serve.service.errors import ApiError
from helios_serve.service.media.uploads import Upload
from helios_serve.service.protocol import Json
from helios_serve.store.jobs import StoredJob
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest

MAX_KEY = 255
KEPT_SECONDS = 24 * 3600.0
"""How long a key stands for the video that was made under it."""
PIECE = 1 << 20


class KeyedRequest(NamedTuple):
    """What a client asks for under a key: the id of its video, and `job` if it was made before."""

    video_id: str
    fingerprint: str
    job: StoredJob | None

    def claim(self, asked: VideoRequest) -> VideoRequest:
        """The request as the one of this order."""
        return msgspec.structs.replace(
            asked, request_id=self.video_id, fingerprint=self.fingerprint
        )


class IdempotencyKeys:
    """Finds the video of an order by an id that follows from tenant and key.

    So the store itself sees to it that there is one: of two that come at once, the second is
    refused its id.
    """

    def __init__(self, store: VideoStore) -> None:
        self.store = store

    async def find(
        self, key: str | None, tenant: str, path: str, fields: Json
    ) -> KeyedRequest | None:
        """The order that the request's header names; None without one.

        Raises ApiError 400 if the key was used for something else.
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
        order = await asyncio.to_thread(self._look_up, tenant, key, fingerprint)
        if order.job is not None and order.job.request.fingerprint != fingerprint:
            raise ApiError(
                400,
                f"got Idempotency-Key {key!r} with another request than before, expected the same "
                "one or another key",
                code="idempotency_mismatch",
                param="Idempotency-Key",
            )
        return order

    def _look_up(self, tenant: str, key: str, fingerprint: str) -> KeyedRequest:
        """A key that has served its time stands for another video."""
        for use in range(1 << 31):
            digest = hashlib.sha256(f"{tenant}\0{key}\0{use}".encode()).hexdigest()
            job = self.store.job(f"video_{digest[:32]}")
            if job is None or job.created_at > time.time() - KEPT_SECONDS:
                return KeyedRequest(f"video_{digest[:32]}", fingerprint, job)
        raise AssertionError("a key is never used so often")


def fingerprint_of(path: str, fields: Json) -> str:
    """Of what is asked for, however it was sent."""
    digest = hashlib.sha256(path.encode())
    digest.update(msgspec.json.encode(plain(fields), order="sorted"))
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """Fields with files as the hashes of what is in them."""
    if isinstance(value, Upload):
        return hash_file(value)
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def hash_file(upload: Upload) -> str:
    digest = hashlib.sha256()
    upload.file.seek(0)
    while piece := upload.file.read(PIECE):
        digest.update(piece)
    upload.file.seek(0)
    return digest.hexdigest()
