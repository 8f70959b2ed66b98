"""Videos whose chunks continue each other in pixels too: interrupted, extended and forked."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helios_serve.core.history_manager import HistoryManager
from helios_serve.engine.loop.continuation import fork_seed, fork_snapshot
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.model_config import Geometry
from helios_serve.model_executor.loader import LoadedModel
from helios_serve.model_executor.models.vae import Vae
from helios_serve.model_executor.worker.tensors import as_tensor
from helios_serve.store.snapshots import ResumePoint
from tests.support.models import load_model, loaded
from tests.support.videos import Case, SteppedExecutor, Viewer

CASE = Case("distilled", height=64, width=64, chunks=3, steps=(1, 1, 1)).with_defaults()
BLOCKS = HistoryManager.peak_blocks(Geometry(64, 64)) + 1
"""Room for one session."""

View = Callable[..., Viewer]


@pytest.fixture(scope="module")
def model(checkpoints: dict[str, Path]) -> LoadedModel:
    return load_model(str(checkpoints["distilled"]))


@pytest.fixture
def view(model: LoadedModel) -> Iterator[View]:
    with ExitStack() as running:

        def start(*, continuous_decode: bool = True) -> Viewer:
            executor = SteppedExecutor(
                model, BLOCKS, batch_invariant=True, continuous_decode=continuous_decode
            )
            running.callback(executor.shutdown)
            return Viewer(EngineCore(executor, model.config))

        yield start


def shown(viewer: Viewer, name: str) -> list[Tensor]:
    """The frames of each chunk of a video."""
    return [
        torch.frombuffer(bytearray(item.frames.data), dtype=torch.uint8).view(33, 64, 64, 3)
        for item in viewer.chunks[name]
        if item.frames is not None
    ]


def decoded(viewer: Viewer, name: str, vae: Vae, *, is_continuous: bool) -> list[Tensor]:
    """The chunks of a video, decoded from its latents after the test."""
    state = vae.new_state() if is_continuous else None
    latents = [as_tensor(item.latents)[0] for item in viewer.chunks[name]]
    return [vae.render(part, state) for part in latents]


def check(viewer: Viewer, name: str, model: LoadedModel, *, is_continuous: bool = True) -> None:
    """Assert that each chunk continues the one before, from the first one here on, or none does."""
    vae, got = loaded(model.vae), shown(viewer, name)
    expected = decoded(viewer, name, vae, is_continuous=is_continuous)
    other = decoded(viewer, name, vae, is_continuous=not is_continuous)
    assert len(got) == len(expected) > 1
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))
    assert [torch.equal(*pair) for pair in zip(got, other, strict=True)] == [True] + [False] * (
        len(got) - 1
    )


@pytest.mark.parametrize("is_continuous", [True, False])
def test_chunks_continue_each_other_only_if_that_is_chosen(
    is_continuous: bool, model: LoadedModel, view: View
) -> None:
    viewer = view(continuous_decode=is_continuous)
    viewer.engine.add_request(CASE.request("a"))
    viewer.finish()
    check(viewer, "a", model, is_continuous=is_continuous)


def test_an_evicted_session_still_continues_its_video(model: LoadedModel, view: View) -> None:
    viewer = view()
    viewer.engine.step()
    flex = viewer.engine.add_request(CASE.request("flex", tier="flex", tenant="f"))
    viewer.wait(lambda: flex.worker_id is not None and not flex.at_chunk_edge)
    viewer.engine.add_request(CASE.request("other"))
    viewer.wait(lambda: flex.worker_id is None)
    viewer.finish()
    check(viewer, "flex", model)
    check(viewer, "other", model)


@pytest.mark.parametrize("way", ["after a restart", "in a fork", "in an extension"])
def test_what_goes_on_elsewhere_begins_with_a_chunk_of_its_own(
    way: str, model: LoadedModel, view: View
) -> None:
    """There is no state on another worker, nor for another video."""
    viewer = view()
    viewer.engine.add_request(CASE.request("a"))
    viewer.wait(lambda: bool(viewer.chunks.get("a")))
    viewer.finish()
    snapshot = viewer.snapshot("a", 0)
    if way == "in a fork":
        snapshot = fork_snapshot(snapshot, fork_seed(CASE.seed, 1, "0"))
    name = "a" if way == "after a restart" else "b"
    later = view() if way == "after a restart" else viewer
    later.engine.add_request(CASE.request(name), ResumePoint(snapshot))
    later.finish()
    assert [item.chunk for item in later.chunks[name]] == [1, 2]
    check(later, name, model)
