"""SGLang pipelines for Helios.

They load no modules and have no stages: our engine does that work.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from sglang.multimodal_gen.configs.pipeline_configs.base import PipelineConfig
from sglang.multimodal_gen.configs.task_type import ModelTaskType
from sglang.multimodal_gen.runtime.pipelines_core.composed_pipeline_base import (
    ComposedPipelineBase,
)

from helios_serve.errors import InvalidRequestError
from helios_serve.integrations.settings import EngineSettings

OPTIONS = "helios"
"""Key of our options in the file given by --pipeline-config-path."""


@dataclass
class HeliosPipelineConfig(PipelineConfig):  # type: ignore[misc]
    """SGLang's pipeline configuration.

    `helios` holds our engine's options: fields of EngineSettings.
    """

    task_type: ModelTaskType = ModelTaskType.TI2V
    supported_task_types: ClassVar[tuple[ModelTaskType, ...]] = (
        ModelTaskType.TI2V,
        ModelTaskType.T2V,
        ModelTaskType.I2V,
        ModelTaskType.V2V,
    )
    supports_auto_residency: bool = False
    helios: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> EngineSettings:
        """Return the engine's settings. Raises InvalidRequestError."""
        return EngineSettings.read(self.helios, OPTIONS)

    def validate_server_args(self, server_args: Any) -> None:
        """Validate the arguments before anything is started. Raises InvalidRequestError."""
        if server_args.num_gpus != 1:
            raise InvalidRequestError(
                f"got --num-gpus {server_args.num_gpus}, expected 1: to use more GPUs, set more "
                f'workers, such as {{"{OPTIONS}": {{"workers": ["2"], "executor": "local"}}}}, in '
                "the file given by --pipeline-config-path",
                param="num_gpus",
            )
        self.settings().worker_groups(server_args.model_path)

    def supports_dynamic_batching(self) -> bool:
        """Return False: our engine batches requests, so they must not wait in SGLang."""
        return False

    def supports_disaggregation(self) -> bool:
        return False


class HeliosPipeline(ComposedPipelineBase):  # type: ignore[misc]
    """Pipeline of Helios-Base, named as in its model_index.json."""

    pipeline_name = "HeliosPipeline"
    is_video_pipeline = True

    def build_executor(self, server_args: Any) -> Any:
        from helios_serve.integrations.sglang.executor import HeliosPipelineExecutor

        return HeliosPipelineExecutor(server_args)

    def load_modules(self, server_args: Any, loaded_modules: Any = None) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def create_pipeline_stages(self, server_args: Any) -> None:
        pass


class HeliosPyramidPipeline(HeliosPipeline):
    """Pipeline of Helios-Mid and Helios-Distilled, named as in their model_index.json."""

    pipeline_name = "HeliosPyramidPipeline"
