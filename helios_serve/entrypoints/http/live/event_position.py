"""Position of a client in a video's events, as `Last-Event-ID` encodes it."""

import re
import zlib

import msgspec
from starlette.requests import Request

from helios_serve.entrypoints.http.queries import first_chunk_query
from helios_serve.errors import InvalidRequestError
from helios_serve.options.sampling import PromptSwitch
from helios_serve.store.jobs import StoredJob

ID = re.compile(r"(-1|[0-9]{1,9})(?::([0-9a-f]{8}|end))?")
END = "end"


class EventPosition:
    """The last event that a client has received: the events of chunk `chunk`, and `marker` after
    it.

    `marker` identifies a prompt switch that was reported after the chunk, or is "end". As text, a
    position is the chunk's number and the marker: `7`, `7:5f0c1a2b`, `7:end`. Before the first
    chunk, `chunk` is -1.
    """

    def __init__(self, chunk: int, marker: str | None = None) -> None:
        self.chunk = chunk
        self.marker = marker

    def __str__(self) -> str:
        return f"{self.chunk}" if self.marker is None else f"{self.chunk}:{self.marker}"

    @property
    def is_end(self) -> bool:
        return self.marker == END

    def pass_chunk(self, chunk: int) -> None:
        """Move to a chunk that has been sent."""
        self.chunk, self.marker = chunk, None

    def pass_switch(self, switch: PromptSwitch) -> bool:
        """Move past a switch after the chunk. Return whether it was not reported before."""
        marker = f"{zlib.crc32(msgspec.msgpack.encode(switch)):08x}"
        is_new = marker != self.marker
        self.marker = marker
        return is_new

    def pass_end(self) -> None:
        """Move to the end."""
        self.marker = END


def position_of(request: Request, job: StoredJob) -> EventPosition:
    """Return the position given by `Last-Event-ID`, else by `from_chunk`, else the beginning.

    Raises InvalidRequestError for a position that the video does not have.
    """
    start = job.first_chunk
    if (last := request.headers.get("last-event-id")) is not None:
        match = ID.fullmatch(last)
        if match is None or not start - 1 <= int(match[1]) < job.num_chunks:
            raise InvalidRequestError(
                f"got Last-Event-ID {last!r}, expected the id of an event of this video",
                param="last-event-id",
            )
        return EventPosition(int(match[1]), match[2])
    return EventPosition(first_chunk_query(request, job) - 1)
