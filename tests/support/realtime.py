"""A client of realtime sessions, with the real websockets package."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from websockets.sync.client import ClientConnection, connect

PATIENCE = 60.0
"""Timeout of messages, in seconds."""

Json = dict[str, Any]


class Chunk(NamedTuple):
    """A binary message, and its metadata."""

    metadata: Json
    data: bytes


class RealtimeClient:
    """Sends messages, and reads the answers as vLLM-Omni's client does."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def say(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def start(self, **fields: Any) -> str:
        """Start a session of small frames; returns its id."""
        wanted: Json = {"prompt": "waves", "size": "64x64", "format": "m4s"}
        self.say("session.start", **wanted | fields)
        return self.started()["request_id"]  # type: ignore[no-any-return]

    def started(self) -> Json:
        message = self.hear()
        assert isinstance(message, dict), "got a chunk before video.start"
        assert message["type"] == "video.start", message
        return message

    def interact(self, prompt: str, **fields: Any) -> None:
        self.say("session.interaction", interaction={"event": {"prompt": prompt}, **fields})

    def hear(self) -> Json | Chunk:
        """Return the next message, or the next two as a Chunk if the first announces one."""
        message = json.loads(self.socket.recv(PATIENCE))
        if message["type"] != "video.chunk_metadata":
            assert isinstance(message, dict)
            return message
        data = self.socket.recv(PATIENCE)
        assert isinstance(data, bytes)
        assert len(data) == message["byte_length"]
        return Chunk(message, data)

    def ask(self, kind: str, **fields: Any) -> Json:
        """Send a message, and return the answer. Chunks that arrive before it are dropped."""
        self.say(kind, **fields)
        return self.hear_text()

    def hear_text(self) -> Json:
        while isinstance(message := self.hear(), Chunk):
            pass
        return message

    def hear_chunk(self) -> Chunk:
        message = self.hear()
        assert isinstance(message, Chunk), message
        return message

    def rest(self) -> tuple[list[Chunk], list[Json]]:
        """Return all messages until `session.done`, which is the last one."""
        chunks: list[Chunk] = []
        messages: list[Json] = []
        while not messages or messages[-1]["type"] != "session.done":
            message = self.hear()
            if isinstance(message, Chunk):
                chunks.append(message)
            else:
                messages.append(message)
        return chunks, messages


@contextmanager
def realtime_client(url: str, query: str = "", key: str | None = None) -> Iterator[RealtimeClient]:
    """Connect to the server at `url`, with an API key if there is one."""
    address = f"{url.replace('http', 'ws', 1)}/v1/realtime/video{query}"
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with connect(address, max_size=None, additional_headers=headers) as socket:
        yield RealtimeClient(socket)


def data_of(chunks: list[Chunk]) -> bytes:
    """Return the data of chunks, concatenated as in a client's file."""
    return b"".join(chunk.data for chunk in chunks)
