"""Messages of `/v1/realtime/video`: vLLM-Omni's protocol, with a few additions.

The fields of `session.start` are those of POST /v1/videos; see `session_request`.
"""

from typing import Any, Literal, get_args

import msgspec

from helios_serve.options.fields import did_you_mean, field_at_fault, value_text
from helios_serve.service.errors import ApiError
from helios_serve.service.json_text import decode_json
from helios_serve.service.protocol import Json

MAX_START_BYTES = 4 << 20
"""Maximum size of `session.start`, which may contain an image as a data: URL."""
MAX_MESSAGE_BYTES = 128 << 10
"""Maximum size of any other message."""
MAX_EVENT_ID = 200
"""Maximum length of an event id, in characters."""
MAX_TRANSITION = 100
"""Maximum number of chunks of a transition."""
START = "session.start"


class PromptChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The new prompt. A negative prompt can only be set in `session.start`."""

    prompt: str
    negative_prompt: None = None


class Interaction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt change. Sending it again with the same `event_id` has no further effect."""

    event: PromptChange
    event_id: str | None = None
    transition_chunks: int | None = None


class InteractMessage(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag="session.interaction",
):
    """`session.interaction`: change the session's prompt."""

    interaction: Interaction


class StopSession(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="session.stop"
):
    """`session.stop`: end the session after the chunk under way."""


class PingMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="session.ping"
):
    """`session.ping`: check the connection."""


class ResumeSession(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag="session.resume",
):
    """`session.resume`: resume a session, or read any video, from chunk `from_chunk`.

    With `header`, the first binary message starts with the MP4 header, for a player that does not
    have it yet.
    """

    session_id: str
    from_chunk: int = 0
    header: bool = True


class QueueRequest(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="queue.status"
):
    """`queue.status`: ask for the session's progress and the number of sessions."""


ClientMessage = InteractMessage | StopSession | PingMessage | ResumeSession | QueueRequest
TYPES = (
    START,
    *sorted(str(part.__struct_config__.tag) for part in get_args(ClientMessage)),
)
"""Values of `type` in messages of clients."""


class SessionStarted(msgspec.Struct, tag_field="type", tag="video.start"):
    """`video.start`: the session was accepted.

    `request_id` and `session_id` are both the video's id. `from_chunk` is the first chunk that will
    be sent.
    """

    request_id: str
    session_id: str
    format: str
    from_chunk: int
    config: dict[str, Any]


class ChunkMetadata(msgspec.Struct, tag_field="type", tag="video.chunk_metadata"):
    """`video.chunk_metadata`: describes the binary message that follows.

    `generation_chunk_index` counts the chunks of the video. `transport_chunk_index` counts the
    binary messages since the session was started or resumed on this connection. The lists hold the
    event ids of prompts whose transition starts with this chunk, is active in it, and is complete
    with it. `kind` exists for vLLM-Omni's clients; it is always "media", because the segments need
    no trailer.
    """

    request_id: str
    num_frames: int
    byte_length: int
    generation_chunk_index: int
    transport_chunk_index: int
    started_event_ids: list[str]
    active_event_ids: list[str]
    completed_event_ids: list[str]
    kind: Literal["media", "trailer"] = "media"


class InteractionQueued(msgspec.Struct, tag_field="type", tag="session.interaction.queued"):
    """`session.interaction.queued`: the interaction was accepted.

    Chunk metadata reports when it takes effect.
    """

    request_id: str
    event_id: str


class SessionDone(msgspec.Struct, tag_field="type", tag="session.done"):
    """`session.done`: the session ended. `stopped` is true if it ended before its full length."""

    request_id: str
    chunks: int
    stopped: bool


class PongMessage(msgspec.Struct, tag_field="type", tag="session.pong"):
    """`session.pong`: the answer to `session.ping`."""


class QueueStatus(msgspec.Struct, tag_field="type", tag="queue.status"):
    """`queue.status`: progress of the connection's session, if any, and the server's session
    counts.
    """

    request_id: str | None
    phase: str | None
    progress: int | None
    queue_position: int | None
    eta_seconds: float | None
    sessions_running: int
    sessions_waiting: int


class ErrorMessage(msgspec.Struct, tag_field="type", tag="error", omit_defaults=True):
    """`error`: a message was rejected, or the session failed. The connection stays open.

    `param` names the invalid field; `retry_after` is in seconds.
    """

    message: str
    code: str
    request_id: str | None = None
    event_id: str | None = None
    param: str | None = None
    retry_after: float | None = None


ServerMessage = (
    SessionStarted
    | ChunkMetadata
    | InteractionQueued
    | SessionDone
    | PongMessage
    | QueueStatus
    | ErrorMessage
)


def parse_message(text: str) -> ClientMessage | Json:
    """Parse a client's message. `session.start` is returned as its fields.

    Raises ApiError for an invalid or too large message.
    """
    size = len(text)
    if size > MAX_START_BYTES:
        raise too_large(size, MAX_START_BYTES)
    try:
        fields = decode_json(text.encode())
    except UnicodeEncodeError as error:
        raise ApiError(400, f"message is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(fields, dict):
        kind = type(fields).__name__
        raise ApiError(400, f"got a JSON {kind}, expected an object", code="invalid_json")
    if fields.get("type") == START:
        return {name: value for name, value in fields.items() if name != "type"}
    if size > MAX_MESSAGE_BYTES:
        raise too_large(size, MAX_MESSAGE_BYTES)
    if (found := fields.get("type")) not in TYPES:
        hint = did_you_mean(found, TYPES) if isinstance(found, str) else ""
        message = f"got type {value_text(found)}, expected one of: {', '.join(TYPES)}{hint}"
        raise ApiError(400, message, code="invalid_message", param="type")
    try:
        return check_message(msgspec.convert(fields, ClientMessage))
    except msgspec.ValidationError as error:
        raise ApiError(
            400, str(error), code="invalid_message", param=field_at_fault(error)
        ) from error


def check_message(message: ClientMessage) -> ClientMessage:
    """Check what the message types cannot express. Raises ApiError."""
    if isinstance(message, InteractMessage):
        asked = message.interaction
        if asked.event_id is not None and not 1 <= len(asked.event_id) <= MAX_EVENT_ID:
            found = f"an event_id of {len(asked.event_id)} characters"
            raise invalid_message(f"{found}, expected 1 to {MAX_EVENT_ID}", "event_id")
        if not asked.event.prompt.strip():
            raise invalid_message("an empty prompt, expected the new prompt", "event.prompt")
        chunks = asked.transition_chunks
        if chunks is not None and not 0 <= chunks <= MAX_TRANSITION:
            raise invalid_message(
                f"transition_chunks {chunks}, expected 0 to {MAX_TRANSITION}", "transition_chunks"
            )
    return message


def invalid_message(found: str, field: str) -> ApiError:
    return ApiError(400, f"got {found}", code="invalid_message", param=f"interaction.{field}")


def too_large(size: int, limit: int) -> ApiError:
    return ApiError(
        413,
        f"got a message of {size} characters, expected at most {limit}",
        code="message_too_large",
    )
