"""What a worker keeps of a session between steps."""

from dataclasses import dataclass

from torch import Tensor

from helios_serve.messages import ChunkBlocks, StepCursor
from helios_serve.model_config import Geometry, HeliosConfig
from helios_serve.model_executor.models.helios.conditioning import ChunkNoise
from helios_serve.model_executor.models.helios.inputs import TextContext
from helios_serve.model_executor.models.helios.lora import LoraAdapter
from helios_serve.model_executor.models.helios.samplers import SamplerState
from helios_serve.model_executor.models.helios.schedule import StageSchedule, denoise_schedule
from helios_serve.model_executor.worker.noise_stream import NoiseStream
from helios_serve.options.sampling import ResolvedParams


@dataclass
class ChunkState:
    """A chunk in the making: its blocks, schedule, noise, prompts and latents."""

    blocks: ChunkBlocks
    window: Tensor
    schedule: tuple[StageSchedule, ...]
    noise: ChunkNoise
    prompt: TextContext
    negative: TextContext | None
    sampler: SamplerState


@dataclass
class SessionState:
    """One session: its noise, its prompts as the text encoder read them, the chunk it is at."""

    params: ResolvedParams
    geometry: Geometry
    adapter: LoraAdapter | None
    noise: NoiseStream
    prompts: dict[str, Tensor]
    chunk: ChunkState | None = None

    def schedule(self, config: HeliosConfig, chunk: int) -> tuple[StageSchedule, ...]:
        params = self.params
        zeroed = config.cfg_zero_star and params.is_guided and params.use_zero_init
        return denoise_schedule(
            config,
            self.geometry,
            params.stage_steps(chunk),
            zero_init_steps=params.zero_steps + 1 if zeroed else 0,
        )

    def is_last_step(self, cursor: StepCursor) -> bool:
        steps = self.params.stage_steps(cursor.chunk)
        return (cursor.stage, cursor.step) == (len(steps) - 1, steps[-1] - 1)
