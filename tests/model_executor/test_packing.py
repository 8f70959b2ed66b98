"""Packed equals alone: a session's latents do not depend on who shares its batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_files import write_lora
from videos import Case, run_sessions

from helios_serve.model_config import WINDOW_FRAMES, Geometry
from helios_serve.model_executor.loader import LoadedModel
from helios_serve.model_executor.lora_files import load_adapter
from helios_serve.model_executor.models.helios.embeddings import rope_table
from helios_serve.model_executor.models.helios.inputs import Segment
from helios_serve.model_executor.worker.history_pool import HistoryPool
from helios_serve.sampling_params import VideoRequest

FORWARD_TOLERANCE = 5e-6
SESSION_TOLERANCE = 1e-4
SIZES = [(64, 64), (64, 128), (128, 64), (128, 192)]
PROMPTS = ["waves rise", "a dog runs over the green hill", "x" * 40]


@st.composite
def segments_of(draw: st.DrawFn) -> dict[str, Any]:
    height, width = draw(st.sampled_from(SIZES))
    return {
        "geometry": Geometry(height, width),
        "stage": draw(st.integers(0, 2)),
        "prompt": draw(st.sampled_from(PROMPTS)),
        "timestep": draw(st.sampled_from([998.0, 742.0, 174.0])),
        "history_frames": draw(st.integers(0, WINDOW_FRAMES)),
        "lora": draw(st.sampled_from([None, 0.5, 1.0])),
        "seed": draw(st.integers(0, 1000)),
    }


def build_segment(model: LoadedModel, lora_path: Path, choice: dict[str, Any]) -> Segment:
    geometry, stage = choice["geometry"], choice["stage"]
    generator = torch.Generator().manual_seed(choice["seed"])
    height, width = geometry.latent_size
    frames = torch.randn(16, WINDOW_FRAMES, height, width, generator=generator)
    size = geometry.blocks_per_frame
    pool = HistoryPool(WINDOW_FRAMES * size + 1, torch.float32, torch.device("cpu"))
    table = torch.arange(1, WINDOW_FRAMES * size + 1)
    pool.write(frames, table.tolist())
    table[: (WINDOW_FRAMES - choice["history_frames"]) * size] = 0
    scale = choice["lora"]
    adapter = load_adapter(str(lora_path), model.transformer, scale) if scale else None
    rows = model.text_encoder.encode(choice["prompt"], 64)
    return Segment(
        history=pool.gather(table, geometry),
        noise=torch.randn(geometry.noise_tokens(stage, 3), 64, generator=generator),
        rope=rope_table(model.config.transformer, geometry, stage, 3, torch.device("cpu")),
        timestep=choice["timestep"],
        text=model.transformer.read_text(rows, 64 - len(rows), adapter),
        adapter=adapter,
    )


@pytest.fixture(scope="module")
def lora_path(checkpoints: dict[str, Path], latent_model: Any, tmp_path_factory: Any) -> Path:
    model = latent_model(checkpoints["distilled"])
    return write_lora(tmp_path_factory.mktemp("lora") / "adapter.safetensors", model.transformer)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(choices=st.lists(segments_of(), min_size=2, max_size=5))
def test_a_packed_forward_equals_each_segment_alone(
    choices: list[dict[str, Any]],
    checkpoints: dict[str, Path],
    latent_model: Any,
    lora_path: Path,
) -> None:
    model = latent_model(checkpoints["distilled"])
    segments = [build_segment(model, lora_path, choice) for choice in choices]
    packed = model.transformer(segments).split([len(item.noise) for item in segments])
    for segment, got in zip(segments, packed, strict=True):
        assert (got - model.transformer([segment])).abs().max() < FORWARD_TOLERANCE


def mixed_requests(variant: str, lora: str | None) -> list[VideoRequest]:
    steps = {"base": (3,), "mid": (3, 2, 2), "distilled": (2, 2, 2)}[variant]
    other = {"base": (5,), "mid": (1, 2, 1), "distilled": (1, 2, 3)}[variant]
    cases = [
        Case(variant, chunks=2, steps=steps),
        Case(variant, "i2v", height=128, width=64, chunks=1, steps=other, seed=1),
        Case(variant, "v2v", chunks=2, steps=other, guidance=1.0, prompt="waves rise", seed=2),
        Case(variant, height=64, width=64, chunks=3, steps=steps, guidance=2.0, seed=3),
    ]
    requests = [
        case.with_defaults().request(f"session-{index}") for index, case in enumerate(cases)
    ]
    if lora is not None:
        requests.append(cases[0].with_defaults().request("with-lora", lora=lora))
    return requests


@pytest.mark.parametrize("variant", ["base", "mid", "distilled"])
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_sessions_together_equal_sessions_alone(
    variant: str,
    batch_invariant: bool,
    checkpoints: dict[str, Path],
    latent_model: Any,
    lora_path: Path,
) -> None:
    model = latent_model(checkpoints[variant])
    requests = mixed_requests(variant, str(lora_path))
    together = run_sessions(model, requests, batch_invariant=batch_invariant)
    for request in requests:
        alone = run_sessions(model, [request], batch_invariant=batch_invariant)
        error = (together[request.request_id] - alone[request.request_id]).abs().max().item()
        assert error == 0 if batch_invariant else error < SESSION_TOLERANCE


def test_an_adapter_changes_only_its_own_session(
    checkpoints: dict[str, Path], latent_model: Any, lora_path: Path
) -> None:
    model = latent_model(checkpoints["distilled"])
    requests = mixed_requests("distilled", str(lora_path))
    together = run_sessions(model, requests)
    assert (together["session-0"] - together["with-lora"]).abs().max() > 0.01
