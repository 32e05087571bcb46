"""Videos and cameras: frames out of one file, drawn ones into another with the same times and sound (PyAV).

Colours follow the file's own matrix and range, BT.601 or, from 720 rows on, BT.709 where it names none; what is
written is BT.709 of limited range. Videos turned by their metadata are written upright. H.264 in yuv420p needs even
sides: an odd one gets its last row or column twice.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from segkit.arrays import UInt8Array
from segkit.errors import InputError, import_extra, one_line
from segkit.files import free_path, replacing
from segkit.inference.inputs import CAMERA, STREAM, is_live

EXTRA = "video"
_SECONDS = 10.0  # that a camera may be silent
_SHORT = 0.5  # seconds by which a file may end before the length that it states: sound and video end apart
_BT601, _BT709, _UNSPECIFIED = 5, 1, 2  # AVColorSpace, ITU-T H.273 table 4
_LIMITED, _FULL = 1, 2  # AVColorRange
_HIGH_DEFINITION = 720  # rows
_OF_MP4 = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")  # sound that players expect in it; others go to .mkv


class Video:
    """An open video, whose frames are read once and in turn.

    Args:
        path: A file, or the address of a camera or stream.
        every: Each such frame is read, from the first one.

    Attributes:
        is_stopped: Set to end the video before the next frame.
        problem: Why reading ended before the video did; None: it did not.
        is_live: Whether it has no end.
        sound: (number of the stream, packet) of the sound that was read since this was emptied.

    Raises:
        InputError: It cannot be opened, has no video, or PyAV is missing.
    """

    def __init__(self, path: Path, every: int = 1) -> None:
        self._av = import_extra("av", EXTRA)
        self._path, self._every = path, every
        self.is_stopped = False
        self.problem: str | None = None
        self.sound: list[tuple[int, Any]] = []
        self.is_live = is_live(path)
        how = {"format": "v4l2"} if CAMERA.fullmatch(str(path)) else {}
        timeout = _SECONDS if self.is_live and not how else None
        try:
            self._container = self._av.open(STREAM.sub(r"\1://", str(path)), timeout=timeout, **how)
        except (self._av.error.FFmpegError, OSError) as error:
            why = getattr(error, "strerror", None) or one_line(error)
            raise InputError(f"{path}: cannot be opened as a video ({why}); give a file that plays") from error
        if not self._container.streams.video:
            self._container.close()
            raise InputError(f"{path}: has no video; give a file that shows something")
        self.stream = self._container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.sounds = [] if self.is_live else [s for s in self._container.streams.audio if s.codec_context is not None]
        self._first: int | None = None  # the time of a camera's first frame
        self._end = 0.0  # seconds, of what was read
        self._is_cut = False  # whether the last packet is

    def __enter__(self) -> Self:
        """The video itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the file."""
        self._container.close()

    @property
    def frames(self) -> int | None:
        """How many frames there are, as far as the file says."""
        return -(-self.stream.frames // self._every) or None

    def read(self) -> Iterator[Any]:
        """Decode frame by frame; where the video breaks, `problem` is set and the frames end."""
        last, size = -1, None
        try:
            for number, frame in enumerate(self._decoded()):
                size = size or (frame.width, frame.height)
                if size != (frame.width, frame.height):
                    self.problem = f"its size changes from {size} to {frame.width, frame.height} (W, H)"
                    return
                if number % self._every == 0:
                    frame.pts = last = max(self._time(frame), last + 1)  # broken files have frames out of turn
                    yield frame
        except (self._av.error.FFmpegError, OSError) as error:
            self.problem = getattr(error, "strerror", None) or one_line(error)
            return
        if self.is_live:
            return
        if self._end < self._length() - _SHORT:
            self.problem = f"it ends after {self._end:.1f} of {self._length():.1f} s"
        elif self._is_cut:
            self.problem = f"it ends within a frame or a piece of sound, after {self._end:.1f} s"

    def _decoded(self) -> Iterator[Any]:
        for packet in self._container.demux(self.stream, *self.sounds):
            if self.is_stopped:
                return
            if packet.pts is not None:
                self._end = max(self._end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.size:
                self._is_cut = packet.is_corrupt
            if packet.stream is self.stream:
                yield from packet.decode()
            elif packet.dts is not None:
                self.sound.append((packet.stream.index, packet))

    def _length(self) -> float:
        """Seconds at which the file says that it ends."""
        streams = [stream for stream in (self.stream, *self.sounds) if stream.duration]
        ends = [float(((stream.start_time or 0) + stream.duration) * stream.time_base) for stream in streams]
        return max(ends, default=(self._container.duration or 0) / self._av.time_base)

    def _time(self, frame: Any) -> int:
        if frame.pts is None:
            return -1
        if self.is_live and self._first is None:
            self._first = frame.pts
        return int(frame.pts) - (self._first or 0)


def to_rgb(frame: Any) -> UInt8Array:
    """A decoded frame, upright, as uint8 RGB (H, W, 3)."""
    matrix = None  # that of the frame
    if frame.colorspace == _UNSPECIFIED:
        matrix = _BT709 if frame.height >= _HIGH_DEFINITION else _BT601
    is_full = frame.color_range == _FULL or frame.format.name.startswith("yuvj")
    ranges = {"src_color_range": _FULL if is_full else _LIMITED, "dst_color_range": _FULL}
    named = frame.reformat(format="rgb24", src_colorspace=matrix, threads=1, **ranges)
    return np.ascontiguousarray(np.rot90(named.to_ndarray(), round(frame.rotation / 90)))


@contextmanager
def filming(path: Path, source: Video, size: tuple[int, int]) -> Iterator["Film"]:
    """Write a video with the times and the sound of another; it appears when it is complete, or not at all.

    Args:
        path: Its file up to the suffix: .mp4, or .mkv where players expect no such sound in MP4. For a camera, -2, ...
            comes before it if the file exists.
        source: The other video.
        size: (H, W) of the frames.

    Raises:
        InputError: The file cannot be written.
    """
    is_mp4 = all(sound.codec_context.name in _OF_MP4 for sound in source.sounds)
    suffix, kind = (".mp4", "mp4") if is_mp4 else (".mkv", "matroska")
    target = path.with_name(path.name + suffix)
    with (
        replacing(free_path(target) if source.is_live else target) as temporary,
        import_extra("av", EXTRA).open(str(temporary), "w", format=kind) as container,
    ):
        film = Film(container, source, size)
        yield film
        film.finish()


class Film:
    """A video that is written frame by frame; made by `filming`."""

    def __init__(self, container: Any, source: Video, size: tuple[int, int]) -> None:
        self._av, self._container, self._source = import_extra("av", EXTRA), container, source
        self._size = size[0] + size[0] % 2, size[1] + size[1] % 2
        self._stream = self._add_video()
        self._sounds = {sound.index: container.add_stream_from_template(sound) for sound in source.sounds}

    def write(self, image: UInt8Array, time: int) -> None:
        """Add a frame, uint8 RGB (H, W, 3), at a time in the source's units."""
        height, width = self._size
        rows, columns = height - image.shape[0], width - image.shape[1]
        even = np.pad(image, ((0, rows), (0, columns), (0, 0)), "edge") if rows or columns else image
        frame = self._av.VideoFrame.from_ndarray(even, format="rgb24")
        frame = frame.reformat(
            format="yuv420p", src_color_range=_FULL, dst_color_range=_LIMITED, dst_colorspace=_BT709, threads=1
        )
        frame.pts, frame.time_base = time, self._source.stream.time_base
        self._container.mux(self._stream.encode(frame))

    def write_sound(self, packets: Iterable[tuple[int, Any]]) -> None:
        """Copy packets of the source's sound."""
        for index, packet in packets:
            packet.stream = self._sounds[index]
            self._container.mux(packet)

    def finish(self) -> None:
        """Write the frames that the encoder still holds."""
        self._container.mux(self._stream.encode())

    def _add_video(self) -> Any:
        source = self._source.stream
        codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"  # builds without GPL lack the first
        stream = self._container.add_stream(codec, rate=source.average_rate or Fraction(25))
        context = stream.codec_context
        context.height, context.width = self._size
        context.pix_fmt = "yuv420p"
        context.time_base = stream.time_base = source.time_base
        context.color_range, context.colorspace = _LIMITED, _BT709
        context.color_primaries = context.color_trc = _BT709
        if codec == "libx264":
            context.options = {"crf": "20", "preset": "veryfast"}
        return stream
