"""Reads the frames of a video file."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
from av.stream import Disposition

from helios_serve.errors import HeliosError
from helios_serve.media.refusals import check_size, invalid, refusing
from helios_serve.media.truncation import check_complete
from helios_serve.media.video_frame import Picture, as_picture
from helios_serve.size import Size

MAX_SECONDS = 600
"""Maximum duration that the header of a limited video may state."""
MAX_THREADS = 4
"""Threads of a video decoder."""
MAX_PIXEL_ASPECT = 16
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,ogg,flv"
"""Accepted video formats. FFmpeg also supports some that refer to other files, like playlists."""
OPEN_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
STILLS = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
"""Tracks that hold cover art or thumbnails."""
IMAGE_CODECS = ("mjpeg", "png", "bmp", "gif", "webp", "tiff")
EXPECTED = "a video such as MP4, MOV, WebM, MKV or AVI"
UNREADABLE = "an unsupported or damaged file"
JITTER = (Fraction(1, 2), Fraction(3, 2))
"""Intervals between frames, relative to the median, that count as a constant rate."""


class FrameLimit(NamedTuple):
    """The maximum number of frames of a video, and its text in error messages."""

    frames: int
    expected: str


def read_frames(path: Path, limit: FrameLimit | None = None) -> Iterator[av.VideoFrame]:
    """Iterate over the frames of the first real video track while it is decoded, deinterlaced.

    With `limit`, a longer video raises InvalidRequestError: before the first frame if its header
    states a duration above `MAX_SECONDS`, else when the limit is reached.
    """
    with refusing(path, EXPECTED, "video"):
        check_complete(path)
        with opened(path) as container:
            stream = video_track(path, container)
            check_size(path, stream.width, stream.height, "video")
            if limit is not None:
                check_duration(path, container.duration)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = MAX_THREADS
            for count, frame in enumerate(deinterlaced(decoded(container, stream))):
                check_size(path, frame.width, frame.height, "video")
                if limit is not None and count == limit.frames:
                    raise invalid(path, f"more than {count} frames", limit.expected, "video")
                yield frame


def opened(path: Path) -> av.container.InputContainer:
    """Open a video file. Raises HeliosError for other files, and for containers not accepted."""
    try:
        return av.open(str(path), container_options=OPEN_OPTIONS)
    except (av.error.ArgumentError, av.error.InvalidDataError) as error:
        raise HeliosError(UNREADABLE) from error


def is_video(path: Path) -> bool:
    """Return whether the file is a video, or only has sound. One that was cut off is refused."""
    with refusing(path, EXPECTED, "video"):
        check_complete(path)
        try:
            opened(path).close()
        except HeliosError:
            return False
    return True


def read_pictures(path: Path, shown: Sequence[int], size: Size) -> Iterator[Picture]:
    """Iterate over the pictures of decoded frames number `shown`, in ascending order.

    `size` is that of the video to generate, see `as_picture`.
    """
    aspect = pixel_aspect(path)
    places = iter(shown)
    place = next(places, None)
    for index, frame in enumerate(read_frames(path)):
        picture = None
        while place == index:
            picture = picture or as_picture(frame, aspect, size)
            yield picture
            place = next(places, None)
        if place is None:
            return


def video_track(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    """Return the first enabled video track, or else the first. Cover art does not count.

    A track of one image, or in an image format, counts as cover art if there is another.
    """
    tracks = [track for track in container.streams.video if not track.disposition & STILLS]
    if not tracks:
        got = "a file without a video track"
        if container.streams.video:
            got += ", whose only picture is its cover"
        raise invalid(path, got, "a video file", "video")
    return min(
        tracks,
        key=lambda track: (
            track.frames == 1,
            track.codec_context.name in IMAGE_CODECS,
            not track.disposition & Disposition.default,
        ),
    )


def pixel_aspect(path: Path) -> float:
    """Return the width of a pixel of the video track, relative to its height."""
    with opened(path) as container:
        ratio = video_track(path, container).sample_aspect_ratio
    if not ratio:
        return 1.0
    if not 1 / MAX_PIXEL_ASPECT <= ratio <= MAX_PIXEL_ASPECT:
        expected = f"1:{MAX_PIXEL_ASPECT} to {MAX_PIXEL_ASPECT}:1"
        raise invalid(path, f"pixels of {ratio.numerator}:{ratio.denominator}", expected, "video")
    return float(ratio)


def constant_rate(path: Path, limit: FrameLimit) -> list[int]:
    """Return which decoded frame is shown at each frame of the video at a constant rate.

    That is every frame in order, unless intervals between frames differ: then the most common
    interval is kept, frames that last longer are repeated, and those that come faster are dropped.
    """
    times: list[Fraction | None] = []
    for frame in read_frames(path, limit):
        if frame.pts is None or frame.time_base is None:
            times.append(None)
        else:
            times.append(frame.pts * frame.time_base)
    shown = resampled(times, limit.frames)
    if len(shown) > limit.frames:
        raise invalid(path, f"more than {limit.frames} frames", limit.expected, "video")
    return shown


def resampled(times: Sequence[Fraction | None], max_count: int) -> list[int]:
    """Return the index of the frame to show at each interval, for frames shown at `times`.

    At most `max_count` + 1 of them are returned.
    """
    known = [time for time in times if time is not None]
    intervals = [later - earlier for earlier, later in pairwise(known)]
    every = list(range(len(times)))
    if len(known) < len(times) or not intervals or min(intervals) <= 0:
        return every
    median = sorted(intervals)[len(intervals) // 2]
    regular = [step for step in intervals if JITTER[0] * median < step < JITTER[1] * median]
    if len(regular) == len(intervals):
        return every
    period = sum(regular, Fraction(0)) / len(regular)
    shown: list[int] = []
    for index, time in enumerate(known):
        place = round((time - known[0]) / period)
        while len(shown) <= min(place, max_count):
            shown.append(max(0, index - 1))
        if place <= max_count:
            shown[place] = index
    return shown


def decoded(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    """Yield the decoded frames of a track.

    PyAV raises IndexError after the last frame if a track has appeared since the file was opened,
    such as sound that starts late in a recording of a broadcast.
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, IndexError):
            return
        yield from packet.decode()


def deinterlaced(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Yield one progressive frame for each frame, from the first interlaced one on.

    A filter is made for frames of one size and format. Both may change within a broadcast.
    """
    graph: av.filter.Graph | None = None
    shape: tuple[int, int, str] | None = None
    for frame in frames:
        if graph is None and not frame.interlaced_frame:
            yield frame
            continue
        if graph is None or shape != shape_of(frame):
            yield from finished(graph)
            graph, shape = deinterlacer(frame), shape_of(frame)
        graph.vpush(frame)
        yield from drained(graph)
    yield from finished(graph)


def shape_of(frame: av.VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name


def finished(graph: av.filter.Graph | None) -> Iterator[av.VideoFrame]:
    """Yield the frames that a filter has kept."""
    if graph is not None:
        graph.vpush(None)
        yield from drained(graph)


def deinterlacer(frame: av.VideoFrame) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 24),
    )
    graph.link_nodes(
        source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
    ).configure()
    return graph


def drained(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def check_duration(path: Path, duration: int | None) -> None:
    """Raise InvalidRequestError for a duration, in microseconds, of more than `MAX_SECONDS`."""
    if duration is not None and duration > MAX_SECONDS * av.time_base:
        got = f"a video of {duration / av.time_base:.0f} seconds"
        raise invalid(path, got, f"at most {MAX_SECONDS}", "video")
