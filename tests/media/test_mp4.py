"""Videos written chunk by chunk, read back with FFmpeg's own reader."""

import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from helios_serve.media.mp4 import Mp4Writer, encode_chunk
from helios_serve.video_request import Frames

HEIGHT, WIDTH, FPS = 64, 128, 24
LEVELS, LEVEL_STEP = 32, 8

KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from helios_serve.media.mp4 import Mp4Writer
from helios_serve.video_request import Frames
with Mp4Writer(Path(sys.argv[1]), fps=24) as writer:
    for _ in range(2):
        writer.append(Frames(bytes(33 * 64 * 128 * 3), 33, 64, 128))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def gray_ramp(first: int, count: int) -> Frames:
    """Return gray frames whose level encodes their number, modulo 32."""
    levels = (np.arange(first, first + count) % LEVELS * LEVEL_STEP).astype(np.uint8)
    pixels = np.broadcast_to(levels[:, None, None, None], (count, HEIGHT, WIDTH, 3))
    return Frames(pixels.tobytes(), count, HEIGHT, WIDTH)


def all_frames(count: int) -> tuple[list[int], list[int]]:
    """Return the expected result of `read_back` for a complete video."""
    return [index % LEVELS for index in range(count)], list(range(count))


def read_back(path: Path) -> tuple[list[int], list[int]]:
    """Decode a file, and return the numbers and presentation times (in frames) of all frames."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == FPS
        frames = list(container.decode(stream))
    numbers = [round(frame.to_ndarray(format="rgb24").mean() / LEVEL_STEP) for frame in frames]
    return numbers, [round(frame.time * FPS) for frame in frames]


def test_a_finished_file_has_every_frame_once_and_in_time(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    with Mp4Writer(path, fps=FPS) as writer:
        for first, count in ((0, 33), (33, 33), (66, 7)):
            writer.append(gray_ramp(first, count))
    assert read_back(path) == all_frames(73)
    data = path.read_bytes()
    assert b"moof" not in data
    assert data.index(b"moov") < data.index(b"mdat")
    assert [entry.name for entry in tmp_path.iterdir()] == ["video.mp4"]


def test_a_growing_file_plays_after_every_chunk(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    with Mp4Writer(path, fps=FPS) as writer:
        for chunk in range(3):
            writer.append(gray_ramp(33 * chunk, 33))
            assert read_back(path) == all_frames(33 * (chunk + 1))


def test_a_killed_writer_leaves_its_finished_chunks(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(read_back(path)[0]) == 66


def test_a_writer_that_fails_before_its_first_chunk_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    for content in (None, b"an older video"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(RuntimeError), Mp4Writer(path, fps=FPS):
            raise RuntimeError
        assert (path.read_bytes() if path.exists() else None) == content


def test_encoding_a_chunk_again_gives_the_same_bytes() -> None:
    first, again = (encode_chunk(gray_ramp(33, 33), chunk=1, fps=FPS) for _ in range(2))
    assert first == again
    assert encode_chunk(gray_ramp(0, 33), chunk=0, fps=FPS).header == first.header


def test_more_frames_than_a_chunk_are_refused() -> None:
    with pytest.raises(ValueError, match="got 34 frames, expected 1 to 33"):
        encode_chunk(gray_ramp(0, 34), chunk=0, fps=FPS)


def test_colours_survive(tmp_path: Path) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 120, 40]], np.uint8)
    pixels = np.broadcast_to(colours[:, None, None], (4, HEIGHT, WIDTH, 3))
    path = tmp_path / "video.mp4"
    with Mp4Writer(path, fps=FPS) as writer:
        writer.append(Frames(pixels.tobytes(), 4, HEIGHT, WIDTH))
    with av.open(str(path)) as container:
        decoded = [frame.to_ndarray(format="rgb24")[32, 64] for frame in container.decode(video=0)]
    assert np.abs(np.stack(decoded).astype(int) - colours).max() <= 4
