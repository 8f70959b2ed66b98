"""Where in a video's events a reader is: what `Last-Event-ID` says."""

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
    """Everything up to `chunk` was told, and `behind` it a prompt switch, or the end.

    As text it is the chunk's number, and a mark for what was told behind it: `7`, `7:5f0c1a2b`,
    `7:end`.
    """

    def __init__(self, chunk: int, behind: str | None = None) -> None:
        self.chunk = chunk
        self.behind = behind

    def __str__(self) -> str:
        return f"{self.chunk}" if self.behind is None else f"{self.chunk}:{self.behind}"

    @property
    def is_end(self) -> bool:
        return self.behind == END

    def tell_chunk(self, chunk: int) -> None:
        self.chunk, self.behind = chunk, None

    def tell_switch(self, switch: PromptSwitch) -> bool:
        """Whether this switch, behind the chunk, was not told before."""
        mark = f"{zlib.crc32(msgspec.msgpack.encode(switch)):08x}"
        is_new = mark != self.behind
        self.behind = mark
        return is_new

    def tell_end(self) -> None:
        self.behind = END


def position_of(request: Request, job: StoredJob) -> EventPosition:
    """Where the sender is: by `Last-Event-ID`, else by `from_chunk`, else at the beginning.

    Raises InvalidRequestError for a place that the video does not have.
    """
    start = job.first_chunk
    if (last := request.headers.get("last-event-id")) is not None:
        match = ID.fullmatch(last)
        if match is None or not start - 1 <= int(match[1]) < job.num_chunks:
            raise InvalidRequestError(
                f"got Last-Event-ID {last!r}, expected one of an event of this video",
                param="last-event-id",
            )
        return EventPosition(int(match[1]), match[2])
    return EventPosition(first_chunk_query(request, job) - 1)
