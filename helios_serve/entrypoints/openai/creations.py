"""From what a client sends to the video that it asks for."""

import msgspec

from helios_serve.engine.async_engine import AsyncEngine
from helios_serve.entrypoints.openai.bodies import convert
from helios_serve.entrypoints.openai.protocol import CreateVideo, Json
from helios_serve.entrypoints.openai.references import Given, References
from helios_serve.entrypoints.openai.video_requests import asked_size, creation, sampled_size
from helios_serve.sampling_params import VideoRequest


class Creations:
    """Makes requests for the engine, and refuses what it could not make."""

    def __init__(self, engine: AsyncEngine, references: References) -> None:
        self.engine = engine
        self.references = references

    async def make(self, fields: Json, tenant: str, given: Given | None = None) -> VideoRequest:
        """A new video from the fields of a body, and the reference `given` or in them.

        All that is cheap is checked before that is decoded. Raises ApiError and
        InvalidRequestError.
        """
        fields = dict(fields)
        if given is None and (source := fields.pop("input_reference", None)) is not None:
            given = Given(source)
        body = convert(fields, CreateVideo)
        model = body.model or next(iter(self.engine.cores))
        shown = asked_size(body, model)
        size = sampled_size(shown, body, self.engine.model_config(model))
        asked = creation(body, model, size, shown, tenant)
        if body.service_tier == "auto" and model in self.engine.cores:
            tier = self.engine.tenant(tenant, model).tier_like("default")
            asked = msgspec.structs.replace(asked, tier=tier)
        self.engine.check(asked)
        if given is None:
            return asked
        kind, frames = await self.references.read(
            given, tenant, width=size.width, height=size.height
        )
        if kind == "image":
            return msgspec.structs.replace(asked, image=frames)
        return msgspec.structs.replace(asked, video=frames)
