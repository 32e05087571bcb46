"""Writes the annotation files of many images: label maps wait on disk, compressed, until all of them are there."""

import importlib.util
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import BinaryIO, cast

import numpy as np

from segkit.arrays import UInt8Array
from segkit.errors import InputError, import_extra
from segkit.files import write_text
from segkit.formats.base import Labelled
from segkit.formats.georeference import NOWHERE, Georeference, read_georeference
from segkit.formats.names import writer_of
from segkit.formats.shapes import EXTRA
from segkit.inference.kinds import ANNOTATIONS, AREA_TABLE
from segkit.metadata.label_space import LabelSpace

LIST = "uncertain.txt"
PIXEL_BYTES = 24  # that writing a label map may take: outlines are simplified with distances in float64

_FAST = 1  # zlib's level: label maps become as small as by a higher one, but for a third


class Packed:
    """A label map, compressed as it comes.

    Args:
        labels: Train ids uint8 (H, W), or its first rows.
    """

    def __init__(self, labels: UInt8Array | None = None) -> None:
        self._packer, self._parts, self._rows, self._width = zlib.compressobj(_FAST), list[bytes](), 0, 0
        if labels is not None:
            self.take(labels)

    def take(self, rows: np.ndarray) -> None:
        """Add the next rows, integers 0..255 (n, W)."""
        self._parts.append(self._packer.compress(np.ascontiguousarray(rows, np.uint8).data))
        self._rows, self._width = self._rows + rows.shape[0], rows.shape[1]

    def finish(self) -> tuple[bytes, tuple[int, int]]:
        """What zlib decompresses, and (H, W); nothing can be added after it."""
        return b"".join([*self._parts, self._packer.flush()]), (self._rows, self._width)


@dataclass(frozen=True)
class _Piece:
    """Where a label map waits, and of which image it is."""

    image: Path
    name: str
    size: tuple[int, int]
    start: int
    length: int
    place: Georeference
    confidence: float | None


class AnnotationFiles:
    """The annotation files of one command.

    Label maps are kept in a nameless file in the output folder, which the system removes however the command ends.

    Args:
        output: The folder of the results.
        kinds: Keys of `ANNOTATIONS`.
        tolerance: Pixels by which polygons may be simplified.
        uncertain: How many images the files get, those with the lowest mean confidence; None: all. The table of areas
            always has all.

    Raises:
        InputError: A package is missing.
    """

    def __init__(
        self, output: Path, kinds: Sequence[str], tolerance: float = 0.0, uncertain: int | None = None
    ) -> None:
        for module in {module for kind in kinds for module in ANNOTATIONS[kind].needs}:
            import_extra(module, EXTRA)
        self._output, self._kinds, self._tolerance, self._uncertain = output, kinds, tolerance, uncertain
        is_placed = any(ANNOTATIONS[kind].georeferenced for kind in kinds)
        self._place_of = read_georeference if is_placed and importlib.util.find_spec("rasterio") else lambda _: NOWHERE
        self._lock, self._end, self._pieces = Lock(), 0, dict[Path, _Piece]()

    @cached_property
    def _labels(self) -> BinaryIO:
        self._output.mkdir(parents=True, exist_ok=True)
        return cast(BinaryIO, tempfile.TemporaryFile(dir=self._output))

    def add(self, image: Path, stem: Path, packed: Packed, confidence: float | None = None) -> None:
        """Keep the labels of an image; threads may do so at once.

        Args:
            image: Its path.
            stem: The path of its results, without endings, in the output folder.
            packed: Its labels.
            confidence: Its mean confidence.
        """
        place = self._place_of(image) if image.is_file() else NOWHERE  # a page of a file has a path of its own
        data, size = packed.finish()
        name = stem.relative_to(self._output).as_posix() + image.suffix.partition("#")[0]  # of a page, "#page=2"
        with self._lock:
            self._labels.seek(self._end)
            self._labels.write(data)
            self._pieces[image] = _Piece(image, name, size, self._end, len(data), place, confidence)
            self._end += len(data)

    def write(
        self,
        order: Iterable[Path],
        space: LabelSpace,
        failed: Callable[[Path, Exception], None],
        watched: Callable[[Iterator[Labelled], str, int], Iterable[Labelled]] = lambda images, name, count: images,
    ) -> None:
        """Write all files, each in one step; none if there is no image.

        Args:
            order: The images in the order in which they are written, unless by confidence.
            space: Classes and colours.
            failed: Called for each file that cannot be written; the others continue.
            watched: Gives the images of a file on, given the file's kind and their number, such as a progress bar.
        """
        every = [self._pieces[image] for image in order if image in self._pieces]
        chosen = every
        if self._uncertain is not None and every:
            chosen = sorted(every, key=lambda piece: piece.confidence or 0)[: self._uncertain]
            write_text(self._output / LIST, "".join(f"{piece.image}\n" for piece in chosen))
        for name, kind in ANNOTATIONS.items():
            if name not in self._kinds or not every:
                continue
            pieces = every if name == AREA_TABLE else chosen
            images = watched(self._images(pieces), name, len(pieces))
            try:
                writer_of(kind.format)(images, self._output / kind.target, space, self._tolerance)
            except (InputError, OSError) as error:
                failed(self._output / kind.target, error)

    def _images(self, pieces: Iterable[_Piece]) -> Iterator[Labelled]:
        for piece in pieces:
            self._labels.seek(piece.start)
            data = zlib.decompress(self._labels.read(piece.length))
            labels = np.frombuffer(data, np.uint8).reshape(piece.size)
            crs, transform = piece.place
            yield Labelled(piece.name, labels, None, crs, transform, piece.confidence)
