"""What vLLM-Omni has to know of a server of Helios: one stage, which gives video."""

from vllm_omni.config.pipeline_registry import OMNI_PIPELINES, register_pipeline
from vllm_omni.config.stage_config import PipelineConfig, StageExecutionType, StagePipelineConfig

from helios_serve.integrations.vllm_omni import PIPELINE


def register() -> None:
    if PIPELINE not in OMNI_PIPELINES:
        register_pipeline(helios())


def helios() -> PipelineConfig:
    """Its class is left to the checkpoint, so that only our deploy config chooses it."""
    stage = StagePipelineConfig(
        stage_id=0,
        model_stage="diffusion",
        execution_type=StageExecutionType.DIFFUSION,
        final_output=True,
        final_output_type="video",
    )
    return PipelineConfig(model_type=PIPELINE, stages=(stage,))
