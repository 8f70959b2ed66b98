"""Predictions add up, and say what bounds a layout."""

import pytest

from helios_serve.core.gpus import Gpu
from helios_serve.core.prediction import (
    CHUNK_GAP,
    Amounts,
    ChunkWork,
    Layout,
    layouts,
    predict,
    rate_of,
)
from helios_serve.model_config import CHUNK_FRAMES

GPU = Gpu("one of round numbers", 80, 1e12, 1e12, 1e12, 1e11, fp8_speedup=2.0)
WORK = ChunkWork(Amounts(attention=1e12), Amounts(attention=0.25e12), exchanged=4e10)
"""One second of denoising and a quarter of decoding, without launches."""


def test_work_adds_up() -> None:
    one = Amounts(1.0, 2.0, 3.0, 4.0, 5)
    assert one.plus(one) == one.times(2) == Amounts(2.0, 4.0, 6.0, 8.0, 10)


def test_each_kind_has_its_rate_and_fp8_is_for_matmuls() -> None:
    work = Amounts(1e12, 1e12, 1e12, 1e12, 1000)
    plain, fp8 = predict(work, GPU), predict(work, GPU, fp8=True)
    assert fp8._replace(matmul=2 * fp8.matmul) == plain
    assert plain.total == pytest.approx(sum(plain))
    half = predict(work, GPU, ranks=2)
    assert half.gaps == plain.gaps, "each rank launches every kernel"
    assert half.attention == plain.attention / 2


def test_one_gpu_denoises_and_decodes_in_turns() -> None:
    rate = rate_of(Layout("", "", 1), WORK, GPU)
    assert rate.total_fps == rate.session_fps == CHUNK_FRAMES / (1.25 + CHUNK_GAP)


def test_a_decoder_of_its_own_takes_decoding_off_the_session() -> None:
    rate = rate_of(Layout("", "", 3, decoders=1), WORK, GPU)
    assert rate.session_fps == CHUNK_FRAMES / (1 + CHUNK_GAP)
    assert rate.total_fps == pytest.approx(3 * rate.session_fps)
    assert rate.bound == "denoising"
    rate = rate_of(Layout("", "", 6, decoders=1), WORK, GPU)
    assert (rate.total_fps, rate.bound) == (4 * CHUNK_FRAMES, "decoding")


def test_ranks_send_what_they_do_not_keep() -> None:
    """Of its half of 40 GB, each of two ranks sends a half, at 100 GB/s."""
    rate = rate_of(Layout("", "", 1, ranks=2), WORK, GPU)
    assert rate.session_fps == pytest.approx(CHUNK_FRAMES / (0.5 + 0.1 + CHUNK_GAP + 0.25))


def test_realtime_sessions_stay_on_their_worker() -> None:
    """Two workers of 26 frames/s have room for one session of 24 each, not for two of 25."""
    rate = rate_of(Layout("", "", 2), WORK, GPU)
    assert rate.worker_fps == pytest.approx(26.2, abs=0.1)
    assert [rate.realtime_sessions(fps) for fps in (13, 24, 25, 27)] == [4, 2, 2, 0]
    slow = rate_of(Layout("", "", 6, decoders=1), WORK, GPU)
    assert slow.realtime_sessions(24) == 132 // 24, "as many as the decoder has time for"


def test_layouts_use_all_gpus_and_divide_heads() -> None:
    for count in (1, 2, 6, 8):
        for layout in layouts(count, heads=40):
            assert layout.denoisers * layout.ranks + layout.decoders == count
            assert 40 % layout.ranks == 0
    assert [layout.name for layout in layouts(6, heads=40)] == [
        "data parallel",
        *(f"decode on {number} of 6" for number in (1, 2, 3)),
        "context parallel 2",
    ]
