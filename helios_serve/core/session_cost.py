"""What one session costs a worker: FLOPs, tokens and history blocks."""

from helios_serve.core.cost import stage_step_cost
from helios_serve.core.history_manager import HistoryManager
from helios_serve.messages import StepCursor
from helios_serve.model_config import CHUNK_FRAMES, Geometry, HeliosConfig
from helios_serve.options.sampling import ResolvedParams


class SessionCost:
    """Costs that follow from a session's parameters alone, computed once.

    By stage: `steps` are the FLOPs of a denoise step, `tokens` what it adds to a batch, history and
    noise under every prompt. `chunk` is the FLOPs of any chunk but the first, `rate` the FLOP/s
    that playing the video in real time takes. `peak_blocks` is the most history blocks that the
    session ever holds.
    """

    def __init__(self, config: HeliosConfig, geometry: Geometry, params: ResolvedParams) -> None:
        self.params = params
        branches = 2 if params.is_guided else 1
        stages = range(config.stages)
        self.steps = tuple(stage_step_cost(config, geometry, stage, branches) for stage in stages)
        self.tokens = tuple(
            branches * (geometry.history_tokens + geometry.noise_tokens(stage, config.stages))
            for stage in stages
        )
        self.chunk = self.of_chunk(1)
        self.rate = self.chunk * params.fps / CHUNK_FRAMES
        self.peak_blocks = HistoryManager.peak_blocks(geometry)

    def of_chunk(self, chunk: int) -> float:
        """FLOPs of all steps of a chunk."""
        return self.left_in_chunk(StepCursor(chunk, 0, 0))

    def left_in_chunk(self, cursor: StepCursor) -> float:
        """FLOPs from `cursor` to the end of its chunk."""
        counts = self.params.stage_steps(cursor.chunk)
        left = (counts[cursor.stage] - cursor.step, *counts[cursor.stage + 1 :])
        return sum(
            count * cost for count, cost in zip(left, self.steps[cursor.stage :], strict=True)
        )

    def left(self, cursor: StepCursor) -> float:
        """FLOPs from `cursor` to the end of the video."""
        later = self.params.num_chunks - cursor.chunk - 1
        return 0.0 if later < 0 else self.left_in_chunk(cursor) + later * self.chunk
