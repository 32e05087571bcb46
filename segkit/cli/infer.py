"""`segkit infer`: segment images with a trained network; each image gives label map, colours, overlay and areas."""

import argparse
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.contrib.logging import logging_redirect_tqdm

from segkit.bars import Bar
from segkit.cli.parser import Parser, Switch, add_network_option, number
from segkit.cli.words import say_above_bar
from segkit.errors import InputError, install_extra, printable
from segkit.files import check_writable
from segkit.inference.inputs import find_images
from segkit.io import read_header
from segkit.machine import parse_bytes
from segkit.paths import check_regular, is_exported
from segkit.text import counted

if TYPE_CHECKING:  # it needs PyTorch, which takes seconds to import, and `--help` does not
    from segkit.inference.exported.label_model import LabelModel
    from segkit.inference.segmenter import Segmenter
    from segkit.inference.stream import Labeller
    from segkit.inference.sureness import Sureness

MANY = 1000  # images, for which an export may pay
WRITERS = 2  # threads: encoding PNGs takes as long as a GPU's forward

_DESCRIPTION = f"""\
Segment images of any size with a checkpoint that `segkit fit` wrote.

A folder is searched with all folders inside it, links followed; hidden ones and those of file servers are left out.

For each image, written to DIR (folders inside a given folder are kept):
  NAME_labels.png   train ids, 8-bit grey, exactly the size of the image
  NAME_color.png    the same in the colours of the classes
  NAME_overlay.png  the colours over the image, with a legend
  NAME_area.json    pixels and share of each class that occurs
and on request
  NAME_confidence.png     the probability of each label, 8-bit grey, value / 255 (its PNG says so, too)
  NAME_probabilities.npz  "probabilities" of all classes, float16 (H, W, K): np.load(FILE)["probabilities"]
Both are scaled by the temperature of a file that `segkit weights calibrate` wrote. Probabilities are written row by
row: for 150 classes at 12 megapixels they take 0.4 GB besides what the network takes, and a file of 3.6 GB.

The EXIF orientation is applied; transparency is dropped. Of 16 bits the upper 8 are read, and of several pages or
frames the first, which stderr says; 16 bits that hold 10, 12 or 14 are refused. Files of an earlier run are replaced.

An image that needs more than --memory is seen in overlapping tiles, and stderr says so. One that is too large to be
held at all (of --memory, or more than SEGKIT_MAX_PIXELS of the environment, 500 million by default) is read in tiles,
too, by rasterio ({install_extra("large-images")}), and gives instead:
  NAME_labels.tif   a tiled GeoTIFF with the image's georeference and the classes' colours
  NAME_overlay.png  at most 2048 pixels a side
  NAME_area.json    as above
Its protocol must be whole or another one of scale 1 without windows; its EXIF orientation is not applied, and there is
no confidence.

Exit code: 0 all done, 1 some images could not be read (the others are done), 2 nothing could be done."""


def main(args: list[str] | None = None) -> int:
    """Run `segkit infer`.

    Args:
        args: What follows `segkit infer` on the command line; None takes `sys.argv`.

    Returns:
        0: all images are done. 1: some could not be read or written. 2: the command itself was wrong.
    """
    options = _parser().parse_args(args)
    try:
        return _run(options)
    except InputError as error:
        _complain(error)
        return 2


def _run(options: argparse.Namespace) -> int:
    unread: list[Path] = []  # folders and links that cannot be read

    def failed(path: Path, error: InputError) -> None:
        unread.append(path)
        _complain(error)

    images = find_images(options.images, options.output, failed, _note)
    check_writable(options.output)
    load = cache(partial(_load, options))
    segmenter = _open(options) or load()
    if len(images) >= MANY and not is_exported(options.checkpoint) and str(segmenter.device) == "cpu":
        _note("`segkit export -o model.xml`, --precision int8, may be faster here: its report says by how much")
    start = time.perf_counter()
    work = _Work(
        segmenter, load, {path: options.output / name for path, name in images}, options.alpha, _sureness(options)
    )
    with logging_redirect_tqdm([logging.getLogger("segkit")]):
        work.run()
    seconds = time.perf_counter() - start
    failures = work.failed + len(unread)
    _summarise(len(images) - work.failed, failures, seconds, options.output, segmenter)
    return 1 if failures else 0


def _sureness(options: argparse.Namespace) -> "Sureness":
    from segkit.inference.sureness import Sureness

    return Sureness(options.confidence, options.probabilities, options.threshold)


def _memory(options: argparse.Namespace) -> int | None:
    return None if options.memory is None else parse_bytes(options.memory)


def _load(options: argparse.Namespace) -> "Segmenter":
    from segkit.inference.segmenter import load

    how = (options.device, options.protocol, _memory(options), options.precision)
    return load(options.checkpoint, *how, compiled=options.compile)


def _open(options: argparse.Namespace) -> "LabelModel | None":
    """What labels images without PyTorch, which takes seconds to import; None where it is needed."""
    if not is_exported(options.checkpoint) or options.protocol != "whole":
        return None
    if options.compile or options.precision not in ("auto", "exact") or _sureness(options).is_wanted:
        return None  # `load` says why not, or gives logits
    from segkit.inference.exported.label_model import open_label_model

    return open_label_model(options.checkpoint, options.device, _memory(options))


class _Work:
    """All images of one command: first those that fit into memory, pipelined with reading and writing, then the others.

    Args:
        segmenter: What labels the first.
        load: Gives the segmenter for the others.
        stems: Where the results of each image go.
        alpha: Weight of the colours in the overlay, 0..1.
        sureness: What is wanted besides labels.

    Attributes:
        failed: Number of images that could not be read or written.
    """

    def __init__(
        self,
        segmenter: "Labeller",
        load: Callable[[], "Segmenter"],
        stems: dict[Path, Path],
        alpha: float,
        sureness: "Sureness",
    ) -> None:
        self.segmenter, self.stems, self.alpha, self.failed = segmenter, stems, alpha, 0
        self.sureness = sureness
        self._load = load
        self._look = sureness.look(load(), stems) if sureness.is_wanted else None
        self._memory = segmenter.budget
        self._large: list[Path] = []
        self._bar = Bar(total=len(stems), unit="image", disable=len(stems) == 1)

    def run(self) -> None:
        from segkit.inference.results import write_results
        from segkit.inference.stream import predict_files

        with self._bar, ThreadPoolExecutor(WRITERS) as writers:
            writing: deque[tuple[Path, Future[None]]] = deque()
            for done in predict_files(self.segmenter, self._small(), self._complain, look=self._look):
                how = (self.stems[done.path], self.alpha, self.sureness)
                work = writers.submit(write_results, self.segmenter, done, *how)
                writing.append((done.path, work))
                if len(writing) > WRITERS:  # keep only those images in memory that are being written
                    path, work = writing.popleft()
                    self._finish(path, work.result)
            for path, work in writing:
                self._finish(path, work.result)
            for path in self._large:
                self._finish(path, partial(self._write_large, path))

    def _write_large(self, path: Path) -> None:
        segmenter = self._load()
        from segkit.inference.images import is_large
        from segkit.inference.results import write_large_results, write_results
        from segkit.inference.stream import predict_files

        if not is_large(path, self._memory):  # for PyTorch it is not, which sees it in tiles where it must
            for done in predict_files(segmenter, [path], _raise):
                write_results(segmenter, done, self.stems[path], self.alpha)
            return
        if self.sureness.is_wanted:
            raise InputError(
                f"{path}: is read in tiles, which gives labels alone; leave --confidence, --probabilities and "
                "--threshold out, or give it more --memory (and SEGKIT_MAX_PIXELS)"
            )
        from segkit.inference.tiling.geotiff import open_large

        with open_large(segmenter, path, self._memory) as large:
            bar = Bar(total=large.image.forwards, unit="tile", desc=printable(path.name), leave=False)
            with bar:
                write_large_results(segmenter, large, self.stems[path], self.alpha, bar.update)

    def _small(self) -> Iterator[Path]:
        """The images that can be read whole; the others are put aside."""
        from segkit.inference.images import is_large

        for path in self.stems:
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
        except (InputError, OSError) as error:
            self._complain(path, error)
        else:
            self._bar.update()

    def _complain(self, path: Path, error: Exception) -> None:
        self.failed += 1
        self._bar.update()
        _complain(error if str(path) in str(error) else InputError(f"{path}: {error}"))


def _raise(path: Path, error: Exception) -> None:
    raise error


def _parser() -> Parser:
    parser = Parser("segkit infer", description=_DESCRIPTION)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="an image, or a folder of images")
    parser.add_argument(
        "--checkpoint", required=True, type=Path, metavar="FILE", help="of `segkit fit` or any toolkit, or exported"
    )
    add_network_option(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="created if it is absent")
    parser.add_argument("--protocol", default="whole", metavar="NAME", help="whole (default), window, ms-flip, ...")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda:1, ...; default: the GPU if there is one")
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="what an image may take, its network included, such as 8GB, 500MB or 16GiB; PyTorch itself takes about "
        "1 GB besides, and a CPU's memory manager keeps up to a third more; default: 0.7 of what is free",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "bfloat16", "float32", "exact"),
        default="auto",
        help="auto (default): bfloat16 where the processor is fast at it, else float32; exact: the network as it was "
        "trained, no bit of it changed",
    )
    parser.add_argument(
        "--compile",
        action=Switch,
        help="compile the network for the first 8 sizes of its input: a minute each, worth it for many images",
    )
    parser.add_argument(
        "--alpha",
        type=number(lambda a: 0 <= a <= 1, "in 0..1"),
        default=0.5,
        metavar="A",
        help="colours' weight in the overlay, 0..1",
    )
    sure = parser.add_argument_group("how sure the network is")
    sure.add_argument("--confidence", action=Switch, help="write NAME_confidence.png, the probability of each label")
    sure.add_argument("--probabilities", action=Switch, help="write NAME_probabilities.npz, those of all classes")
    sure.add_argument(
        "--threshold",
        type=number(lambda t: 0 <= t <= 1, "in 0..1"),
        metavar="T",
        help="pixels with less confidence get the label 255, no class, are not coloured, and are counted as such",
    )
    return parser


def _summarise(done: int, failed: int, seconds: float, output: Path, segmenter: "Labeller") -> None:
    failures = f", {failed} failed" if failed else ""
    how = f"protocol {segmenter.protocol.name}, {segmenter.precision}, {segmenter.device}"
    say_above_bar(f"{counted(done, 'image')} in {seconds:.1f} s{failures} ({how}): {output}", sys.stdout)


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
