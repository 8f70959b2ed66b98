"""Webhook endpoints and signatures (Standard Webhooks, as OpenAI's client verifies them)."""

import base64
import binascii
import hmac
from typing import NamedTuple

import msgspec

from helios_serve.service.outbound.urls import Url
from helios_serve.store.outbox import Event

PREFIX = "whsec_"
MIN_SECRET, MAX_SECRET = 24, 64
"""Bytes of a secret, as the specification requires."""


class Endpoint(NamedTuple):
    """A URL, and the secrets that sign its events: usually one, several during a rotation."""

    url: Url
    secrets: tuple[bytes, ...]


class EventData(msgspec.Struct, frozen=True):
    """The subject of an event: a video's id."""

    id: str


class EventBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an event. It contains ids only; the receiver requests the details."""

    id: str
    object: str = "event"
    created_at: int
    type: str
    data: EventData


def parse_secrets(text: str) -> tuple[bytes, ...]:
    """Parse secrets, one `whsec_` followed by base64 on each line.

    Raises ValueError, whose message does not contain the secret.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError("no secret found")
    return tuple(parse_secret(line) for line in lines)


def parse_secret(line: str) -> bytes:
    """Parse one secret. Raises ValueError, whose message does not contain it."""
    try:
        secret = base64.b64decode(line.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not line.startswith(PREFIX) or not MIN_SECRET <= len(secret) <= MAX_SECRET:
        raise ValueError("invalid secret")
    return secret


def encode_body(event: Event) -> bytes:
    """Return the JSON body of an event, the same for every attempt."""
    return msgspec.json.encode(
        EventBody(
            id=event.id,
            created_at=int(event.created_at),
            type=event.type,
            data=EventData(event.video_id),
        )
    )


def signed_headers(
    event: Event, body: bytes, secrets: tuple[bytes, ...], now: int
) -> list[tuple[str, str]]:
    """Return the headers of an event, signed with each secret.

    `now` is in Unix seconds. `webhook-id` is the same for every attempt, so that receivers can
    detect duplicates.
    """
    content = f"{event.id}.{now}.".encode() + body
    digests = (hmac.digest(secret, content, "sha256") for secret in secrets)
    signatures = (f"v1,{base64.b64encode(digest).decode()}" for digest in digests)
    return [
        ("content-type", "application/json"),
        ("webhook-id", event.id),
        ("webhook-timestamp", str(now)),
        ("webhook-signature", " ".join(signatures)),
    ]
