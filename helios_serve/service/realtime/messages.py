"""What client and server say on `/v1/realtime/video`: vLLM-Omni's messages, and a few of our own.

The fields of `session.start` are those of POST /v1/videos; `realtime_start` reads them.
"""

from typing import Any, Literal

import msgspec

from helios_serve.options.fields import field_at_fault
from helios_serve.service.errors import ApiError
from helios_serve.service.protocol import Json

MAX_START_BYTES = 4 << 20
"""Of `session.start`, which may hold an image as a data: URL."""
MAX_MESSAGE_BYTES = 128 << 10
"""Of any other message."""
MAX_EVENT_ID = 200
MAX_TRANSITION = 100
START = "session.start"


class PromptChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to change. A negative prompt can be given at the start alone."""

    prompt: str
    negative_prompt: None = None


class Interaction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`event_id` names it; it may be sent again under the same one without another effect."""

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
    interaction: Interaction


class StopSession(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="session.stop"
):
    """End behind the chunk that is under way."""


class PingMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="session.ping"
):
    pass


class ResumeSession(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag="session.resume",
):
    """Go on with a session, or read any video, from `from_chunk` on.

    With `header` the first message begins as a file does, for a player that has nothing yet.
    """

    session_id: str
    from_chunk: int = 0
    header: bool = True


class QueueRequest(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="queue.status"
):
    """How far the session is, and how many there are."""


ClientMessage = InteractMessage | StopSession | PingMessage | ResumeSession | QueueRequest


class SessionStarted(msgspec.Struct, tag_field="type", tag="video.start"):
    """The session was accepted; `request_id` and `session_id` are the id of its video.

    `from_chunk` is the first one that comes.
    """

    request_id: str
    session_id: str
    format: str
    from_chunk: int
    config: dict[str, Any]


class ChunkMetadata(msgspec.Struct, tag_field="type", tag="video.chunk_metadata"):
    """Of the binary message that comes next.

    `generation_chunk_index` counts the chunks of the video, `transport_chunk_index` the binary
    messages since the session was started or resumed on this connection. Event ids: of prompts that
    begin to take effect with this chunk, that are turned to in it, and that have full effect from
    it on. `kind` is what vLLM-Omni's clients know; our segments need no trailer.
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
    """The interaction will take effect; the metadata of chunks says when."""

    request_id: str
    event_id: str


class SessionDone(msgspec.Struct, tag_field="type", tag="session.done"):
    """Nothing more comes of the session; `stopped` says that it ended before its length."""

    request_id: str
    chunks: int
    stopped: bool


class PongMessage(msgspec.Struct, tag_field="type", tag="session.pong"):
    pass


class QueueStatus(msgspec.Struct, tag_field="type", tag="queue.status"):
    """Where the connection's session is, if it has one, and the server's sessions in all."""

    request_id: str | None
    phase: str | None
    progress: int | None
    queue_position: int | None
    eta_seconds: float | None
    sessions_running: int
    sessions_waiting: int


class ErrorMessage(msgspec.Struct, tag_field="type", tag="error", omit_defaults=True):
    """Something was not done; the connection goes on. `param` names a field at fault."""

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
    """A message; `session.start` as its fields. Raises ApiError for what is none."""
    size = len(text)
    if size > MAX_START_BYTES:
        raise too_large(size, MAX_START_BYTES)
    try:
        fields = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise ApiError(
            400, f"got a message that is no JSON: {error}", code="invalid_json"
        ) from error
    if not isinstance(fields, dict):
        kind = type(fields).__name__
        raise ApiError(400, f"got a JSON {kind}, expected an object", code="invalid_json")
    if fields.get("type") == START:
        return {name: value for name, value in fields.items() if name != "type"}
    if size > MAX_MESSAGE_BYTES:
        raise too_large(size, MAX_MESSAGE_BYTES)
    try:
        return check_message(msgspec.convert(fields, ClientMessage))
    except msgspec.ValidationError as error:
        raise ApiError(
            400, str(error), code="invalid_message", param=field_at_fault(error)
        ) from error


def check_message(message: ClientMessage) -> ClientMessage:
    """What types cannot say; raises ApiError."""
    if isinstance(message, InteractMessage):
        asked = message.interaction
        if asked.event_id is not None and not 1 <= len(asked.event_id) <= MAX_EVENT_ID:
            found = f"an event_id of {len(asked.event_id)} characters"
            raise invalid_message(f"{found}, expected 1 to {MAX_EVENT_ID}", "event_id")
        if not asked.event.prompt.strip():
            raise invalid_message(
                "an empty prompt, expected what the video is to turn to", "event.prompt"
            )
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
        f"got a message of {size} characters, expected {limit} at most",
        code="message_too_large",
    )
