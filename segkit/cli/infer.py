"""`segkit infer`: segment images with a trained network, and write what `segkit.inference.kinds` lists."""

import argparse
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.contrib.logging import logging_redirect_tqdm

from segkit.bars import Bar
from segkit.cli.infer_inputs import Inputs, wait_for_others
from segkit.cli.infer_many import are_many, run_many
from segkit.cli.infer_options import infer_parser, what_is_wanted
from segkit.cli.infer_video import write_video
from segkit.cli.words import say_above_bar
from segkit.errors import InputError, about, printable
from segkit.files import check_writable
from segkit.inference.inputs import is_video
from segkit.io import read_header
from segkit.machine import parse_bytes
from segkit.paths import check_regular, is_exported
from segkit.text import counted

if TYPE_CHECKING:  # it needs PyTorch, which takes seconds to import, and `--help` does not
    import numpy as np

    from segkit.inference.exported.label_model import LabelModel
    from segkit.inference.results import Wanted
    from segkit.inference.segmenter import Segmenter
    from segkit.inference.stream import Labeller

MANY = 1000  # images, for which an export may pay
WRITERS = 2  # threads: encoding PNGs takes as long as a GPU's forward


def main(args: list[str] | None = None) -> int:
    """Run `segkit infer`.

    Args:
        args: What follows `segkit infer` on the command line; None takes `sys.argv`.

    Returns:
        0: all images are done. 1: some could not be read or written. 2: the command itself was wrong.
    """
    options = infer_parser().parse_args(args)
    try:
        return _run(options)
    except InputError as error:
        _complain(error)
        return 2


def _run(options: argparse.Namespace) -> int:
    if not options.images and options.list is None:
        raise InputError("no images: give some, folders of them, or a --list")
    if are_many(options):
        wanted = what_is_wanted(options)
        return run_many(options, lambda: _open(options, wanted) or _load(options), wanted, _complain, _note)
    unread: list[Path] = []  # folders and links that cannot be read

    def failed(path: Path, error: InputError) -> None:
        unread.append(path)
        _complain(error)

    inputs = Inputs(options, failed, _note)
    check_writable(options.output)
    code = _segment(options, inputs, unread) if inputs.stems else bool(unread)
    wait_for_others(inputs.rank)
    return int(code)


def _segment(options: argparse.Namespace, inputs: Inputs, unread: list[Path]) -> int:
    load = cache(partial(_load, options))
    wanted = what_is_wanted(options)
    segmenter = _open(options, wanted) or load()
    if len(inputs.stems) >= MANY and not is_exported(options.checkpoint) and str(segmenter.device) == "cpu":
        _note("`segkit export -o model.xml`, --precision int8, may be faster here: its report says by how much")
    start = time.perf_counter()
    work = _Work(segmenter, load, inputs, wanted, options)
    with logging_redirect_tqdm([logging.getLogger("segkit")]):
        work.run()
    seconds = time.perf_counter() - start
    failures = work.failed + len(unread)
    _summarise(inputs.stems, work.failed, failures, seconds, options.output, segmenter)
    if wanted.annotations is None:
        return 1 if failures else 0
    unwritten: list[Path] = []

    def refused(path: Path, error: Exception) -> None:
        unwritten.append(path)
        _complain(about(path, error))

    watched = partial(Bar, unit="image", leave=False)
    wanted.annotations.write(work.stems, segmenter.label_space, refused, watched)
    return 1 if failures or unwritten else 0


def _memory(options: argparse.Namespace) -> int | None:
    return None if options.memory is None else parse_bytes(options.memory)


def _load(options: argparse.Namespace) -> "Segmenter":
    from segkit.inference.segmenter import load

    how = (options.device, options.protocol, _memory(options), options.precision)
    return load(options.checkpoint, *how, compiled=options.compile)


def _open(options: argparse.Namespace, wanted: "Wanted") -> "LabelModel | None":
    """What labels images without PyTorch, which takes seconds to import; None where it is needed."""
    if not is_exported(options.checkpoint) or options.protocol != "whole":
        return None
    if options.compile or options.precision not in ("auto", "exact") or wanted.sureness.is_wanted:
        return None  # `load` says why not, or gives logits
    from segkit.inference.exported.label_model import open_label_model

    return open_label_model(options.checkpoint, options.device, _memory(options))


class _Work:
    """All images of one command: first those that fit into memory, pipelined with reading and writing, then the others.

    Args:
        segmenter: What labels the first.
        load: Gives the segmenter for the others.
        inputs: The images, where their results go, and which are done.
        wanted: What is written.
        options: What holds for videos: `every` and `frame_labels`.

    Attributes:
        failed: Number of images that could not be read or written.
    """

    def __init__(
        self,
        segmenter: "Labeller",
        load: Callable[[], "Segmenter"],
        inputs: Inputs,
        wanted: "Wanted",
        options: argparse.Namespace,
    ) -> None:
        self.segmenter, self.stems, self.wanted, self.failed = segmenter, inputs.stems, wanted, 0
        self._inputs = inputs
        self._load = load
        self._look = wanted.sureness.look(load(), self.stems) if wanted.sureness.is_wanted else None
        self._memory = segmenter.budget
        self._large: list[Path] = []
        self._videos: list[Path] = []
        self._of_videos = (options.every, options.frame_labels)
        self._bar = Bar(total=len(self.stems), unit="image", disable=len(self.stems) == 1)

    def run(self) -> None:
        from segkit.inference.results import write_results
        from segkit.inference.stream import predict_files

        with self._bar, ThreadPoolExecutor(WRITERS) as writers:
            writing: deque[tuple[Path, Future[None]]] = deque()
            for done in predict_files(self.segmenter, self._small(), self._complain, look=self._look, read=self._read):
                work = writers.submit(write_results, self.segmenter, done, self.stems[done.path], self.wanted)
                writing.append((done.path, work))
                if len(writing) > WRITERS:  # keep only those images in memory that are being written
                    path, work = writing.popleft()
                    self._finish(path, work.result)
            for path, work in writing:
                self._finish(path, work.result)
            for path in self._large:
                self._finish(path, partial(self._write_large, path))
            for path in self._videos:
                how = (self.segmenter, self.wanted, self._look, *self._of_videos)
                self._finish(path, partial(write_video, path, self.stems[path], *how))

    def _read(self, path: Path) -> "np.ndarray":
        pages = self._inputs.pages
        return self.segmenter.read(pages.read(path) if path in pages else path)

    def _write_large(self, path: Path) -> None:
        segmenter = self._load()
        from segkit.inference.images import is_large
        from segkit.inference.results import write_large_results, write_results
        from segkit.inference.stream import predict_files

        if not is_large(path, self._memory):  # for PyTorch it is not, which sees it in tiles where it must
            for done in predict_files(segmenter, [path]):
                write_results(segmenter, done, self.stems[path], self.wanted)
            return
        if self.wanted.sureness.is_wanted:
            raise InputError(
                f"{path}: is read in tiles, which gives labels alone; leave --confidence, --probabilities, --threshold "
                "and --uncertain out, or give it more --memory (and SEGKIT_MAX_PIXELS)"
            )
        from segkit.inference.tiling.geotiff import open_large

        with open_large(segmenter, path, self._memory) as large:
            self._check_annotations(path, large.image.size)
            bar = Bar(total=large.image.forwards, unit="tile", desc=printable(path.name), leave=False)
            with bar:
                write_large_results(segmenter, large, self.stems[path], self.wanted, bar.update)

    def _check_annotations(self, path: Path, size: tuple[int, int]) -> None:
        """Refuse, before work is spent on it, an image whose labels are too large for the files of all images."""
        from segkit.inference.annotation_files import PIXEL_BYTES

        needed = size[0] * size[1] * PIXEL_BYTES
        if self.wanted.annotations is not None and needed > self._memory:
            raise InputError(
                f"{path}: writing its {size[1]}x{size[0]} labels to annotation files may take {needed / 1e9:.1f} GB, "
                f"and {self._memory / 1e9:.1f} GB are to be used; give more --memory, or leave them to another run"
            )

    def _small(self) -> Iterator[Path]:
        """The images that can be read whole; the others are put aside."""
        from segkit.inference.images import is_large

        for path in self.stems:
            if path in self._inputs.pages:
                yield path
                continue
            if is_video(path):
                self._videos.append(path)
                continue
            try:
                check_regular(path)  # reading the header of a pipe would block forever
            except InputError as error:
                self._complain(path, error)
                continue
            is_put_aside = is_large(path, self._memory, self.segmenter.pixel_bytes)
            _say_losses(path, is_large(path, self._memory), self.segmenter.bands is not None)
            if is_put_aside:
                self._large.append(path)
            else:
                yield path

    def _finish(self, path: Path, write: Callable[[], None]) -> None:
        try:
            write()
            self._inputs.finish(path)
        except (InputError, OSError) as error:
            self._complain(path, error)
        else:
            self._bar.update()

    def _complain(self, path: Path, error: Exception) -> None:
        self.failed += 1
        self._bar.update()
        _complain(about(path, error))


def _summarise(
    stems: Mapping[Path, Path], undone: int, failed: int, seconds: float, output: Path, segmenter: "Labeller"
) -> None:
    failures = f", {failed} failed" if failed else ""
    how = f"protocol {segmenter.protocol.name}, {segmenter.precision}, {segmenter.device}"
    word = "video" if all(map(is_video, stems)) else "image"
    say_above_bar(f"{counted(len(stems) - undone, word)} in {seconds:.1f} s{failures} ({how}): {output}", sys.stdout)


def _say_losses(path: Path, is_large: bool, has_bands: bool) -> None:
    """Say which parts of an image are not segmented, or not read as stored; the reader itself reports damage."""
    try:
        header = read_header(path)
    except InputError:
        return
    turned = is_large and not header.is_upright
    ignored = [f"has the EXIF orientation {header.orientation}, which is not applied in tiles"] if turned else []
    for note in [*([] if has_bands else header.losses()), *ignored]:
        _note(f"{path} {note}")


def _note(text: str) -> None:
    say_above_bar(f"segkit infer: note: {text}")


def _complain(error: Exception) -> None:
    say_above_bar(f"segkit infer: error: {' '.join(str(error).split())}")
