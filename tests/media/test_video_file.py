"""Video files of users: orientation, color, timing and truncation."""

import io
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc
from numpy.typing import NDArray
from PIL import Image

from helios_serve.errors import InvalidRequestError
from helios_serve.media.mp4 import as_array
from helios_serve.media.references import (
    Reference,
    image_files,
    load_reference,
    load_video,
    load_video_ends,
)
from helios_serve.media.video_file import decoded, read_frames, resampled
from tests.support.broken_media import sound
from tests.support.picture_files import encoded, quarters, write
from tests.support.video_files import (
    COUNT,
    Pixels,
    boxed,
    counted,
    matroska_with_cover,
    plain,
    still,
    video,
    with_matrix,
)

TURNS: dict[str, tuple[tuple[int, int, int, int], Callable[[Pixels], Pixels]]] = {
    "as it is": ((1, 0, 0, 1), lambda pixels: pixels),
    "by 90": ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),
    "by 180": ((-1, 0, 0, -1), lambda pixels: np.rot90(pixels, 2)),
    "by 270": ((0, -1, 1, 0), lambda pixels: np.rot90(pixels)),
    "mirrored left-right": ((-1, 0, 0, 1), lambda pixels: pixels[:, ::-1]),
    "mirrored top-bottom": ((1, 0, 0, -1), lambda pixels: pixels[::-1]),
    "mirrored, by 90": ((0, 1, 1, 0), lambda pixels: pixels.transpose(1, 0, 2)),
    "mirrored, by 270": ((0, -1, -1, 0), lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2)),
    "nothing": ((0, 0, 0, 0), lambda pixels: pixels),
}
"""Display matrices (a, b, c, d), and what they mean as operations on rows and columns."""


def frames(path: Path, data: bytes, width: int = 128, height: int = 64) -> NDArray[np.uint8]:
    return as_array(load_video(write(path, data), width=width, height=height))


def levels(path: Path, data: bytes) -> list[int]:
    """Return the number of each frame of a video made by `counted`."""
    got = frames(path, data).mean(axis=(1, 2, 3))
    return [round((float(level) - 40) / 4) for level in got]


def color(path: Path, data: bytes) -> list[int]:
    return [int(value) for value in frames(path, data)[0, 32, 64]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "video"


@pytest.mark.parametrize("name", TURNS)
def test_videos_are_turned_and_mirrored_by_their_matrix(name: str, path: Path) -> None:
    matrix, turned = TURNS[name]
    expected = turned(np.asarray(quarters()))
    height, width = expected.shape[:2]
    got = frames(path, with_matrix(video(still()), *matrix), width, height)[0]
    assert np.abs(got.astype(int) - expected).mean() < 5


def test_a_video_with_wide_pixels_is_cropped_as_it_is_displayed(path: Path) -> None:
    """128 columns of double width in a square frame: half of them are kept."""
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, 48:80] = 255
    data = video(still(image=Image.fromarray(image)), aspect=Fraction(2, 1))
    got = frames(path, data, 64, 64)[0, 32, :, 0]
    assert got[1:-1].min() > 240
    wide = frames(path, data, 256, 64)[0, 32, :, 0]
    assert (wide > 128).sum() == 64


def test_pixel_aspect_turns_with_the_video(path: Path) -> None:
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, 48:80] = 255
    data = video(still(image=Image.fromarray(image)), aspect=Fraction(2, 1))
    tall = frames(path, with_matrix(data, 0, 1, -1, 0), 64, 256)[0, :, 32, 0]
    assert (tall > 128).sum() == 64


def test_narrow_pixels_and_absurd_ones(path: Path) -> None:
    data = video(still(), aspect=Fraction(1, 2))
    got = frames(path, data, 64, 64)[0]
    assert got[8, 8].tolist() == pytest.approx([255, 0, 0], abs=6)
    assert got[8, -8].tolist() == pytest.approx([0, 255, 0], abs=6)
    with pytest.raises(InvalidRequestError, match="got pixels of 20:1, expected 1:16 to 16:1"):
        frames(path, video(still(), aspect=Fraction(20, 1)))


@pytest.mark.parametrize("attached", [True, False])
def test_a_cover_in_matroska_is_no_video(attached: bool, path: Path) -> None:
    data = matroska_with_cover(attached=attached)
    assert levels(path, data) == list(range(COUNT))
    assert load_video_ends(path, width=64, height=64).count == COUNT


def test_a_disabled_track_is_no_video(path: Path) -> None:
    """Editors keep a proxy in front of the track that is shown."""
    data = bytearray(two_tracks())
    assert levels(path, bytes(data)) == [20] * COUNT
    first = data.find(b"tkhd")
    data[first + 7] &= 0xFE
    data[data.find(b"tkhd", first + 4) + 7] |= 1
    assert levels(path, bytes(data)) == list(range(COUNT))


def two_tracks() -> bytes:
    """Return a video with a dark track before a counted one."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        tracks = []
        for _ in range(2):
            track = output.add_stream("libx264", rate=24)
            assert isinstance(track, av.VideoStream)
            track.width, track.height, track.pix_fmt = 128, 64, "yuv420p"
            tracks.append(track)
        dark = np.full((64, 128, 3), 120, np.uint8)
        for index, pixels in enumerate(counted()):
            for track, content in zip(tracks, (dark, pixels), strict=True):
                frame = av.VideoFrame.from_ndarray(content, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 24)
                output.mux(track.encode(frame))
        for track in tracks:
            output.mux(track.encode())
    return buffer.getvalue()


def test_a_song_with_a_cover_is_named(path: Path) -> None:
    cover = boxed(b"data", struct.pack(">II", 13, 0), encoded(quarters(), "JPEG"))
    data = sound()
    head = boxed(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    tags = boxed(b"meta", bytes(4), head, boxed(b"ilst", boxed(b"covr", cover)))
    at = data.find(b"moov") - 4
    size = struct.unpack_from(">I", data, at)[0]
    udta = boxed(b"udta", tags)
    assert at + size == len(data)
    song = data[:at] + struct.pack(">I", size + len(udta)) + data[at + 4 :] + udta
    with pytest.raises(InvalidRequestError, match="whose only picture is its cover, expected a"):
        frames(path, song)


YUV = (120, 100, 170)
BT601, BT709 = [188, 98, 65], [196, 105, 62]


def wide(
    levels: tuple[int, int, int],
    transfer: ColorTrc,
    *,
    x265: str = "",
    size: tuple[int, int] = (128, 64),
) -> bytes:
    """10-bit frames in BT.2020."""
    return plain(
        levels,
        pixel_format="yuv420p10le",
        size=size,
        matrix=Colorspace.BT2020,
        full_range=False,
        primaries=ColorPrimaries.BT2020,
        transfer=transfer,
        x265=x265,
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (plain(YUV), BT601),
        (plain(YUV, size=(1280, 720)), BT709),
        (plain(YUV, size=(720, 578)), BT709),
        (plain(YUV, size=(1280, 720), matrix=Colorspace.ITU601), BT601),
        (plain(YUV, matrix=Colorspace.ITU709), BT709),
        (plain(YUV, matrix=Colorspace.ITU709, full_range=False), BT709),
        (plain(YUV, matrix=Colorspace.ITU709, full_range=True), [186, 106, 68]),
        (plain(YUV, matrix=Colorspace.ITU601, full_range=True), [179, 100, 70]),
        (plain((16, 128, 128)), [0, 0, 0]),
        (plain((16, 128, 128), full_range=True), [16, 16, 16]),
        (plain((235, 128, 128)), [255, 255, 255]),
        (plain((235, 128, 128), full_range=True), [235, 235, 235]),
        (
            plain((502, 512, 512), pixel_format="yuv420p10le", matrix=Colorspace.ITU709),
            [128, 128, 128],
        ),
        (wide((502, 512, 512), ColorTrc.BT2020_10), [128] * 3),
    ],
    ids=[
        *("small", "large", "tall", "large, says 601", "small, says 709", "limited", "full"),
        *("full, 601", "black", "full black", "white", "full white", "10 bits", "wide gamut"),
    ],
)
def test_matrix_and_range(data: bytes, expected: list[int], path: Path) -> None:
    assert np.abs(np.subtract(color(path, data), expected)).max() <= 3


def code(share: float) -> tuple[int, int, int]:
    """A grey in 10 bits of limited range."""
    return round(64 + 876 * share), 512, 512


MASTERED = (
    "hdr10=1:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)"
    "L({}0000,50):max-cll={},400"
)


@pytest.mark.parametrize(
    ("transfer", "share", "x265", "expected"),
    [
        (ColorTrc.SMPTE2084, 0.0, "", 0),
        (ColorTrc.SMPTE2084, 0.3022, "", 73),  # 10 cd/m2: below the knee, (10 / 203) ** (1 / 2.4)
        (ColorTrc.SMPTE2084, 0.5081, "", 189),  # 100 cd/m2
        (ColorTrc.SMPTE2084, 0.5807, "", 230),  # 203 cd/m2, the white of graphics
        (ColorTrc.SMPTE2084, 0.7518, "", 255),  # 1000 cd/m2
        (ColorTrc.SMPTE2084, 0.5807, MASTERED.format(4000, 4000), 210),
        (ColorTrc.SMPTE2084, 0.5807, MASTERED.format(4000, 203), 255),
        (ColorTrc.ARIB_STD_B67, 0.5, "", 143),
        (ColorTrc.ARIB_STD_B67, 0.75, "", 230),
        (ColorTrc.ARIB_STD_B67, 1.0, "", 255),
    ],
)
def test_hdr_is_mapped_to_sdr(
    transfer: ColorTrc, share: float, x265: str, expected: int, path: Path
) -> None:
    data = wide(code(share), transfer, x265=x265)
    assert np.abs(np.subtract(color(path, data), expected)).max() <= 2


def test_hdr_keeps_hues_and_wide_colors_are_clipped(path: Path) -> None:
    """BT.2020's matrix: the red of BT.709 at 100 cd/m2, in PQ."""
    red = np.array([0.6274, 0.0691, 0.0164]) * 100
    share = (red / 10000) ** 0.1593017578125
    pq = ((0.8359375 + 18.8515625 * share) / (1 + 18.6875 * share)) ** 78.84375
    luma = float(pq @ [0.2627, 0.6780, 0.0593])
    blue, redness = (pq[2] - luma) / 1.8814, (pq[0] - luma) / 1.4746
    levels = (round(64 + 876 * luma), round(512 + 896 * blue), round(512 + 896 * redness))
    got = color(path, wide(levels, ColorTrc.SMPTE2084))
    assert got[0] == pytest.approx(189, abs=6)
    assert max(got[1:]) < 25


def test_hdr_is_read_at_the_size_of_the_video(path: Path) -> None:
    data = wide(code(0.5081), ColorTrc.SMPTE2084, size=(512, 256))
    turned = with_matrix(data, 0, 1, -1, 0)
    for content, width, height in ((data, 128, 64), (data, 64, 128), (turned, 64, 128)):
        got = frames(path, content, width, height)
        assert got.shape == (COUNT, height, width, 3)
        assert np.abs(got.astype(int) - 189).max() <= 2


def test_transparent_videos_show_white(path: Path) -> None:
    red = np.full((64, 128, 4), (255, 0, 0, 0), np.uint8)
    red[:, :32, 3] = 255
    for container, codec, pixel_format in (("matroska", "ffv1", "bgra"), ("mov", "png", "rgba")):
        data = video([red] * COUNT, container=container, codec=codec, pixel_format=pixel_format)
        got = frames(path, data)[0]
        assert got[32, 100].tolist() == [255, 255, 255]
        assert got[32, 10].tolist() == [255, 0, 0]


@pytest.mark.parametrize("first_field", ["tff=1", "bff=1"])
def test_interlaced_videos_have_no_combs(first_field: str, path: Path) -> None:
    """A bar moves between the fields of a frame."""
    pictures = []
    for index in range(COUNT):
        pixels = np.zeros((64, 128, 3), np.uint8)
        first, second = (0, 1) if first_field == "tff=1" else (1, 0)
        for time, parity in ((2 * index, first), (2 * index + 1, second)):
            left = 8 + time
            pixels[parity::2, left : left + 24] = 255
        pictures.append(pixels)
    options = {"x264-params": f"{first_field}:interlaced=1:qp=0"}
    data = video(pictures, pixel_format="yuv422p", options=options)
    got = frames(path, data)[..., 0].astype(int)
    assert len(got) == COUNT
    combed = np.abs(2 * got[:, 1:-1] - got[:, :-2] - got[:, 2:]).mean()
    assert combed < 4
    stored = np.stack(pictures)[..., 0].astype(int)
    assert np.abs(2 * stored[:, 1:-1] - stored[:, :-2] - stored[:, 2:]).mean() > 7


def interlaced_part(width: int, height: int) -> bytes:
    return video(
        counted(20, width, height),
        container="mpegts",
        codec="mpeg2video",
        options={"flags": "+ildct+ilme", "b": "8M"},
    )


@pytest.mark.parametrize("sizes", [((128, 64), (256, 160)), ((256, 160), (64, 48))])
def test_interlaced_broadcasts_may_change_their_size(
    sizes: tuple[tuple[int, int], tuple[int, int]], path: Path
) -> None:
    write(path, b"".join(interlaced_part(*size) for size in sizes))
    shapes = [(frame.width, frame.height) for frame in read_frames(path)]
    assert set(shapes) == set(sizes)
    assert len(shapes) > COUNT
    assert load_video(path, width=128, height=64).count == len(shapes)


def test_a_track_that_appears_late_does_not_end_the_video(path: Path) -> None:
    write(path, video(counted()))
    with av.open(str(path)) as container:

        class LateTrack:
            """A container as PyAV has it after a track has appeared: the last step fails."""

            def demux(self, stream: av.VideoStream) -> "Iterator[av.Packet[av.VideoStream]]":
                yield from container.demux(stream)
                raise IndexError("list index out of range")

        late = cast(av.container.InputContainer, LateTrack())
        assert len(list(decoded(late, container.streams.video[0]))) == COUNT


def test_progressive_frames_stay_as_they_are(path: Path) -> None:
    combed = np.zeros((64, 128, 3), np.uint8)
    combed[::2] = 255
    got = frames(path, video([combed] * COUNT, options={"qp": "0"}))
    assert (got[0, ::2].min(), got[0, 1::2].max()) == (255, 0)


def test_a_variable_rate_is_made_constant(path: Path) -> None:
    """600 units a second, 25 of them a frame at 24 frames/s; frame 9 is shown for 20 intervals."""
    times = [25 * (index if index < 10 else index + 19) for index in range(COUNT)]
    data = video(counted(), times=times, time_base=Fraction(1, 600))
    expected = [*range(9), *[9] * 20, *range(10, COUNT)]
    assert levels(path, data) == expected
    ends = load_video_ends(path, width=128, height=64)
    assert (ends.count, ends.skipped) == (len(expected), 0)


def test_times_in_whole_milliseconds_are_a_constant_rate(path: Path) -> None:
    times = [round(index * 1000 / 29.97) for index in range(COUNT)]
    data = video(counted(), container="matroska", times=times, time_base=Fraction(1, 1000))
    assert levels(path, data) == list(range(COUNT))


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3]),
        ([10, 11, 12, 13], [0, 1, 2, 3]),
        ([0, 1, 2, 5, 6, 7], [0, 1, 2, 2, 2, 3, 4, 5]),
        ([0, 4, 8, 9, 10, 12, 16], [0, 1, 4, 5, 6]),
        ([0, 33, 67, 100, 133, 233, 267], [0, 1, 2, 3, 4, 4, 4, 5, 6]),
        ([0], [0]),
        ([], []),
        ([0, None, 2, 3], [0, 1, 2, 3]),
        ([0, 2, 1, 3], [0, 1, 2, 3]),
    ],
    ids=["constant", "late", "gap", "fast", "jitter", "one", "none", "unknown", "backwards"],
)
def test_frames_to_show_at_a_constant_rate(times: list[int | None], expected: list[int]) -> None:
    exact = [None if time is None else Fraction(time) for time in times]
    assert resampled(exact, 100) == expected


def test_a_gap_of_hours_takes_no_memory() -> None:
    times = [*map(Fraction, range(40)), Fraction(10**12)]
    assert len(resampled(times, 100)) == 101


SHORTENED = {
    "mp4, index in front": {"muxer": {"movflags": "faststart"}},
    "mp4": {},
    "mov": {"container": "mov", "muxer": {"movflags": "faststart"}},
    "fragmented mp4": {"muxer": {"movflags": "frag_keyframe+empty_moov+default_base_moof"}},
    "mkv": {"container": "matroska"},
    "webm": {"container": "webm", "codec": "libvpx"},
    "avi": {"container": "avi", "codec": "mpeg4"},
    "flv": {"container": "flv"},
}


@pytest.mark.parametrize("name", SHORTENED)
def test_a_cut_file_is_noticed(name: str, path: Path) -> None:
    """The rest of the file has more than 33 frames, enough for V2V."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 128, 3), dtype=np.uint8)
    pictures = [np.roll(noise, index * 7, 1) for index in range(60)]
    options = {"g": "12"} if "fragmented" in name else {}
    data = video(pictures, options=options, **SHORTENED[name])  # type: ignore[arg-type]
    assert len(frames(path, data)) == 60
    for share in (0.8, 0.97):
        with pytest.raises(InvalidRequestError, match="got .*, expected "):
            frames(path, data[: int(share * len(data))])
    if name != "mp4":  # its index is at the end
        with pytest.raises(InvalidRequestError, match=r"got \d+ bytes of a video of .* cut off"):
            frames(path, data[: int(0.8 * len(data))])


def test_a_cut_file_is_noticed_by_its_index(path: Path) -> None:
    """A recorder may leave the length open, but offsets in the index reveal the truncation."""
    data = bytearray(video(counted(), muxer={"movflags": "faststart"}, options={"g": "1"}))
    at = data.find(b"mdat") - 4
    data[at : at + 4] = bytes(4)
    assert levels(path, bytes(data)) == list(range(COUNT))
    with pytest.raises(InvalidRequestError, match="this one was cut off"):
        frames(path, bytes(data[: at + 8]))


@pytest.mark.parametrize("name", SHORTENED)
def test_bytes_after_the_end_change_nothing(name: str, path: Path) -> None:
    data = video(still(), **SHORTENED[name])  # type: ignore[arg-type]
    assert len(frames(path, data + b"appended by a tool")) == COUNT


def test_a_live_recording_may_end_anywhere(path: Path) -> None:
    data = video(counted(), container="mpegts")
    assert len(frames(path, data)) == COUNT
    unfinished = bytearray(video(counted(), container="matroska"))
    at = unfinished.find(b"\x18\x53\x80\x67") + 4
    unfinished[at : at + 8] = b"\x01" + b"\xff" * 7
    assert levels(path, bytes(unfinished)) == list(range(COUNT))


def test_frames_of_a_folder_come_in_natural_order(tmp_path: Path) -> None:
    names = [
        *("frame1.png", "frame2.png", "Frame3.PNG", "frame 4.png", "frame10.png", "frame011.png"),
        *("shot2_9.jpg", "shot10_1.jpg", "frame²0.png"),
    ]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    for other in ("._frame1.png", ".hidden.png", "Thumbs.db", "notes.txt"):
        (tmp_path / other).write_bytes(b"no picture")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in image_files(tmp_path)] == [
        *("frame1.png", "frame2.png", "Frame3.PNG", "frame10.png", "frame011.png", "frame 4.png"),
        *("frame²0.png", "shot2_9.jpg", "shot10_1.jpg"),
    ]


def test_a_folder_is_read_in_natural_order_and_a_bad_frame_is_named(tmp_path: Path) -> None:
    for index, pixels in enumerate(counted()):
        Image.fromarray(pixels).save(tmp_path / f"frame_{index}.png")
    got = as_array(load_video(tmp_path, width=128, height=64))
    assert got[:, 0, 0, 0].tolist() == [40 + 4 * index for index in range(COUNT)]
    (tmp_path / "frame_7.png").write_bytes(b"no picture")
    with pytest.raises(InvalidRequestError, match=r"frame_7\.png: got an unsupported file format"):
        load_video(tmp_path, width=128, height=64)


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x"), struct.error("x")])
def test_any_exception_of_a_decoder_is_a_refusal(
    error: Exception, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Reference:
        raise error

    write(path, video(counted()))
    name = type(error).__name__
    for place in ("video_file.check_complete", "video_file.deinterlaced", "references.fit"):
        with monkeypatch.context() as patched:
            patched.setattr(f"helios_serve.media.{place}", lambda *_, **__: fail())
            with pytest.raises(InvalidRequestError, match=f"video: got {name} while decoding"):
                load_reference(path, width=128, height=64, kind="video")
