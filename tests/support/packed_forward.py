"""A packed forward of a tiny transformer, with Triton kernels and with the reference.

As a script, in Triton's interpreter, it prints as JSON the difference of the flows, and the error
of each kernel against its reference.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import torch
from torch import Tensor

from helios_serve.kernels.backend import KERNELS_VARIABLE
from helios_serve.model_config import Geometry, TransformerConfig
from helios_serve.model_executor.models.helios.embeddings import make_rope
from helios_serve.model_executor.models.helios.inputs import PackSegment
from helios_serve.model_executor.models.helios.lora import LoraAdapter, LowRank
from helios_serve.model_executor.models.helios.transformer import HeliosTransformer
from helios_serve.model_executor.worker.history_pool import HistoryPool
from tests.support.kernel_cases import error, interpreter_errors

HEADS, HEAD_DIM, TEXT_DIM, RANK = 2, 32, 24, 3


def tiny_transformer(
    device: torch.device, dtype: torch.dtype = torch.float32, *, amplified: bool = True
) -> HeliosTransformer:
    """Return a transformer of two layers. All parameters are random, those of norms around one."""
    config = TransformerConfig(
        num_layers=2,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        ffn_dim=96,
        text_dim=TEXT_DIM,
        freq_dim=32,
        rope_dim=(12, 10, 10),
        is_amplify_history=amplified,
    )
    torch.manual_seed(0)
    model = HeliosTransformer(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter.shape[-1] ** -0.5)
        else:
            parameter.data.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.3)
        if "table" not in name and "norm2" not in name:
            parameter.data = parameter.data.to(dtype)
    model.condition_embedder.time_embedder.float()
    return model.to(device).eval().requires_grad_(False)


def tiny_adapter(model: HeliosTransformer) -> LoraAdapter:
    """Return an adapter for queries and values of the first layer's self-attention."""
    weight = model.proj_out.weight
    generator = torch.Generator().manual_seed(1)

    def term() -> LowRank:
        size = HEADS * HEAD_DIM
        down, up = torch.randn(2, RANK, size, generator=generator).to(weight) / size**0.5
        return LowRank(down, up.T)

    return LoraAdapter({f"blocks.0.attn1.{name}": term() for name in ("to_q", "to_v")})


def segment(
    model: HeliosTransformer, geometry: Geometry, stage: int, timestep: float, **extra: LoraAdapter
) -> PackSegment:
    """Return a session with a random history and prompt, with padding except at stage 0."""
    generator = torch.Generator().manual_seed(stage)
    count = 20 * geometry.blocks_per_frame
    pool = HistoryPool(count + 1, model.dtype, model.device)
    pool.blocks[1:] = torch.randn(count, 16, 64, generator=generator).to(pool.blocks)
    window = torch.randperm(count, generator=generator) + 1
    text = torch.randn(5 + stage, TEXT_DIM, generator=generator).to(model.device)
    return PackSegment(
        history=pool.gather(window.to(model.device), geometry),
        noise=torch.randn(geometry.noise_tokens(stage, 3), 64, generator=generator).to(
            model.device
        ),
        rope=make_rope(model.config, geometry, stage, 3, model.device),
        timestep=timestep,
        text=model.read_text(text, 40 * stage),
        **extra,
    )


def mixed_segments(model: HeliosTransformer) -> list[PackSegment]:
    """Return two sessions of different sizes and stages, one of them with an adapter."""
    return [
        segment(model, Geometry(64, 64), 0, 998.0, adapter=tiny_adapter(model)),
        segment(model, Geometry(64, 128), 1, 742.0),
    ]


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Change environment variables in the block."""
    before = os.environ.copy()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def flow(model: HeliosTransformer, kernels: str) -> Tensor:
    """Return the flow of the mixed pack, with the given kernels for all its operations."""
    with environment(**{KERNELS_VARIABLE: kernels}):
        rows: Tensor = model(mixed_segments(model))
    return rows


def check_interpreter() -> None:
    """End with one line where Triton's interpreter cannot work with this numpy."""
    triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    if triton < (3, 7) and numpy >= (2, 4):
        raise SystemExit(
            "the interpreter of Triton before 3.7 needs numpy before 2.4, which no longer turns "
            "arrays of one element into numbers: pip install 'numpy<2.4' or 'triton>=3.7'"
        )


def main() -> None:
    check_interpreter()
    model = tiny_transformer(torch.device("cpu"))
    expected = flow(model, "reference")
    model.join_weights()
    forward = error([flow(model, "triton")], [expected])
    print(json.dumps({"forward": forward, "kernels": interpreter_errors()}))


if __name__ == "__main__":
    main()
