"""From what a client sends to the video that it asks for."""

import msgspec
from starlette.datastructures import UploadFile

from helios_serve.engine.async_engine import AsyncEngine
from helios_serve.entrypoints.openai.bodies import convert
from helios_serve.entrypoints.openai.protocol import CreateVideo, Json
from helios_serve.entrypoints.openai.uploads import read_reference
from helios_serve.entrypoints.openai.video_requests import asked_size, creation, sampled_size
from helios_serve.sampling_params import VideoRequest


class Creations:
    """Makes requests for the engine, and refuses what it could not make."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    async def make(
        self,
        fields: Json,
        tenant: str,
        upload: UploadFile | None = None,
        *,
        field: str = "input_reference",
    ) -> VideoRequest:
        """A new video from the fields of a body, and the file that came as `field`.

        All that is cheap is checked before that is decoded. Raises ApiError and
        InvalidRequestError.
        """
        body = convert(fields, CreateVideo)
        model = body.model or next(iter(self.engine.cores))
        shown = asked_size(body, model)
        size = sampled_size(shown, body, self.engine.model_config(model))
        asked = creation(body, model, size, shown, tenant)
        if body.service_tier == "auto" and model in self.engine.cores:
            tier = self.engine.tenant(tenant, model).tier_like("default")
            asked = msgspec.structs.replace(asked, tier=tier)
        self.engine.check(asked)
        if upload is None:
            return asked
        image, video = await read_reference(upload, field, width=size.width, height=size.height)
        return msgspec.structs.replace(asked, image=image, video=video)
