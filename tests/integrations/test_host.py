"""The engine inside another server, called from its threads."""

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch import Tensor, cat, equal

from helios_serve.engine.requests.chunk_stream import VideoChunk
from helios_serve.errors import EngineDeadError, InvalidRequestError, RequestFailedError
from helios_serve.integrations.host import EngineHost
from helios_serve.integrations.settings import EngineSettings
from helios_serve.model_executor.models.vae import Vae
from helios_serve.model_executor.worker.tensors import as_tensor
from helios_serve.options.workers import WorkerOptions
from tests.support.engines import colours, request

SETTINGS = EngineSettings(
    worker=WorkerOptions(device="cpu", batch_invariant=True, history_blocks=500)
)


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Pictures are the latents' colours: decoding would take most of a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Vae, "decode", lambda _, latents: colours(latents))
        yield


@pytest.fixture(scope="module")
def host() -> Iterator[EngineHost]:
    started = EngineHost("nano", SETTINGS)
    started.wait_ready()
    yield started
    started.close()


def latents(chunks: list[VideoChunk]) -> Tensor:
    return cat([as_tensor(chunk.latents) for chunk in chunks if chunk.latents], dim=2)


def test_videos_are_read_from_several_threads(host: EngineHost) -> None:
    def make(name: str) -> Tensor:
        return latents(list(host.submit(request(name, frames=66)).chunks()))

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(make, ("a", "b", "c"))
    assert first.shape[2] == 18
    assert all(equal(first, other) for other in others)


def test_a_video_goes_on_from_a_snapshot(host: EngineHost) -> None:
    whole = list(host.submit(request("whole", frames=99)).chunks())
    snapshot = whole[0].snapshot
    rest = list(host.submit(request("rest", frames=99), continue_from=snapshot).chunks())
    assert [chunk.index for chunk in rest] == [1, 2]
    assert equal(latents(rest), latents(whole[1:]))


def test_a_prompt_is_switched_at_the_announced_chunk(host: EngineHost) -> None:
    plain = list(host.submit(request("plain", frames=165)).chunks())
    video = host.submit(request("turning", frames=165, max_lead_chunks=1))
    switch = video.switch_prompt("a red ball over a field", 0).result()
    turned = list(video.chunks())
    same = [equal(latents([old]), latents([new])) for old, new in zip(plain, turned, strict=True)]
    assert same.index(False) == switch.chunk
    with pytest.raises(InvalidRequestError, match="expected one that is running"):
        video.switch_prompt("a bird").result()


def test_an_aborted_video_ends_for_its_reader_and_frees_its_blocks(host: EngineHost) -> None:
    video = host.submit(request("long", frames=6600))
    assert video.next_chunk().result() is not None
    video.abort()
    with pytest.raises(RequestFailedError, match="cancelled"):
        list(video.chunks())
    deadline = time.monotonic() + 10
    while host.stats().scheduler.used_blocks:
        assert time.monotonic() < deadline


def test_what_is_wrong_is_told_to_who_asks(host: EngineHost) -> None:
    with pytest.raises(InvalidRequestError, match="got size 100x64"):
        host.submit(request("odd", width=100))
    assert host.failure is None


def test_a_closed_host_takes_nothing_more() -> None:
    host = EngineHost("nano", SETTINGS)
    host.close()
    host.close()
    with pytest.raises(EngineDeadError, match="the engine is closed"):
        host.submit(request("late"))
    assert host.failure == "the engine is closed"


def test_a_worker_that_cannot_start_is_told() -> None:
    host = EngineHost("nano", EngineSettings(worker=WorkerOptions(device="cuda:7")))
    try:
        with pytest.raises(EngineDeadError, match="got device 'cuda:7'"):
            host.wait_ready()
    finally:
        host.close()


def test_a_host_without_workers_is_dead_after_a_while() -> None:
    """Its workers were ready before, so they are restarted, but cannot start."""
    options = {"executor": "local", "device": "cpu", "exit_without_workers": 0.5}
    host = EngineHost("nano", EngineSettings.read(options, "test"))
    reasons: list[str] = []
    host.on_failure(reasons.append)
    try:
        host.wait_ready()
        assert host.failure is None
        deadline = time.monotonic() + 120
        while host.failure is None:
            assert time.monotonic() < deadline
            for child in multiprocessing.active_children():
                child.kill()
            time.sleep(0.05)
        assert "no worker can encode: " in host.failure
        while not reasons:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert reasons == [host.failure]
    finally:
        host.close()


def test_settings_are_plain_values() -> None:
    settings = EngineSettings.read(
        {
            "workers": ["2:denoise", "1:encode+decode"],
            "ray_address": "auto",
            "decode_dtype": "bfloat16",
            "compile_sizes": ["640x384"],
            "quantization": "fp8",
            "offload": True,
        },
        "helios",
    )
    assert settings.executor_kind == "ray"
    groups = settings.worker_groups("nano")
    assert [group.count for group in groups] == [2, 1]
    configs = [group.config for group in groups]
    assert {config.compile_sizes for config in configs} == {("640x384",)}
    assert {(config.decode_dtype, config.quantization, config.offload) for config in configs} == {
        ("bfloat16", "fp8", True)
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": 1}, "helios: got unknown option 'colour', expected one of: workers, executor"),
        ({"executor": "mp"}, "helios: got executor 'mp', expected inline or local or ray"),
        ({"quantization": "fp4"}, "helios: got quantization 'fp4', expected fp8"),
        ({"workers": ["x"]}, "got workers 'x', expected N, N:ROLES"),
        ({"workers": ["1:denoise"]}, "got no worker to encode or decode"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        EngineSettings.read(options, "helios").worker_groups("nano")
