"""Encodes chunks as segments of a fragmented MP4 and converts the result to a plain MP4.

Each chunk is encoded into a container of its own, so any worker can encode any chunk, and a retry
gives the same bytes. The header (ftyp and moov) is the same for all chunks of a video. The chunk's
position in time and sequence number are patched into its fragment (moof and mdat).
"""

import io
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from helios_serve.messages import Segment
from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.video_request import Frames

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
TICKS_PER_FRAME = 512
CODEC_OPTIONS = {"preset": "veryfast", "crf": "18", "x264-params": "scenecut=0"}
MUXER_OPTIONS = "empty_moov+default_base_moof+frag_keyframe+skip_trailer"


class Box(NamedTuple):
    """A box of an MP4 file: its type and the offsets of its content."""

    kind: bytes
    start: int
    stop: int

    @property
    def whole(self) -> slice:
        """The box with its header."""
        return slice(self.start - 8, self.stop)


def encode_chunk(frames: Frames, *, chunk: int, fps: int) -> Segment:
    """Encode the frames of chunk number `chunk`, counted from 0, as an H.264 segment.

    Raises ValueError for more frames than a chunk has: they would not fit in one fragment.
    """
    return encode_rgb(as_array(frames), chunk=chunk, fps=fps)


def encode_rgb(frames: Pixels, *, chunk: int, fps: int) -> Segment:
    """`encode_chunk` of an array (frames, height, width, 3)."""
    pictures = (
        av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709
        )
        for pixels in frames
    )
    return encode(pictures, frames.shape[:3], chunk=chunk, fps=fps)


def encode_yuv(planes: Pixels, *, chunk: int, fps: int) -> Segment:
    """`encode_chunk` of frames in YUV 4:2:0, BT.709 in limited range.

    An array (frames, 3 / 2 * height, width): Y, then the rows of U and V, each two to a row.
    """
    count, rows, width = planes.shape
    pictures = (av.VideoFrame.from_ndarray(picture, format="yuv420p") for picture in planes)
    return encode(pictures, (count, rows * 2 // 3, width), chunk=chunk, fps=fps)


def encode(
    pictures: Iterable[av.VideoFrame], shape: Sequence[int], *, chunk: int, fps: int
) -> Segment:
    """Encode pictures in YUV 4:2:0; `shape` is their number, their height and their width."""
    count, height, width = shape
    if not 1 <= count <= CHUNK_FRAMES:
        raise ValueError(f"got {count} frames, expected 1 to {CHUNK_FRAMES}")
    buffer = io.BytesIO()
    options = {"movflags": MUXER_OPTIONS, "video_track_timescale": str(fps * TICKS_PER_FRAME)}
    with av.open(buffer, "w", format="mp4", container_options=options) as container:
        stream = container.add_stream("libx264", rate=fps, options=CODEC_OPTIONS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.gop_size, context.max_b_frames = CHUNK_FRAMES, 0
        context.time_base = Fraction(1, fps)
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for index, frame in enumerate(pictures):
            frame.pts, frame.time_base = index, context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return split_segment(buffer.getvalue(), chunk)


def as_array(frames: Frames) -> Pixels:
    """Return the frames as a uint8 array (count, height, width, 3), without a copy."""
    shape = (frames.count, frames.height, frames.width, 3)
    return np.frombuffer(frames.data, np.uint8).reshape(shape)


def split_segment(data: bytes, chunk: int) -> Segment:
    """Split a one-chunk MP4 into header and fragment, and move the fragment to its position."""
    boxes = {box.kind: box for box in child_boxes(data, 0, len(data))}
    header = data[boxes[b"ftyp"].whole] + data[boxes[b"moov"].whole]
    moof, mdat = boxes[b"moof"], boxes[b"mdat"]
    patched = bytearray(data)
    inside = {box.kind: box for box in child_boxes(data, moof.start, moof.stop)}
    struct.pack_into(">I", patched, inside[b"mfhd"].start + 4, chunk + 1)
    track = {
        box.kind: box for box in child_boxes(data, inside[b"traf"].start, inside[b"traf"].stop)
    }
    start = track[b"tfdt"].start
    is_64_bit = data[start] == 1  # version 1 of the box
    ticks = chunk * CHUNK_FRAMES * TICKS_PER_FRAME
    struct.pack_into(">Q" if is_64_bit else ">I", patched, start + 4, ticks)
    return Segment(header, bytes(patched[moof.whole] + patched[mdat.whole]))


def child_boxes(data: bytes, start: int, stop: int) -> Iterator[Box]:
    while start < stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        yield Box(kind, start + 8, start + size)
        start += size


class Mp4Writer:
    """Writes a video chunk by chunk to a file that is playable at any time. A context manager.

    Until the end, and after a crash, the file is a fragmented MP4 of the finished chunks. Leaving
    the context without an exception rewrites it as a plain MP4 with its index in front, which all
    players and browsers support. An existing file is not touched before the first chunk.
    """

    def __init__(self, path: Path, *, fps: int) -> None:
        self.path = path
        self.fps = fps
        self.chunks = 0
        self._file: IO[bytes] | None = None

    def append(self, frames: Frames) -> None:
        """Encode the next chunk and flush it to the disk."""
        segment = encode_chunk(frames, chunk=self.chunks, fps=self.fps)
        if self._file is None:
            self._file = self.path.open("wb")
            self._file.write(segment.header)
        self._file.write(segment.fragment)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.chunks += 1

    def __enter__(self) -> "Mp4Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            if kind is None:
                defragment(self.path)


def defragment(path: Path) -> None:
    """Rewrite a fragmented MP4 in place as a plain MP4, without encoding frames again."""
    scratch = path.with_name(f".{path.name}.part")
    try:
        with (
            av.open(str(path)) as source,
            av.open(
                str(scratch), "w", format="mp4", container_options={"movflags": "faststart"}
            ) as target,
        ):
            stream = source.streams.video[0]
            copy = target.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.dts is not None:
                    packet.stream = copy
                    target.mux(packet)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
