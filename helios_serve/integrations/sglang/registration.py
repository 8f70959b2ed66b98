"""Registration of our pipelines, adapters and hooks with SGLang."""

from sglang.multimodal_gen.registry import register_pipeline
from sglang.multimodal_gen.runtime.entrypoints.openai.realtime.registry import (
    register_realtime_model_adapter,
)
from sglang.multimodal_gen.runtime.platforms.plugins import HookRegistry, HookType

from helios_serve.integrations.sglang.jobs import HOOKS, SCHEDULER, STORE, forget_video
from helios_serve.integrations.sglang.pipeline import (
    HeliosPipeline,
    HeliosPipelineConfig,
    HeliosPyramidPipeline,
)
from helios_serve.integrations.sglang.realtime import HeliosRealtimeAdapter
from helios_serve.integrations.sglang.sampling import HeliosSamplingParams

PUBLISHED = {
    HeliosPipeline: ["BestWishYsh/Helios-Base"],
    HeliosPyramidPipeline: ["BestWishYsh/Helios-Mid", "BestWishYsh/Helios-Distilled"],
}
"""Published checkpoints by the pipeline class that their model_index.json names.

SGLang matches these paths before it calls any model detector.
"""


def register() -> None:
    """Register the pipelines, the realtime adapter and the hooks."""
    for pipeline, paths in PUBLISHED.items():
        register_pipeline(
            pipeline,
            sampling_param_cls=HeliosSamplingParams,
            pipeline_config_cls=HeliosPipelineConfig,
            hf_model_paths=paths,
            model_detectors=[lambda name: "helios" in name],
            overwrite=True,
        )
    register_realtime_model_adapter(HeliosPipelineConfig, HeliosRealtimeAdapter)
    for method, hook in HOOKS.items():
        HookRegistry.register(f"{SCHEDULER}.{method}", hook, HookType.AROUND)
    HookRegistry.register(STORE, forget_video, HookType.AROUND)
    HookRegistry.apply_hooks()
