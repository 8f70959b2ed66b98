"""The pipeline that vLLM-Omni registers for Helios: one stage, which outputs video."""

from vllm_omni.config.pipeline_registry import OMNI_PIPELINES, register_pipeline
from vllm_omni.config.stage_config import PipelineConfig, StageExecutionType, StagePipelineConfig

from helios_serve.integrations.vllm_omni import PIPELINE


def register() -> None:
    """Register the pipeline, once."""
    if PIPELINE not in OMNI_PIPELINES:
        register_pipeline(helios())


def helios() -> PipelineConfig:
    """Return the pipeline.

    Its model class is left to the checkpoint, so that only our deploy config selects this pipeline.
    """
    stage = StagePipelineConfig(
        stage_id=0,
        model_stage="diffusion",
        execution_type=StageExecutionType.DIFFUSION,
        final_output=True,
        final_output_type="video",
    )
    return PipelineConfig(model_type=PIPELINE, stages=(stage,))
