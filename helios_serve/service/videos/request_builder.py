"""Converts request bodies to engine requests."""

import msgspec

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.errors import InvalidRequestError
from helios_serve.options.server import KEPT_CHUNKS
from helios_serve.service.ids import Ids
from helios_serve.service.media.references import ReferenceInput, References
from helios_serve.service.protocol import CreateVideo, Json
from helios_serve.service.validation import convert
from helios_serve.service.videos.lora_modules import LoraModules
from helios_serve.service.videos.requests import (
    asked_size,
    creation,
    sampled_size,
    with_plain_options,
)
from helios_serve.video_request import VideoRequest


class RequestBuilder:
    """Builds validated VideoRequests.

    Args:
        engine: The engine that checks the requests.
        references: Decodes reference images and videos.
        loras: The LoRA adapters that requests may use.
        ids: Makes the ids of new videos.
        kept_chunks: Number of last chunks that readers of a video without an end find.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        references: References,
        loras: LoraModules | None = None,
        *,
        ids: Ids | None = None,
        kept_chunks: int = KEPT_CHUNKS,
    ) -> None:
        self.engine = engine
        self.references = references
        self.loras = loras or LoraModules()
        self.ids = ids or Ids()
        self.kept_chunks = kept_chunks

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
        body = self._with_adapter_as_lora(convert(fields, CreateVideo))
        model = self.engine.models.name_of(body.model or None)
        config = self.engine.models.model_config(model)
        body = with_plain_options(body, config)
        shown = asked_size(body, self.engine.models.worker_config(model).model)
        size = sampled_size(shown, body, config)
        video_id = self.ids.new("video")
        asked = creation(body, video_id, model=model, size=size, shown=shown, tenant=tenant)
        if body.endless:
            self._check_unlimited(tenant, model)
            asked = msgspec.structs.replace(asked, kept_chunks=self.kept_chunks)
        if body.service_tier == "auto" and model in self.engine.models.cores:
            tier = self.engine.models.tenant(tenant, model).tier_like("default")
            asked = msgspec.structs.replace(asked, tier=tier)
        if isinstance(body.lora, str):
            rights = self.engine.models.tenant(tenant, model)
            asked = msgspec.structs.replace(asked, lora=self.loras.path(body.lora, rights))
        self.engine.models.check(asked)
        if given is None:
            return asked
        kind, frames = await self.references.read(
            given, tenant, width=size.width, height=size.height
        )
        if kind == "image":
            return msgspec.structs.replace(asked, image=frames)
        return msgspec.structs.replace(asked, video=frames)

    def check_again(self, request: VideoRequest) -> None:
        """Check the adapter of a request that was made from a stored one. Raises ApiError 404."""
        if request.lora is not None:
            rights = self.engine.models.tenant(request.tenant, request.model)
            self.loras.check(request.lora, rights)

    def _check_unlimited(self, tenant: str, model: str) -> None:
        """Refuse a video without an end to a tenant whose frames a day are limited."""
        limit = self.engine.models.tenant(tenant, model).frames_per_day
        if limit is not None:
            raise InvalidRequestError(
                f"got a video without an end, expected num_frames or seconds: tenant {tenant} may "
                f"request {limit} frames a day",
                param="num_frames",
            )

    def _with_adapter_as_lora(self, body: CreateVideo) -> CreateVideo:
        """Replace a `model` that names an adapter by the default model with that adapter, as in
        vLLM.

        Raises InvalidRequestError if the request names another adapter too.
        """
        if body.model is None or body.model in self.engine.models.names:
            return body
        if body.model not in self.loras.paths:
            return body
        if body.lora not in (None, body.model):
            raise InvalidRequestError(
                f"got model {body.model!r}, which is a LoRA adapter, and another lora: send only "
                "one of them",
                param="lora",
            )
        return msgspec.structs.replace(body, model=None, lora=body.model)
