"""Warm-up: runs chunks before the first request, which compile kernels and load libraries."""

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
    DecodeTask,
    EncodedPrompt,
    EncodeTask,
    NewSession,
    ScheduledStep,
    SchedulerOutput,
    StepCursor,
)
from helios_serve.model_config import (
    CHUNK_FRAMES,
    CHUNK_LATENTS,
    LATENT_CHANNELS,
    WINDOW_FRAMES,
    Geometry,
    HeliosConfig,
)
from helios_serve.model_executor.device import release_cached
from helios_serve.model_executor.models.helios.transformer import HeliosTransformer
from helios_serve.model_executor.worker.model_runner import ModelRunner
from helios_serve.model_executor.worker.tensors import as_data
from helios_serve.options.sampling import SamplingParams
from helios_serve.video_request import PromptWeight, VideoRequest

SIZE = (128, 64)
"""Width and height of the small videos. Compiled kernels do not depend on it."""

BATCHES = {40: ("alone",), 100: ("one", "other")}
"""Batches to run: the ids of their sessions, by the number of tokens of their prompt.

Triton specializes kernels for packs of one segment, and attention for short prompts.
"""
TYPICAL = (40, ("alone",))
"""The batch with which sizes are warmed up."""
WARM = "warm"
"""The prompt of warm-ups, and the id of their tasks."""


def warm_up(
    transformer: HeliosTransformer, config: HeliosConfig, sizes: Sequence[Geometry] = ()
) -> None:
    """Run small chunks where kernels are compiled on first use, and one chunk of each of `sizes`.

    Call it in the thread that will run the steps: libraries keep plans by thread and shape. Raises
    DeviceError if a chunk fails, as every video would.
    """
    device = transformer.device
    started = time.perf_counter()
    if choose_kernels(device).backend != "reference":
        logger.info("%s: compiling kernels with a few small chunks", device)
        for tokens, session_ids in BATCHES.items():
            run_chunk(transformer, config, SIZE, tokens, session_ids)
        logger.info("%s: compiled kernels in %.0f s", device, time.perf_counter() - started)
    for size in sizes:
        started = time.perf_counter()
        run_chunk(transformer, config, (size.width, size.height), *TYPICAL)
        seconds = time.perf_counter() - started
        logger.info("%s: warmed up for %dx%d in %.1f s", device, size.width, size.height, seconds)
    release_cached(device)


def run_chunk(
    transformer: HeliosTransformer,
    config: HeliosConfig,
    size: tuple[int, int],
    tokens: int,
    session_ids: Sequence[str],
) -> None:
    """Run one chunk of sessions of a size, with a runner of their own. Raises DeviceError."""
    width, height = size
    params = SamplingParams(
        width=width, height=height, num_frames=1, steps=(2,) * config.stages, use_zero_init=False
    )
    frame = Geometry(height, width).blocks_per_frame
    runner = ModelRunner(
        config,
        transformer,
        transformer.device,
        num_blocks=1 + len(session_ids) * CHUNK_LATENTS * frame,
        text_bytes=0,
    )
    for plan in plans(session_ids, tokens, params, config):
        for failure in runner.execute_model(plan).failures:
            raise DeviceError(
                f"got {transformer.device}, on which the warm-up failed: {failure.message}"
            )


def side_tasks(
    sizes: Sequence[Geometry], *, encodes: bool, decodes: bool, is_continuous: bool = False
) -> Iterator[EncodeTask | DecodeTask]:
    """Yield tasks that warm up the threads which encode prompts and decode chunks of `sizes`.

    Where decoding `is_continuous`, a later chunk of a video is another task than its first one.
    """
    if encodes and sizes:
        yield EncodeTask(WARM, (WARM,), max_sequence_length=512)
    for size in sizes if decodes else ():
        shape = 1, LATENT_CHANNELS, CHUNK_LATENTS, *size.latent_size
        latents = as_data(torch.zeros(shape))
        for chunk in range(1 + is_continuous):
            is_last = chunk == is_continuous
            yield DecodeTask(WARM, chunk, latents, CHUNK_FRAMES, 24, "segment", is_last=is_last)


def plans(
    session_ids: Sequence[str], tokens: int, params: SamplingParams, config: HeliosConfig
) -> Iterator[SchedulerOutput]:
    """Yield the plans of the first chunk of sessions whose prompt has `tokens` tokens."""
    frame = Geometry(params.height, params.width).blocks_per_frame
    texts = dict.fromkeys((WARM, params.negative_prompt))
    states = as_data(torch.ones(tokens, config.transformer.text_dim))
    prompts = tuple(EncodedPrompt(text, states) for text in texts)
    no_blocks = ChunkBlocks((), ())
    opened = tuple(
        NewSession(name, VideoRequest(request_id=name, prompt=WARM, params=params), no_blocks)
        for name in session_ids
    )
    window, size = (NULL_BLOCK,) * WINDOW_FRAMES * frame, CHUNK_LATENTS * frame
    starts: list[ChunkStart | None] = [
        ChunkStart(
            ChunkBlocks(window, tuple(range(1 + place * size, 1 + (place + 1) * size)), True),
            (PromptWeight(WARM, 1.0),),
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
