"""Labels files too large for memory in tiles, as a GeoTIFF with the same georeference.

They are read and written in rows of tiles by rasterio, the optional extra `large-images`.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segkit.arrays import Int64Array, UInt8Array
from segkit.bands import DTYPES, BandArray, Bands
from segkit.errors import InputError, install_extra
from segkit.inference.segmenter import Segmenter
from segkit.inference.tiling.large_image import LargeImage, plan_large
from segkit.io.decoding import high_byte

try:
    import rasterio
    from rasterio.enums import ColorInterp
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.windows import Window as FileWindow
except ImportError:
    rasterio = None

PREVIEW_SIDE = 2048  # pixels of the longer side
BLOCK = 256  # pixels a side of the label map's own tiles, which are compressed one by one
CACHE_MB = 64  # of GDAL: decoded blocks of the file


@dataclass(frozen=True)
class LargeFile:
    """An image on disk that is labelled in tiles; `open_large` makes one.

    Attributes:
        segmenter: The network.
        path: The file's path.
        source: The file's rasterio dataset.
        image: How the network sees it.
    """

    segmenter: Segmenter
    path: Path
    source: Any
    image: LargeImage

    def write_labels(
        self,
        target: Path,
        seen: Callable[[], object] = lambda: None,
        also: Callable[[np.ndarray], None] | None = None,
    ) -> tuple[Int64Array, UInt8Array]:
        """Write the train ids as a tiled, compressed GeoTIFF in the classes' colours.

        Args:
            target: The file to write.
            seen: Called after each of `image.forwards` forwards.
            also: Called with each strip of labels (n, W) from top to bottom.

        Returns:
            int64 (65536,), the pixels of each train id; and every n-th label, (h, w), at most `PREVIEW_SIDE` per side.

        Raises:
            InputError: The image is damaged.
            OSError: The labels cannot be written.
        """
        step = -(-max(self.image.size) // PREVIEW_SIDE)
        counts, few = np.zeros(2**16, np.int64), []
        with _label_map(target, self.source, self.segmenter) as write:
            for start, labels in self.image.strips(seen):
                write(labels)
                if also is not None:
                    also(labels)
                counts += np.bincount(labels.ravel(), minlength=len(counts))
                few.append(labels[-start % step :: step, ::step].copy())
        return counts, np.concatenate(few)

    def preview(self, size: tuple[int, int]) -> UInt8Array:
        """The image as uint8 RGB (h, w, 3) of another size."""
        bands = self.segmenter.normalization.bands
        small = _read(self.source, self.path, bands, out_shape=size)
        return _as_rgb(self.source, small) if bands is None else bands.as_rgb(np.moveaxis(small, 0, -1))


@contextmanager
def open_large(segmenter: Segmenter, path: Path, memory: int) -> Iterator[LargeFile]:
    """Open an image and plan its tiles.

    Args:
        segmenter: The network; its protocol must have scale 1 and no windows.
        path: The image: one, three or four bands of 8 or 16 bits, or indices of a palette; or the weights' bands.
        memory: Bytes that network and tiles may take.

    Raises:
        InputError: Rasterio is missing, the image cannot be read, or the budget or the protocol does not fit.
    """
    bands = segmenter.normalization.bands
    with _opened(path, bands) as source:
        if bands is None:
            _check_range(source, path)
        image = plan_large(
            segmenter.network,
            lambda first, last: read_rows(source, path, first, last, bands),
            (source.height, source.width),
            segmenter.protocol,
            segmenter.normalization,
            segmenter.device,
            memory,
        )
        yield LargeFile(segmenter, path, source, image)


def read_rows(source: Any, path: Path, first: int, last: int, bands: Bands | None = None) -> BandArray:
    """Rows [first, last) of a rasterio dataset as uint8 RGB (last - first, W, 3), as `segkit.io.read_image` has them.

    Of `bands` they are (last - first, W, C), as `segkit.io.bands.read_bands` has them.

    Raises:
        InputError: The file is damaged.
    """
    rows = _read(source, path, bands, window=FileWindow(0, first, source.width, last - first))
    if bands is None:
        return _as_rgb(source, rows)
    return np.ascontiguousarray(bands.checked(np.moveaxis(rows, 0, -1), path))


def _read(source: Any, path: Path, bands: Bands | None = None, **where: Any) -> np.ndarray:
    """Some of the first three bands, or all of the weights', (C, h, w)."""
    indexes = None if bands is not None else [1, 2, 3] if source.count > 2 else [1]
    try:
        values: np.ndarray = source.read(indexes=indexes, **where)
    except RasterioError as error:
        raise InputError(f"{path}: truncated or damaged image ({error}); copy it again") from error
    return values if bands is None or values.dtype.name in DTYPES else values.astype(np.float32)


def _check_range(source: Any, path: Path) -> None:
    """Refuse 16-bit files of 10, 12 or 14 bits, as `segkit.io.read_image` does, by looking at every n-th pixel.

    Raises:
        InputError: The values would turn almost black.
    """
    step = -(-max(source.height, source.width) // PREVIEW_SIDE)
    if source.dtypes[0] == "uint16":
        high_byte(_read(source, path, out_shape=(-(-source.height // step), -(-source.width // step))), path)


def _as_rgb(source: Any, bands: np.ndarray) -> UInt8Array:
    """Bands (1 or 3, h, w) as uint8 RGB (h, w, 3): grey is repeated, a palette resolved, 16 bits give the high byte."""
    if bands.dtype == np.uint16:
        bands = (bands >> 8).astype(np.uint8)  # `_check_range` has looked at their range
    if source.colorinterp[0] == ColorInterp.palette:
        table = np.zeros((256, 3), np.uint8)
        for index, colour in source.colormap(1).items():
            table[index] = colour[:3]
        return np.asarray(table[bands[0]])  # (h, w) -> (h, w, 3)
    return np.ascontiguousarray(np.broadcast_to(bands, (3, *bands.shape[1:])).transpose(1, 2, 0))


@contextmanager
def _opened(path: Path, bands: Bands | None) -> Iterator[Any]:
    """The image as a rasterio dataset, with a bounded cache.

    Raises:
        InputError: Rasterio is missing, or the file is not an image of an allowed kind.
    """
    if rasterio is None:
        install = install_extra("large-images")
        raise InputError(f"{path}: is too large to be read at once, and reading in tiles needs rasterio: {install}")
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MB), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            source = rasterio.open(path)
        except RasterioError as error:
            raise InputError(f"{path}: GDAL cannot read this image ({error}); save it as a GeoTIFF") from error
        with source:
            kinds = set(source.dtypes)
            if bands is not None:
                bands.checked(_read(source, path, bands, window=FileWindow(0, 0, 1, 1)).T, path)
            elif source.count not in (1, 3, 4) or not kinds <= {"uint8", "uint16"}:
                raise InputError(
                    f"{path}: has {source.count} bands of {', '.join(sorted(kinds))}; allowed are 1, 3 or 4 bands of "
                    "uint8 or uint16: convert it, for example with gdal_translate -b 1 -b 2 -b 3 -ot Byte"
                )
            yield source


@contextmanager
def _label_map(path: Path, source: Any, segmenter: Segmenter) -> Iterator[Callable[[np.ndarray], None]]:
    """Open a GeoTIFF on the grid of `source`; gives a function that takes rows (n, W) from top to bottom.

    It writes whole rows of the file's tiles, so that none is compressed twice.
    """
    many = len(segmenter.class_names) > 256
    profile = {"driver": "GTiff", "width": source.width, "height": source.height, "count": 1}
    profile |= {"dtype": "int16" if many else "uint8", "crs": source.crs, "transform": source.transform}
    profile |= {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "bigtiff": "if_safer"}
    rows = np.empty((BLOCK, source.width), profile["dtype"])
    written = filled = 0

    def write(labels: np.ndarray) -> None:
        nonlocal written, filled
        while len(labels):
            taken = labels[: BLOCK - filled]
            rows[filled : filled + len(taken)] = taken
            filled, labels = filled + len(taken), labels[len(taken) :]
            if filled == BLOCK or written + filled == source.height:
                target.write(rows[:filled], 1, window=FileWindow(0, written, source.width, filled))
                written, filled = written + filled, 0

    try:
        with rasterio.open(path, "w", **profile) as target:
            if not many:
                target.write_colormap(1, {i: tuple(colour) for i, colour in enumerate(segmenter.palette)})
            yield write
    except RasterioError as error:
        raise OSError(f"{path.parent}: cannot write the label map ({error})") from error
