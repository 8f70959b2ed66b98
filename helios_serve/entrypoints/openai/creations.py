"""From what a client sends to the video that it asks for."""

import msgspec
from starlette.requests import Request

from helios_serve.engine.async_engine import AsyncEngine
from helios_serve.entrypoints.openai.bodies import convert, read_body, take_uploads
from helios_serve.entrypoints.openai.identity import tenant_of
from helios_serve.entrypoints.openai.protocol import CreateVideo, Json
from helios_serve.entrypoints.openai.references import Given, References
from helios_serve.entrypoints.openai.video_requests import asked_size, creation
from helios_serve.errors import InvalidRequestError
from helios_serve.sampling_params import VideoRequest


class Creations:
    """Makes requests for the engine, and refuses what it could not make."""

    def __init__(self, engine: AsyncEngine, references: References) -> None:
        self.engine = engine
        self.references = references

    async def read(self, request: Request) -> VideoRequest:
        """A new video from a JSON or multipart body; raises ApiError or InvalidRequestError."""
        fields = await read_body(request)
        uploads = take_uploads(fields)
        unknown = uploads.keys() - {"input_reference"}
        if unknown:
            raise InvalidRequestError(
                f"got a file {min(unknown)!r}, expected input_reference", param=min(unknown)
            )
        fields |= uploads
        return await self.make(fields, tenant_of(request))

    async def make(self, fields: Json, tenant: str, given: Given | None = None) -> VideoRequest:
        """A new video from the fields of a body; all that is cheap is checked before the
        reference is decoded: `given`, or what the fields say."""
        fields = dict(fields)
        if given is None and (source := fields.pop("input_reference", None)) is not None:
            given = Given(source)
        body = convert(fields, CreateVideo)
        model = body.model or next(iter(self.engine.cores))
        size = asked_size(body, model)
        asked = creation(body, model, size, tenant)
        self.engine.check(asked)
        if given is None:
            return asked
        kind, frames = await self.references.read(
            given, tenant, width=size.width, height=size.height
        )
        if kind == "image":
            return msgspec.structs.replace(asked, image=frames)
        return msgspec.structs.replace(asked, video=frames)
