"""SGLang's sampling parameters for Helios, and their conversion to engine requests."""

from dataclasses import dataclass, field, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal
from uuid import uuid4

from sglang.multimodal_gen.configs.sample.sampling_params import SamplingParams
from sglang.multimodal_gen.runtime.pipelines_core.request_utils import normalize_output_seeds
from sglang.multimodal_gen.runtime.utils.vision import load_image

from helios_serve.engine.launch import read_model_config
from helios_serve.errors import InvalidRequestError
from helios_serve.integrations.requests import ForeignRequest
from helios_serve.model_config import HeliosConfig
from helios_serve.options.sampling import PUBLISHED_SIZE, SamplingOptions

ALWAYS = ("width", "height", "num_frames", "fps")
"""Parameters that SGLang's API always fills in."""
CHOSEN = ("num_inference_steps", "guidance_scale", "negative_prompt", "max_sequence_length")
"""Parameters of SGLang that keep the checkpoint's default unless a request sets them."""
OURS = tuple(name for name in SamplingOptions.__struct_fields__ if name not in (*ALWAYS, *CHOSEN))
"""Sampling options that SGLang does not have, by our names. None keeps the checkpoint's default."""
LORA = ("lora", "lora_scale")
FOREIGN = (
    "true_cfg_scale",
    "guidance_scale_2",
    "flow_shift",
    "enable_teacache",
    "enable_cache_dit",
    "cache_dit_params",
    "cfg_gate_step",
    "attention_backend_override",
    "skip_softmax_params",
    "diffusers_kwargs",
    "use_diffusion_decoder",
)
"""Fields of SGLang's API that control its own pipelines. Helios has no such options."""


@dataclass
class HeliosRequest(SamplingParams):  # type: ignore[misc]
    """SGLang's parameters of a Helios video, without the options in `OURS`."""

    _default_width: ClassVar[int | None] = PUBLISHED_SIZE.width
    _default_height: ClassVar[int | None] = PUBLISHED_SIZE.height

    num_frames: int = 99
    lora: str | None = None
    lora_scale: float = 1.0

    @classmethod
    def video_request_extra_fields(cls) -> frozenset[str]:
        return frozenset(OURS + LORA)

    def prepare_video_request_for_queue(self, req: Any) -> None:
        """Reject an invalid request before it is queued. SGLang's HTTP server responds with 400."""
        from sglang.multimodal_gen.runtime.server_args import get_global_server_args

        try:
            server = get_global_server_args()
        except ValueError:  # SGLang's Python API: the scheduler reports the error
            return
        config = served_config(
            server.model_path, server.pipeline_config.settings().worker.load_format
        )
        for seed in seeds(req):
            self.foreign_request(seed).to_video_request(server.model_path, config)

    def foreign_request(self, seed: int, max_lead_chunks: int | None = None) -> ForeignRequest:
        """Return the request of one video, with a new id. Raises InvalidRequestError."""
        given: set[str] = getattr(self, "_explicit_fields", set())
        for name in FOREIGN:
            if name in given and getattr(self, name, None):
                raise InvalidRequestError(
                    f"unsupported option {name}: Helios has no such option", param=name
                )
        names = (*ALWAYS, *OURS, *(name for name in CHOSEN if name in given))
        options = {name: getattr(self, name) for name in names} | {"seed": seed}
        image, video = single_path(self.image_path, "image"), single_path(self.video_path, "video")
        return ForeignRequest(
            request_id=uuid4().hex,
            prompt=self.prompt,
            options=options,
            image=image if image is None or Path(image).is_file() else load_image(image),
            video=video,
            lora=self.lora,
            lora_scale=self.lora_scale,
            max_lead_chunks=max_lead_chunks,
        )


HeliosSamplingParams = make_dataclass(
    "HeliosSamplingParams",
    [(name, Any, field(default=None)) for name in OURS],
    bases=(HeliosRequest,),
    namespace={"__module__": __name__},
)
"""The class that SGLang fills from a request: `HeliosRequest` with a field for each of `OURS`."""


@cache
def served_config(model: str, load_format: Literal["auto", "dummy"]) -> HeliosConfig:
    """Return the model's configuration. It is cached, because reading it may access the hub."""
    return read_model_config(model, load_format)


def seeds(req: Any) -> list[int]:
    """Return one seed for each video of a request. Raises ValueError if their number differs."""
    count = req.num_outputs_per_prompt
    found: list[int] = normalize_output_seeds(req.seed, num_outputs_per_prompt=count)
    return found


def single_path(paths: str | list[str] | None, kind: str) -> str | None:
    """Return the only path. SGLang accepts lists of references, Helios only one.

    Raises InvalidRequestError for several paths.
    """
    if not isinstance(paths, list):
        return paths
    if len(paths) > 1:
        raise InvalidRequestError(f"got {len(paths)} {kind}s, expected one", param=kind)
    return paths[0] if paths else None
