"""The part of `segkit infer` for videos and cameras: frames are read, labelled, drawn and written in turn."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.bars import Bar
from segkit.cli.parser import Parser, Switch, whole_number
from segkit.errors import InputError, install_extra, printable
from segkit.inference.video import Video, filming, to_rgb

if TYPE_CHECKING:
    import numpy as np

    from segkit.inference.results import Wanted
    from segkit.inference.stream import Labeller, Look

_DESCRIPTION = f"""\
A video, or the address of a camera or stream (/dev/video0, rtsp://...; until Ctrl-C), gives NAME_overlay.mp4 and
NAME_side_by_side.mp4 if --output_kinds has them: upright, with the times of its frames and its sound (copied; .mkv
where MP4 does not take it), without a legend; an odd side gets its last row or column twice. Of a video that breaks
off, the frames until then are written (a .ts file tells no one that it does). Needs {install_extra("video")}."""


def add_video_options(parser: Parser) -> None:
    """Add what holds for videos."""
    group = parser.add_argument_group("videos", description=_DESCRIPTION)
    group.add_argument("--every", type=whole_number(1), default=1, metavar="N", help="only every N-th frame")
    group.add_argument("--frame_labels", action=Switch, help="write NAME_f000000_labels.png, ..., too")


def write_video(
    path: Path, stem: Path, segmenter: "Labeller", wanted: "Wanted", look: "Look | None", every: int, each: bool
) -> None:
    """Label a video and write it.

    Args:
        path: Its file or address.
        stem: The path of the results up to `_overlay.mp4`.
        segmenter: The network.
        wanted: What is written.
        look: How frames are looked at; None: at their labels.
        every: Each such frame is taken.
        each: Whether the label map of each frame is written.

    Raises:
        InputError: The video cannot be read, or breaks off: what came before is written.
    """
    from segkit.inference.stream import predict_files

    drawing = _Drawing(segmenter, wanted, stem, each)
    frames: dict[Path, Any] = {}  # that are being labelled

    def read() -> Iterator[Path]:
        for number, frame in enumerate(video.read()):
            key = path.with_name(f"{path.name}#frame={number * every}")
            frames[key] = frame
            yield key

    with Video(path, every) as video, ExitStack() as films, _stopped_by_interrupts(video):
        bar = films.enter_context(Bar(total=video.frames, unit="frame", desc=printable(path.name)))
        labelled = predict_files(segmenter, read(), look=look, read=lambda key: segmenter.read(to_rgb(frames[key])))
        writers, seen = [], 0
        for done in labelled:
            labels = wanted.sureness.labels(done)
            images = drawing.images(done.image, labels)
            if not seen:
                sizes = {kind: (image.shape[0], image.shape[1]) for kind, image in images.items()}
                named = [(stem.with_name(f"{stem.name}_{kind}"), video, size) for kind, size in sizes.items()]
                writers = [films.enter_context(filming(*one)) for one in named]
            drawing.write_labels(labels, seen * every)
            time = frames.pop(done.path).pts
            sound, video.sound = video.sound, []
            for writer, image in zip(writers, images.values(), strict=True):
                writer.write(image, time)
                writer.write_sound(sound)
            bar.update()
            seen += 1
        for writer in writers:
            writer.write_sound(video.sound)
    if video.problem is not None or not seen:
        kept = f"its first {seen} frames are written" if seen else "there is no frame before that"
        raise InputError(f"{path}: breaks off ({video.problem or 'it is empty'}); {kept}: copy it again")


class _Drawing:
    """What is drawn of each frame.

    Raises:
        InputError: What is wanted cannot be had of a video.
    """

    def __init__(self, segmenter: "Labeller", wanted: "Wanted", stem: Path, each: bool) -> None:
        self._palette, self._alpha, self._stem, self._each = segmenter.palette, wanted.alpha, stem, each
        self._kinds = [kind for kind in ("overlay", "side_by_side") if kind in wanted.kinds]
        if wanted.annotations is not None or wanted.sureness.confidence or wanted.sureness.probabilities:
            raise InputError(
                "a video gives no files for annotation tools, of areas of many images or of confidence; leave them out"
            )
        if segmenter.bands is not None:
            raise InputError(f"a video is RGB, and the network needs {segmenter.bands}; give it images of these bands")
        if not self._kinds and not each:
            raise InputError("of a video nothing is wanted; add overlay or side_by_side to --output_kinds")

    def images(self, image: "np.ndarray", labels: "np.ndarray") -> dict[str, Any]:
        """The images of a frame by kind, uint8 RGB."""
        from segkit.inference.results import GAP
        from segkit.visualization import overlay, side_by_side

        mixed = overlay(image, labels, self._palette, self._alpha) if self._kinds else image
        drawn = {"overlay": lambda: mixed, "side_by_side": lambda: side_by_side([image, mixed], GAP)}
        return {kind: drawn[kind]() for kind in self._kinds}

    def write_labels(self, labels: Any, number: int) -> None:
        """Write the label map of a frame if it is wanted."""
        from segkit.io import write_png

        if self._each:
            write_png(self._stem.with_name(f"{self._stem.name}_f{number:06d}_labels.png"), labels)


@contextmanager
def _stopped_by_interrupts(video: Video) -> Iterator[None]:
    """Let Ctrl-C end a camera, whose file is then completed; a file is given up by it as by all commands."""
    if not video.is_live or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        video.is_stopped = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
