"""Where events go, and how they are signed: Standard Webhooks, as OpenAI's client checks it."""

import base64
import binascii
import hmac
from typing import NamedTuple

import msgspec

from helios_serve.service.outbound.urls import Url
from helios_serve.store.outbox import Event

PREFIX = "whsec_"
MIN_SECRET, MAX_SECRET = 24, 64
"""Bytes, as the standard has it."""


class Endpoint(NamedTuple):
    """A URL and the secrets that it knows: usually one, several while one replaces another."""

    url: Url
    secrets: tuple[bytes, ...]


class EventData(msgspec.Struct, frozen=True):
    id: str


class EventBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a receiver gets: ids only, with which it asks for the rest."""

    id: str
    object: str = "event"
    created_at: int
    type: str
    data: EventData


def parse_secrets(text: str) -> tuple[bytes, ...]:
    """One `whsec_` with base64 a line; raises ValueError, which does not repeat it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError("got no secret")
    return tuple(parse_secret(line) for line in lines)


def parse_secret(line: str) -> bytes:
    try:
        secret = base64.b64decode(line.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not line.startswith(PREFIX) or not MIN_SECRET <= len(secret) <= MAX_SECRET:
        raise ValueError("got something else")
    return secret


def body_of(event: Event) -> bytes:
    """The same in every attempt."""
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
    """The event's id stays the same, so that who gets it twice can tell; `now` is Unix seconds."""
    content = f"{event.id}.{now}.".encode() + body
    digests = (hmac.digest(secret, content, "sha256") for secret in secrets)
    signatures = (f"v1,{base64.b64encode(digest).decode()}" for digest in digests)
    return [
        ("content-type", "application/json"),
        ("webhook-id", event.id),
        ("webhook-timestamp", str(now)),
        ("webhook-signature", " ".join(signatures)),
    ]
