"""Reference files and folders of users, valid and invalid."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helios_serve.errors import InvalidRequestError
from helios_serve.media import references, video_file
from helios_serve.media.mp4 import Mp4Writer, as_array
from helios_serve.media.references import (
    load_image,
    load_reference,
    load_video,
    load_video_ends,
)
from helios_serve.video_request import Frames


def write_image(path: Path, width: int, height: int, **options: Any) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_video(path: Path, count: int) -> Path:
    with Mp4Writer(path, fps=24) as writer:
        for start in range(0, count, 33):
            part = min(33, count - start)
            writer.append(Frames(bytes(part * 64 * 128 * 3), part, 64, 128))
    return path


def test_an_image_of_the_right_size_is_taken_as_it_is(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image.png", 128, 64)
    frames = load_image(path, width=128, height=64)
    assert (as_array(frames)[0] == np.asarray(Image.open(path))).all()


def test_an_image_is_scaled_to_cover_and_cut_in_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    frames = as_array(load_image(tmp_path / "image.png", width=64, height=64))
    assert frames.shape == (1, 64, 64, 3)
    assert frames.min() > 240


def test_an_image_is_turned_as_its_camera_was_held(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, :64] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png", exif=exif)
    frame = as_array(load_image(tmp_path / "image.png", width=64, height=128))[0]
    assert frame[:60].min() > 250
    assert frame[68:].max() < 5


def test_a_video_file_and_a_folder_of_images_are_read_in_order(tmp_path: Path) -> None:
    video = load_video(write_video(tmp_path / "video.mp4", 40), width=128, height=64)
    assert video.count == 40
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(33):
        Image.new("RGB", (128, 64), (index, 0, 0)).save(folder / f"{index:03}.png")
    frames = as_array(load_video(folder, width=128, height=64))
    assert frames[:, 0, 0, 0].tolist() == list(range(33))


def test_a_video_is_turned_as_its_camera_was_held(tmp_path: Path) -> None:
    """Phones store frames lying down and turn them by the matrix of the track's header."""
    path = tmp_path / "video.mp4"
    pixels = np.zeros((33, 64, 128, 3), np.uint8)
    pixels[:, :, :64] = 255
    with Mp4Writer(path, fps=24) as writer:
        writer.append(Frames(pixels.tobytes(), 33, 64, 128))
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    quarter_turn = (0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    struct.pack_into(">9i", data, matrix, *quarter_turn)
    path.write_bytes(data)
    frame = as_array(load_video(path, width=64, height=128))[0]
    assert frame[:50].min() > 240
    assert frame[78:].max() < 15


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_unreadable_media_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "media"
    path.write_bytes(content)
    for load in (load_image, load_video):
        with pytest.raises(InvalidRequestError, match=r"media: got .*, expected "):
            load(path, width=128, height=64)


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", b"RIFF\x24\0\0\0WAVEfmt ", b"<svg/>"]
)
def test_a_file_that_is_neither_image_nor_video_is_told_both(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    both = r"photo\.png: got an unsupported .*, expected an image such as PNG.*, or a video such as"
    with pytest.raises(InvalidRequestError, match=both):
        load_reference(path, width=128, height=64)


def test_missing_and_empty_references_are_refused(tmp_path: Path) -> None:
    for load in (load_image, load_video):
        with pytest.raises(InvalidRequestError, match="no such file"):
            load(tmp_path / "nothing", width=128, height=64)
    with pytest.raises(InvalidRequestError, match="a folder without images"):
        load_video(tmp_path, width=128, height=64)


def test_too_short_and_too_long_videos_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "video.mp4", 32)
    with pytest.raises(InvalidRequestError, match="got a video of 32 frames, expected at least 33"):
        load_video(path, width=128, height=64)
    monkeypatch.setattr(references, "MAX_BYTES", 20 * 128 * 64 * 3 + 100)
    with pytest.raises(InvalidRequestError, match="got more than 20 frames, .* at 128x64"):
        load_video(path, width=128, height=64)


def test_huge_images_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (16385, 16)).save(path)
    with pytest.raises(InvalidRequestError, match="got 16385x16 pixels"):
        load_image(path, width=128, height=64)
    Image.new("1", (9000, 9000)).save(path)
    with pytest.raises(InvalidRequestError, match="at most 64000000 pixels"):
        load_image(path, width=128, height=64)


def test_files_that_name_other_files_are_refused(tmp_path: Path) -> None:
    """Playlists and scripts, which FFmpeg follows to files of the server and other hosts."""
    video = write_video(tmp_path / "video.mp4", 40)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.6,\n{video}\n#EXT-X-ENDLIST\n"
    for content in (playlist, f"ffconcat version 1.0\nfile {video.name}\n"):
        path = tmp_path / "other"
        path.write_text(content)
        with pytest.raises(InvalidRequestError, match=r"other: got .*, expected "):
            load_video(path, width=128, height=64)


def test_pictures_that_start_programs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 64)).save(path, "EPS")
    with pytest.raises(InvalidRequestError, match="got an unsupported file format"):
        load_image(path, width=128, height=64)


def test_videos_that_last_too_long_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once by the stated duration, otherwise by the number of frames."""
    path = write_video(tmp_path / "video.mp4", 72)
    monkeypatch.setattr(references, "MAX_FRAMES", 71)
    with pytest.raises(InvalidRequestError, match="got more than 71 frames, expected at most 71"):
        load_video_ends(path, width=128, height=64)
    monkeypatch.setattr(video_file, "MAX_SECONDS", 2)
    with pytest.raises(InvalidRequestError, match="got a video of 3 seconds, expected at most 2"):
        load_video_ends(path, width=128, height=64)
