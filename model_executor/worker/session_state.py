"""The state of a session on a worker between steps."""

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
    """The state of a session's current chunk.

    - `blocks`: its block table; `window` is `blocks.window` as a tensor on the device.
    - `schedule`: the denoise schedule, by stage.
    - `noise`: the chunk's noise.
    - `prompt`, `negative`: the text contexts of the prompt and, with guidance, the negative prompt.
    - `sampler`: the latents and the solver's state.
    """

    blocks: ChunkBlocks
    window: Tensor
    schedule: tuple[StageSchedule, ...]
    noise: ChunkNoise
    prompt: TextContext
    negative: TextContext | None
    sampler: SamplerState


@dataclass
class SessionState:
    """The state of a session.

    `prompts` holds the encoder states of its prompts, and `chunk` its current chunk, if any.
    """

    params: ResolvedParams
    geometry: Geometry
    adapter: LoraAdapter | None
    noise: NoiseStream
    prompts: dict[str, Tensor]
    chunk: ChunkState | None = None

    def schedule(self, config: HeliosConfig, chunk: int) -> tuple[StageSchedule, ...]:
        """Return the denoise schedule of a chunk, by stage."""
        params = self.params
        zeroed = config.cfg_zero_star and params.is_guided and params.use_zero_init
        return denoise_schedule(
            config,
            self.geometry,
            params.stage_steps(chunk),
            zero_init_steps=params.zero_steps + 1 if zeroed else 0,
        )

    def is_last_step(self, cursor: StepCursor) -> bool:
        """Return whether the step at `cursor` is the last one of its chunk."""
        steps = self.params.stage_steps(cursor.chunk)
        return (cursor.stage, cursor.step) == (len(steps) - 1, steps[-1] - 1)
