"""From what a client sends to the video that it asks for."""

import msgspec

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.service.media.references import ReferenceInput, References
from helios_serve.service.protocol import CreateVideo, Json
from helios_serve.service.validation import convert
from helios_serve.service.videos.requests import asked_size, creation, sampled_size
from helios_serve.video_request import VideoRequest


class RequestBuilder:
    """Makes requests for the engine, and refuses what it could not make."""

    def __init__(self, engine: AsyncEngine, references: References) -> None:
        self.engine = engine
        self.references = references

    async def make(
        self, fields: Json, tenant: str, given: ReferenceInput | None = None
    ) -> VideoRequest:
        """A new video from the fields of a body, and the reference `given` or in them.

        All that is cheap is checked before that is decoded. Raises ApiError and
        InvalidRequestError.
        """
        fields = dict(fields)
        if given is None and (source := fields.pop("input_reference", None)) is not None:
            given = ReferenceInput(source)
        body = convert(fields, CreateVideo)
        model = body.model or next(iter(self.engine.models.cores))
        shown = asked_size(body, model)
        size = sampled_size(shown, body, self.engine.models.model_config(model))
        asked = creation(body, model, size, shown, tenant)
        if body.service_tier == "auto" and model in self.engine.models.cores:
            tier = self.engine.models.tenant(tenant, model).tier_like("default")
            asked = msgspec.structs.replace(asked, tier=tier)
        self.engine.models.check(asked)
        if given is None:
            return asked
        kind, frames = await self.references.read(
            given, tenant, width=size.width, height=size.height
        )
        if kind == "image":
            return msgspec.structs.replace(asked, image=frames)
        return msgspec.structs.replace(asked, video=frames)
