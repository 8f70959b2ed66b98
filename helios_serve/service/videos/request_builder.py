"""Converts request bodies to engine requests."""

from collections.abc import Mapping

import msgspec

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.service.errors import ApiError
from helios_serve.service.media.references import ReferenceInput, References
from helios_serve.service.protocol import CreateVideo, Json
from helios_serve.service.validation import convert
from helios_serve.service.videos.requests import asked_size, creation, sampled_size
from helios_serve.video_request import VideoRequest


class RequestBuilder:
    """Builds validated VideoRequests.

    Args:
        engine: The engine that checks the requests.
        references: Decodes reference images and videos.
        loras: Paths of the LoRA adapters that requests may use, by name.
    """

    def __init__(
        self, engine: AsyncEngine, references: References, loras: Mapping[str, str] | None = None
    ) -> None:
        self.engine = engine
        self.references = references
        self.loras = loras or {}

    async def make(
        self, fields: Json, tenant: str, given: ReferenceInput | None = None
    ) -> VideoRequest:
        """Build the request for a new video from the fields of a body.

        The reference is `given`, or the field `input_reference`. It is decoded last, after all
        cheaper checks. Raises ApiError or InvalidRequestError.
        """
        fields = dict(fields)
        if given is None and (source := fields.pop("input_reference", None)) is not None:
            given = ReferenceInput(source)
        body = convert(fields, CreateVideo)
        model = self.engine.models.name_of(body.model or None)
        config = self.engine.models.model_config(model)
        shown = asked_size(body, self.engine.models.worker_config(model).model)
        size = sampled_size(shown, body, config)
        asked = creation(body, model, size, shown, tenant)
        if body.service_tier == "auto" and model in self.engine.models.cores:
            tier = self.engine.models.tenant(tenant, model).tier_like("default")
            asked = msgspec.structs.replace(asked, tier=tier)
        if body.lora is not None:
            asked = msgspec.structs.replace(asked, lora=self._lora_path(body.lora))
        self.engine.models.check(asked)
        if given is None:
            return asked
        kind, frames = await self.references.read(
            given, tenant, width=size.width, height=size.height
        )
        if kind == "image":
            return msgspec.structs.replace(asked, image=frames)
        return msgspec.structs.replace(asked, video=frames)

    def _lora_path(self, name: str) -> str:
        """Return the path of an adapter. Raises ApiError 404 if the server does not offer it."""
        if name not in self.loras:
            offered = (
                f"one of: {', '.join(self.loras)}" if self.loras else "none: no adapter is offered"
            )
            raise ApiError(
                404, f"got lora {name!r}, expected {offered}", code="lora_not_found", param="lora"
            )
        return self.loras[name]
