"""From what a client sends to the video that it asks for."""

import msgspec
from starlette.datastructures import UploadFile
from starlette.requests import Request

from helios_serve.engine.async_engine import AsyncEngine
from helios_serve.entrypoints.openai.bodies import convert, read_body, take_uploads
from helios_serve.entrypoints.openai.identity import tenant_of
from helios_serve.entrypoints.openai.protocol import CreateVideo, Json
from helios_serve.entrypoints.openai.uploads import read_reference
from helios_serve.entrypoints.openai.video_requests import asked_size, creation
from helios_serve.errors import InvalidRequestError
from helios_serve.sampling_params import VideoRequest


class Creations:
    """Makes requests for the engine, and refuses what it could not make."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    async def read(self, request: Request) -> VideoRequest:
        """A new video from a JSON or multipart body; raises ApiError or InvalidRequestError."""
        fields = await read_body(request)
        uploads = take_uploads(fields)
        unknown = uploads.keys() - {"input_reference"}
        if unknown:
            raise InvalidRequestError(
                f"got a file {min(unknown)!r}, expected input_reference", param=min(unknown)
            )
        return await self.make(fields, tenant_of(request), uploads.get("input_reference"))

    async def make(
        self, fields: Json, tenant: str, upload: UploadFile | None = None
    ) -> VideoRequest:
        """A new video from the fields of a body; all that is cheap is checked before the
        reference is decoded."""
        body = convert(fields, CreateVideo)
        model = body.model or next(iter(self.engine.cores))
        size = asked_size(body, model)
        asked = creation(body, model, size, tenant)
        if body.service_tier == "auto" and model in self.engine.cores:
            tier = self.engine.tenant(tenant, model).tier_like("default")
            asked = msgspec.structs.replace(asked, tier=tier)
        self.engine.check(asked)
        if upload is None:
            return asked
        image, video = await read_reference(upload, width=size.width, height=size.height)
        return msgspec.structs.replace(asked, image=image, video=video)
