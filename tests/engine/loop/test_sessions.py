"""Extensions, forks and prompt switches on a real runner."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from helios_serve.core.session import Session
from helios_serve.core.worker_state import WorkerState
from helios_serve.engine.loop.continuation import fork_seed, fork_snapshot
from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.errors import InvalidRequestError
from helios_serve.messages import SchedulerOutput
from helios_serve.model_config import CHUNK_LATENTS
from helios_serve.model_executor.loader import LoadedModel
from helios_serve.options.sampling import PromptSwitch
from helios_serve.store.snapshots import ResumePoint
from helios_serve.video_request import VideoRequest
from tests.support.videos import Case, SteppedExecutor, Viewer, run_sessions

CASE = Case("distilled", height=64, width=64, chunks=4, steps=(1, 1, 1)).with_defaults()
NEW = "waves rise"

View = Callable[..., Viewer]
Whole = Callable[[LoadedModel, Case], Tensor]


@pytest.fixture
def model(checkpoints: dict[str, Path], latent_model: Any) -> LoadedModel:
    loaded: LoadedModel = latent_model(checkpoints["distilled"])
    return loaded


@pytest.fixture
def view(model: LoadedModel) -> Iterator[View]:
    """Starts engines whose latents do not depend on the other sessions of a batch."""
    with ExitStack() as running:

        def start(model: LoadedModel = model) -> Viewer:
            executor = SteppedExecutor(model, 400, batch_invariant=True)
            running.callback(executor.shutdown)
            return Viewer(EngineCore(executor, model.config))

        yield start


@pytest.fixture(scope="module")
def whole() -> Whole:
    """The latents of an undisturbed video from its beginning."""
    known: dict[str, Tensor] = {}

    def make(model: LoadedModel, case: Case) -> Tensor:
        if (key := repr(case)) not in known:
            known[key] = run_sessions(model, [case.request("x")], batch_invariant=True)["x"]
        return known[key]

    return make


def extends(latents: Tensor, chunk: int) -> Tensor:
    return latents[:, :, chunk * CHUNK_LATENTS :]


def extended(viewer: Viewer, request: VideoRequest, chunk: int) -> Tensor:
    """Extend the video of `viewer` from its snapshot before `chunk`."""
    snapshot = viewer.snapshot(request.request_id, chunk - 1)
    again = msgspec.structs.replace(request.without_media(), request_id="more")
    viewer.engine.add_request(again, ResumePoint(snapshot))
    viewer.finish()
    return viewer.latents("more", range(chunk, 4))


SEAMS = {
    "t2v": CASE,
    "i2v": replace(CASE, task="i2v", seed=1),
    "v2v": replace(CASE, task="v2v", seed=2),
    "switch": replace(CASE, switches=(PromptSwitch(2, NEW, 0),)),
    "transition": replace(CASE, switches=(PromptSwitch(1, NEW, 3),)),
    "skipped first chunk": replace(CASE, options={"is_skip_first_chunk": True}),
}


@pytest.mark.parametrize("name", SEAMS)
def test_an_extension_is_the_tail_of_a_longer_video(
    name: str, model: LoadedModel, view: View, whole: Whole
) -> None:
    """From the middle of a video, and from the end of a shorter one."""
    case, viewer = SEAMS[name], view()
    tail = extends(expected := whole(model, case), 2)
    viewer.engine.add_request(case.request("long"))
    viewer.finish()
    assert torch.equal(extended(viewer, case.request("long"), 2), tail)

    short, viewer = case.request("short"), view()
    switches = tuple(switch for switch in case.switches if switch.chunk < 2)
    params = msgspec.structs.replace(short.params, num_frames=66, switches=switches)
    viewer.engine.add_request(msgspec.structs.replace(short, params=params))
    viewer.finish()
    assert torch.equal(viewer.latents("short", range(2)), expected[:, :, : 2 * CHUNK_LATENTS])
    assert torch.equal(extended(viewer, short, 2), tail)


def test_a_guided_extension_is_the_tail_of_a_longer_video(
    checkpoints: dict[str, Path], latent_model: Any, view: View, whole: Whole
) -> None:
    model = latent_model(checkpoints["mid"])
    case, viewer = replace(CASE, variant="mid", guidance=5.0), view(model)
    viewer.engine.add_request(case.request("long"))
    viewer.finish()
    got = extended(viewer, case.request("long"), 1)
    assert torch.equal(got, extends(whole(model, case), 1))


def test_what_cannot_go_on_from_a_snapshot_is_refused(view: View) -> None:
    viewer = view()
    viewer.engine.add_request(replace(CASE, chunks=2).request("a"))
    viewer.finish()
    snapshot = viewer.snapshot("a", 1)
    with pytest.raises(InvalidRequestError, match="got num_frames 66, expected more than the 66"):
        viewer.engine.add_request(replace(CASE, chunks=2).request("b"), ResumePoint(snapshot))
    with pytest.raises(InvalidRequestError, match="got size 128x64, expected 64x64"):
        viewer.engine.add_request(replace(CASE, width=128).request("b"), ResumePoint(snapshot))
    other = msgspec.structs.replace(snapshot, dtype="bfloat16")
    viewer.engine.add_request(CASE.request("b"), ResumePoint(other))
    viewer.finish()
    assert viewer.failures == {
        "b": "got a snapshot in bfloat16, expected the worker's dtype float32"
    }


def fork(viewer: Viewer, count: int) -> list[Session]:
    """Continue "parent" in several ways."""
    names = [f"child-{index}" for index in range(count)]
    snapshot = viewer.engine.fork_point("parent")
    return [
        viewer.engine.add_request(
            CASE.request(name),
            ResumePoint(fork_snapshot(snapshot, fork_seed(CASE.seed, 2, str(index)))),
            siblings=("parent", *names),
        )
        for index, name in enumerate(names)
    ]


def test_forks_differ_from_each_other_and_the_parent_goes_on_unchanged(
    model: LoadedModel, view: View, whole: Whole
) -> None:
    viewer = view()
    parent = viewer.engine.add_request(CASE.request("parent"))
    viewer.wait(lambda: parent.edge_chunk == 2)
    used = viewer.engine.scheduler.stats().used_blocks
    sessions = fork(viewer, 3)
    assert {session.worker_id for session in sessions} == {parent.worker_id}
    assert viewer.engine.scheduler.stats().used_blocks == used
    viewer.finish()
    expected = whole(model, CASE)
    assert torch.equal(viewer.latents("parent", range(4)), expected)
    made = [viewer.latents(f"child-{index}", range(2, 4)) for index in range(3)]
    for index, latents in enumerate(made):
        for other in (extends(expected, 2), *made[:index]):
            assert (latents - other).abs().max() > 0.1


@pytest.mark.parametrize("with_kin", [True, False])
def test_the_same_fork_gives_the_same_videos_even_when_its_parent_is_over(
    with_kin: bool, view: View
) -> None:
    viewer = view()
    parent = viewer.engine.add_request(CASE.request("parent"))
    viewer.wait(lambda: parent.edge_chunk == 2)
    fork(viewer, 2)
    viewer.finish()
    for index in range(2):
        snapshot = fork_snapshot(viewer.snapshot("parent", 1), fork_seed(CASE.seed, 2, str(index)))
        siblings = ("again-0", "again-1") if with_kin else ()
        viewer.engine.add_request(
            CASE.request(f"again-{index}"), ResumePoint(snapshot), siblings=siblings
        )
    viewer.finish()
    for index in range(2):
        again = viewer.latents(f"again-{index}", range(2, 4))
        assert torch.equal(again, viewer.latents(f"child-{index}", range(2, 4)))


def test_a_sibling_that_cannot_be_opened_takes_nobodys_history_with_it(
    tmp_path: Path, view: View
) -> None:
    """The session that is opened first should write the shared blocks, but fails before."""
    viewer = view()
    viewer.engine.add_request(replace(CASE, chunks=2).request("parent"))
    viewer.finish()
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    bad = str(tmp_path / "bad.safetensors")
    snapshot, siblings = viewer.snapshot("parent", 1), ("bad", "good")
    viewer.engine.add_request(CASE.request("alone"), ResumePoint(snapshot))
    viewer.finish()
    viewer.engine.add_request(
        CASE.request("bad", lora=bad), ResumePoint(snapshot), siblings=siblings
    )
    viewer.engine.add_request(CASE.request("good"), ResumePoint(snapshot), siblings=siblings)
    viewer.finish()
    assert viewer.failures.keys() == {"bad"}
    assert torch.equal(viewer.latents("good", range(2, 4)), viewer.latents("alone", range(2, 4)))


def test_only_a_running_video_with_a_finished_chunk_can_be_forked(view: View) -> None:
    viewer = view()
    viewer.engine.add_request(CASE.request("young"))
    for name in ("young", "unknown"):
        with pytest.raises(InvalidRequestError, match="expected a running video with a finished"):
            viewer.engine.fork_point(name)


def switch(viewer: Viewer, *prompts: str, transition: int | None = None) -> None:
    """Switch video "a" to several prompts. It is paused until they are encoded."""
    viewer.engine.scheduler.pause("a")
    told = len(viewer.switches.setdefault("a", []))
    for prompt in prompts:
        viewer.engine.switch_prompt("a", prompt, transition)
    viewer.wait(lambda: len(viewer.switches["a"]) == told + len(prompts))
    viewer.engine.scheduler.resume("a")


@pytest.mark.parametrize(
    ("start", "chunk", "transition"),
    [((0, 0, 0), 1, None), ((1, 1, 0), 2, 0), ((2, 0, 0), 2, 2), ((2, 2, 0), 3, 1)],
)
def test_a_live_switch_is_one_that_was_asked_for_in_the_beginning(
    start: tuple[int, int, int],
    chunk: int,
    transition: int | None,
    model: LoadedModel,
    view: View,
    whole: Whole,
) -> None:
    viewer = view()
    scheduler = viewer.engine.scheduler
    schedule = scheduler.schedule
    session = viewer.engine.add_request(CASE.request("a"))

    def schedule_up_to_start(worker: WorkerState) -> SchedulerOutput:
        """Several plans may be sent at once, but no step from `start` on."""
        if session.cursor == start:
            scheduler.pause("a")
        return schedule(worker)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "schedule", schedule_up_to_start)
        viewer.wait(lambda: session.cursor >= start)
    assert session.cursor == start
    switch(viewer, NEW, transition=transition)
    viewer.finish()
    asked = PromptSwitch(chunk, NEW, transition)
    assert viewer.switches == {"a": [asked]}
    given = replace(CASE, switches=(asked,))
    assert torch.equal(viewer.latents("a", range(4)), whole(model, given))


def test_a_prompt_that_another_video_has_takes_effect_at_once(
    model: LoadedModel, view: View, whole: Whole
) -> None:
    viewer = view()
    viewer.engine.add_request(replace(CASE, prompt=NEW).request("other"))
    session = viewer.engine.add_request(CASE.request("a"))
    viewer.wait(lambda: session.cursor >= (1, 1, 0))
    viewer.engine.switch_prompt("a", NEW, 0)
    assert session.request.params.switches == (PromptSwitch(2, NEW, 0),)
    viewer.finish()
    assert viewer.switches == {"a": [PromptSwitch(2, NEW, 0)]}
    given = replace(CASE, switches=(PromptSwitch(2, NEW, 0),))
    assert torch.equal(viewer.latents("a", range(4)), whole(model, given))


def test_a_switch_that_comes_too_late_changes_nothing(
    model: LoadedModel, view: View, whole: Whole
) -> None:
    viewer = view()
    session = viewer.engine.add_request(CASE.request("a"))
    viewer.wait(lambda: session.cursor >= (3, 1, 0))
    switch(viewer, NEW)
    viewer.finish()
    assert viewer.switches == {"a": [None]}
    assert torch.equal(viewer.latents("a", range(4)), whole(model, CASE))


def test_only_a_video_in_the_making_can_be_switched(view: View) -> None:
    viewer = view()
    session = viewer.engine.add_request(CASE.request("a"))
    with pytest.raises(InvalidRequestError, match="lone surrogate"):
        viewer.engine.switch_prompt("a", "\ud800")
    viewer.wait(lambda: session.is_planned)
    for name in ("a", "unknown"):
        with pytest.raises(InvalidRequestError, match="expected a running video"):
            viewer.engine.switch_prompt(name, NEW)
    viewer.finish()
    with pytest.raises(InvalidRequestError, match="expected a running video"):
        viewer.engine.switch_prompt("a", NEW)
    assert not viewer.switches


class Failing:
    """A part of a model that raises where `trigger` finds something in its first argument."""

    def __init__(self, part: Any, trigger: Callable[[Any], bool]) -> None:
        self.part, self.trigger = part, trigger

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)

    def encode(self, item: Any, *rest: Any) -> Any:
        if self.trigger(item):
            raise RuntimeError("a bad input")
        return self.part.encode(item, *rest)


def with_bad_prompt(model: LoadedModel) -> LoadedModel:
    encoder: Any = Failing(model.text_encoder, lambda text: text == "bad")
    return model._replace(text_encoder=encoder)


def test_inputs_that_cannot_be_encoded_fail_their_session_alone(
    model: LoadedModel, view: View, whole: Whole
) -> None:
    vae: Any = Failing(model.vae, lambda pixels: len(pixels) == 1)
    viewer = view(with_bad_prompt(model)._replace(vae=vae))
    viewer.engine.add_request(replace(CASE, task="i2v").request("image"))
    viewer.engine.add_request(replace(CASE, prompt="bad").request("prompt"))
    later = replace(CASE, switches=(PromptSwitch(3, "bad"),))
    viewer.engine.add_request(later.request("later prompt"))
    viewer.engine.add_request(CASE.request("good"))
    viewer.finish()
    message = "encoding failed: RuntimeError: a bad input"
    assert viewer.failures == dict.fromkeys(("image", "prompt", "later prompt"), message)
    assert torch.equal(viewer.latents("good", range(4)), whole(model, CASE))


def test_a_live_switch_that_cannot_be_encoded_is_dropped_and_later_ones_are_not(
    model: LoadedModel, view: View, whole: Whole
) -> None:
    viewer = view(with_bad_prompt(model))
    session = viewer.engine.add_request(CASE.request("a"))
    switch(viewer, "bad")
    viewer.wait(lambda: session.cursor >= (1, 1, 0))
    switch(viewer, "bad", NEW)
    viewer.finish()
    assert not viewer.failures
    asked = PromptSwitch(2, NEW)
    assert viewer.switches == {"a": [None, None, asked]}
    given = replace(CASE, switches=(asked,))
    assert torch.equal(viewer.latents("a", range(4)), whole(model, given))
