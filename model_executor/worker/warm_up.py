"""A chunk or two that nobody asked for, so that the first video waits for no compiler."""

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
"""Width and height; kernels are made for a model's widths, and any size will do."""

CROWDS = {40: ("alone",), 100: ("one", "other")}
"""Sessions that are warmed up together, by the tokens of their prompt.

A pack of one segment is a case of its own in Triton, and a short prompt in attention.
"""


def warm_up(transformer: HeliosTransformer, config: HeliosConfig) -> None:
    """Make one chunk of every crowd where kernels are compiled at their first use.

    Raises DeviceError where that fails: no video could be made here.
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
        num_blocks=1 + max(map(len, CROWDS.values())) * CHUNK_LATENTS * frame,
        text_bytes=0,
    )
    for tokens, crowd in CROWDS.items():
        for plan in plans(crowd, tokens, params, config):
            output = runner.execute_model(plan)
            for failure in output.failures:
                raise DeviceError(f"got {device}, where a first chunk failed: {failure.message}")
    logger.info("%s: compiled them in %.0f s", device, time.perf_counter() - started)


def plans(
    crowd: Sequence[str], tokens: int, params: SamplingParams, config: HeliosConfig
) -> Iterator[SchedulerOutput]:
    """Every step of a first chunk of some sessions with a prompt of that many tokens."""
    frame = Geometry(params.height, params.width).blocks_per_frame
    texts = dict.fromkeys(("warm", params.negative_prompt))
    states = as_data(torch.ones(tokens, config.transformer.text_dim))
    prompts = tuple(EncodedPrompt(text, states) for text in texts)
    nothing = ChunkBlocks((), ())
    opened = tuple(
        NewSession(name, VideoRequest(request_id=name, prompt="warm", params=params), nothing)
        for name in crowd
    )
    window, size = (NULL_BLOCK,) * WINDOW_FRAMES * frame, CHUNK_LATENTS * frame
    starts: list[ChunkStart | None] = [
        ChunkStart(
            ChunkBlocks(window, tuple(range(1 + place * size, 1 + (place + 1) * size)), True),
            (PromptWeight("warm", 1.0),),
            prompts,
        )
        for place in range(len(crowd))
    ]
    for stage, count in enumerate(params.resolve(config).stage_steps(0)):
        for step in range(count):
            cursor = StepCursor(0, stage, step)
            steps = map(ScheduledStep, crowd, [cursor] * len(crowd), starts)
            yield SchedulerOutput(new_sessions=opened, scheduled_steps=tuple(steps))
            opened, starts = (), [None] * len(crowd)
    yield SchedulerOutput(finished=tuple(crowd))
