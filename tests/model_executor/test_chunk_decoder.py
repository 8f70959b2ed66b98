"""Decode tasks in flight on a worker: made and encoded at the same time, in their order."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Colorspace
from torch import Tensor

from helios_serve.kernels.registry import REFERENCE
from helios_serve.messages import (
    ChunkDecoded,
    ChunkRendered,
    DecodeTask,
    LatentsMissing,
    TensorData,
)
from helios_serve.model_executor.models.wan_vae.causal_conv import CausalState
from helios_serve.model_executor.models.yuv import yuv420
from helios_serve.model_executor.streams import DeviceStreams
from helios_serve.model_executor.worker import chunk_decoder
from helios_serve.model_executor.worker.chunk_decoder import ChunkDecoder
from helios_serve.model_executor.worker.decoder_states import IDLE_SECONDS, DecoderStates
from helios_serve.model_executor.worker.kept_latents import KeptLatents
from helios_serve.model_executor.worker.tensors import as_bytes, as_data
from helios_serve.options.workers import CHUNKS_WAITING
from helios_serve.size import Size
from helios_serve.video_request import OutputKind
from tests.support.late_device import LateDevice

Event = ChunkDecoded | ChunkRendered | LatentsMissing
PATIENCE = 20.0


class GrayVae:
    """Renders frames of one shade, that of the latents, and keeps the shades.

    With a state, the shades of the chunks before are added.
    """

    def __init__(self) -> None:
        self.made: list[float] = []

    def new_state(self) -> CausalState:
        return CausalState(REFERENCE.norm_silu)

    def render(self, latents: Tensor, state: CausalState | None = None) -> Tensor:
        shade = float(latents.flatten()[0])
        if state is not None:
            shade += float(state.frames.get("shade", 0.0))
            state.frames["shade"] = torch.tensor(shade)
        if float(latents.flatten()[0]) < 0:
            raise RuntimeError("no frames")
        self.made.append(shade)
        return torch.full((33, 32, 32, 3), int(shade), dtype=torch.uint8)


class Decoding:
    """A decoder and the events that it emits."""

    def __init__(self, streams: DeviceStreams, states: DecoderStates | None = None) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.vae = GrayVae()
        self.kept = KeptLatents(streams)
        self.decoder = ChunkDecoder(self.vae, self.events.put, self.kept, streams, states)
        self.tasks: queue.SimpleQueue[DecodeTask | None] = queue.SimpleQueue()

    @contextmanager
    def running(self) -> Iterator["Decoding"]:
        with self.decoder.running(self.tasks):
            yield self
            self.tasks.put(None)

    def put(
        self,
        chunk: int,
        shade: float | None,
        output: OutputKind = "frames",
        *,
        session: str = "a",
        **fields: Any,
    ) -> None:
        latents = None if shade is None else latents_of(shade)
        self.tasks.put(DecodeTask(session, chunk, latents, 33, 24, output, **fields))

    def next(self) -> Event:
        return self.events.get(timeout=PATIENCE)

    def decoded(self) -> ChunkDecoded:
        """The next result, after the frames that it is made of."""
        while not isinstance(event := self.next(), ChunkDecoded):
            assert isinstance(event, ChunkRendered)
        return event


def latents_of(shade: float) -> TensorData:
    return as_data(torch.full((1, 16, 9, 4, 4), shade))


@pytest.fixture(params=["cpu", "late"])
def decoding(request: pytest.FixtureRequest) -> Decoding:
    return Decoding(LateDevice() if request.param == "late" else DeviceStreams(torch.device("cpu")))


def test_a_chunk_is_rendered_and_then_encoded(decoding: Decoding) -> None:
    with decoding.running():
        decoding.put(0, 7.0)
        rendered, decoded = decoding.next(), decoding.next()
    assert isinstance(rendered, ChunkRendered)
    assert isinstance(decoded, ChunkDecoded)
    assert decoded.frames is not None
    assert set(decoded.frames.data) == {7}
    assert decoded.seconds >= rendered.seconds > 0


@pytest.mark.parametrize("shown", [None, Size(16, 16)])
def test_segments_show_the_frames(decoding: Decoding, shown: Size | None) -> None:
    with decoding.running():
        decoding.put(0, 7.0, "segment", shown_size=shown)
        segment = decoding.decoded().segment
    assert segment is not None
    with av.open(BytesIO(segment.header + segment.fragment), "r") as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 33
    assert frames[0].shape == ((32, 32, 3) if shown is None else (16, 16, 3))
    assert all(np.abs(frame.astype(int) - 7).max() <= 2 for frame in frames)


def test_the_device_renders_while_the_host_encodes_and_no_further_than_that(
    decoding: Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def encode(pixels: Tensor) -> bytes:
        go.wait()
        return as_bytes(pixels)

    monkeypatch.setattr(chunk_decoder, "as_bytes", encode)
    with decoding.running():
        for chunk in range(6):
            decoding.put(chunk, float(chunk))
        most = 1 + CHUNKS_WAITING + 1  # encoded, waiting, rendered
        assert [decoding.next().chunk for _ in range(most)] == [0, 1, 2]
        with pytest.raises(queue.Empty):
            decoding.events.get(timeout=0.1)
        assert decoding.vae.made == [0, 1, 2]
        go.set()
        assert [decoding.decoded().chunk for _ in range(6)] == list(range(6))


def test_a_chunk_that_fails_keeps_its_place(decoding: Decoding) -> None:
    with decoding.running():
        for chunk, shade in enumerate((1.0, -1.0, 2.0)):
            decoding.put(chunk, shade)
        results = [decoding.decoded() for _ in range(3)]
    assert [result.chunk for result in results] == [0, 1, 2]
    assert [result.error for result in results] == [
        None,
        "decoding failed: RuntimeError: no frames",
        None,
    ]


def test_latents_that_were_kept_are_used_and_others_asked_for(decoding: Decoding) -> None:
    decoding.kept.put("a", 1, torch.full((16, 9, 4, 4), 5.0))
    with decoding.running():
        decoding.put(0, None)
        assert decoding.next() == LatentsMissing("a", 0)
        decoding.put(1, None)
        assert set(frame_bytes(decoding.decoded())) == {5}
        decoding.put(0, 3.0)
        assert set(frame_bytes(decoding.decoded())) == {3}


def continuous(max_bytes: int = 1 << 20, clock: Callable[[], float] = lambda: 0.0) -> Decoding:
    """Decodes chunks as what continues the chunk before. A state has four bytes."""
    streams = DeviceStreams(torch.device("cpu"))
    return Decoding(streams, DecoderStates(max_bytes, clock))


def test_a_chunk_continues_the_one_before_it_and_no_other() -> None:
    """A chunk that is not next, as after a restart or a move to this worker, is decoded alone."""
    decoding = continuous()
    with decoding.running():
        for chunk in (0, 1, 2, 5, 6, 0, 1):
            decoding.put(chunk, 1.0)
        for chunk in (0, 1):
            decoding.put(chunk, 10.0, session="b")
        for _ in range(9):
            decoding.decoded()
    assert decoding.vae.made == [1, 2, 3, 1, 2, 1, 2, 10, 20]


def test_the_chunk_after_one_that_failed_is_decoded_alone() -> None:
    decoding = continuous()
    with decoding.running():
        for chunk, shade in enumerate((1.0, -1.0, 1.0, 1.0)):
            decoding.put(chunk, shade)
        errors = [decoding.decoded().error is not None for _ in range(4)]
    assert errors == [False, True, False, False]
    assert decoding.vae.made == [1, 1, 2]


def test_nothing_is_kept_after_the_last_chunk() -> None:
    decoding = continuous()
    with decoding.running():
        decoding.put(0, 1.0)
        decoding.put(1, 1.0, is_last=True)
        for _ in range(2):
            decoding.decoded()
    states = decoding.decoder.states
    assert states is not None
    assert states.num_bytes == 0


def test_states_that_are_in_use_are_not_displaced_and_idle_ones_are() -> None:
    now = [0.0]
    decoding = continuous(max_bytes=8, clock=lambda: now[0])
    with decoding.running():

        def decode(chunk: int, sessions: str) -> list[float]:
            for name in sessions:
                decoding.put(chunk, 1.0, session=name)
            for _ in sessions:
                decoding.decoded()
            return decoding.vae.made[-len(sessions) :]

        assert decode(0, "abc") == [1, 1, 1]
        now[0] += IDLE_SECONDS - 1
        assert decode(1, "cba") == [1, 2, 2]
        now[0] += IDLE_SECONDS - 1
        assert decode(2, "b") == [3]
        now[0] += 2
        assert decode(2, "c") == [1]  # in place of that of a
        assert decode(3, "cb") == [2, 4]
        assert decode(2, "a") == [1]


def frame_bytes(decoded: ChunkDecoded) -> bytes:
    assert decoded.frames is not None
    return decoded.frames.data


@pytest.mark.parametrize("size", [(32, 48), (34, 18)])
def test_yuv_is_what_swscale_makes(size: tuple[int, int]) -> None:
    """To one level: both round, and swscale in 15 bits."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, height, width, 3), generator=generator)
    ramp = torch.arange(3 * height * width * 3).view_as(noise) // 7 % 256
    for frames in (noise, ramp):
        pixels = frames.to(torch.uint8)
        planes = yuv420(pixels)
        assert planes.shape == (3, height * 3 // 2, width)
        for made, picture in zip(planes, pixels, strict=True):
            frame = av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709
            )
            expected = torch.from_numpy(frame.to_ndarray().astype(int))
            assert (made.int() - expected).abs().max() <= 1
