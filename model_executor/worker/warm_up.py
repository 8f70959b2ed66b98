"""Warm-up: compiles kernels before the first request by running a few small chunks."""

import time
from collections.abc import Iterator, Sequence

import torch

from helios_serve.errors import DeviceError
from helios_serve.kernels.backend import choose_kernels
from helios_serve.logger import logger
from helios_serve.messages import (
    NULL_BLOCK,
    ChunkBlocks,
    ChunkStart,
    EncodedPrompt,
    NewSession,
    ScheduledStep,
    SchedulerOutput,
    StepCursor,
)
from helios_serve.model_config import CHUNK_LATENTS, WINDOW_FRAMES, Geometry, HeliosConfig
from helios_serve.model_executor.models.helios.transformer import HeliosTransformer
from helios_serve.model_executor.worker.model_runner import ModelRunner
from helios_serve.model_executor.worker.tensors import as_data
from helios_serve.options.sampling import SamplingParams
from helios_serve.video_request import PromptWeight, VideoRequest

SIZE = (128, 64)
"""Width and height of the videos. Compiled kernels do not depend on it."""

BATCHES = {40: ("alone",), 100: ("one", "other")}
"""Batches to run: the ids of their sessions, by the number of tokens of their prompt.

Triton specializes kernels for packs of one segment, and attention for short prompts.
"""


def warm_up(transformer: HeliosTransformer, config: HeliosConfig) -> None:
    """Run one chunk of each batch, on devices whose kernels are compiled on first use.

    Raises DeviceError if a chunk fails, as every video would.
    """
    device = transformer.device
    if choose_kernels(device).backend == "reference":
        return
    logger.info("%s: compiling kernels with a few small chunks", device)
    started = time.perf_counter()
    width, height = SIZE
    params = SamplingParams(
        width=width, height=height, num_frames=1, steps=(2,) * config.stages, use_zero_init=False
    )
    frame = Geometry(height, width).blocks_per_frame
    runner = ModelRunner(
        config,
        transformer,
        device,
        num_blocks=1 + max(map(len, BATCHES.values())) * CHUNK_LATENTS * frame,
        text_bytes=0,
    )
    for tokens, session_ids in BATCHES.items():
        for plan in plans(session_ids, tokens, params, config):
            output = runner.execute_model(plan)
            for failure in output.failures:
                raise DeviceError(f"got {device}, on which the warm-up failed: {failure.message}")
    logger.info("%s: compiled kernels in %.0f s", device, time.perf_counter() - started)


def plans(
    session_ids: Sequence[str], tokens: int, params: SamplingParams, config: HeliosConfig
) -> Iterator[SchedulerOutput]:
    """Yield the plans of the first chunk of sessions whose prompt has `tokens` tokens."""
    frame = Geometry(params.height, params.width).blocks_per_frame
    texts = dict.fromkeys(("warm", params.negative_prompt))
    states = as_data(torch.ones(tokens, config.transformer.text_dim))
    prompts = tuple(EncodedPrompt(text, states) for text in texts)
    no_blocks = ChunkBlocks((), ())
    opened = tuple(
        NewSession(name, VideoRequest(request_id=name, prompt="warm", params=params), no_blocks)
        for name in session_ids
    )
    window, size = (NULL_BLOCK,) * WINDOW_FRAMES * frame, CHUNK_LATENTS * frame
    starts: list[ChunkStart | None] = [
        ChunkStart(
            ChunkBlocks(window, tuple(range(1 + place * size, 1 + (place + 1) * size)), True),
            (PromptWeight("warm", 1.0),),
            prompts,
        )
        for place in range(len(session_ids))
    ]
    for stage, count in enumerate(params.resolve(config).stage_steps(0)):
        for step in range(count):
            cursor = StepCursor(0, stage, step)
            steps = map(ScheduledStep, session_ids, [cursor] * len(session_ids), starts)
            yield SchedulerOutput(new_sessions=opened, scheduled_steps=tuple(steps))
            opened, starts = (), [None] * len(session_ids)
    yield SchedulerOutput(finished=tuple(session_ids))
