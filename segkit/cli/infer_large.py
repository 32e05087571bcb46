"""Images that are too large to be read: `segkit infer` sees them in tiles and writes their labels as a GeoTIFF.

Read and written by rasterio, the optional extra `large`, by rows of tiles: georeference in, georeference out.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segkit.bars import Bar
from segkit.errors import InputError, install_extra, printable
from segkit.files import replacing, write_json
from segkit.io import read_header, write_png
from segkit.io.decoding import high_byte
from segkit.io.header import max_pixels
from segkit.visualization import overlay, with_legend

if TYPE_CHECKING:  # it needs PyTorch, which takes seconds to import, and `--help` does not
    from segkit.inference.segmenter import Segmenter

PREVIEW_SIDE = 2048  # pixels of the longer side
BLOCK = 256  # pixels a side of the label map's own tiles, which are compressed one by one
CACHE_MB = 64  # of GDAL: decoded blocks of the file
_HELD = 0.5  # of the budget: an image that takes more of it, beside the forwards, is read in tiles
_WHOLE = 40  # bytes a pixel that are held of an image that is not: it, its labels, colours and overlay


def is_large(path: Path, memory: int) -> bool:
    """Whether an image is to be read in tiles: more pixels than are read at once, or half the budget for it alone."""
    try:
        header = read_header(path)
    except InputError:
        return False  # whoever reads it says what is wrong
    pixels = header.width * header.height
    return pixels > max_pixels() or pixels * _WHOLE > _HELD * memory


def segment_large(segmenter: "Segmenter", path: Path, stem: Path, alpha: float, memory: int) -> None:
    """Segment one image in tiles and write its labels, a preview of them and their areas.

    Args:
        segmenter: the network.
        path: the image: one band, three or four of 8 or 16 bits, or indices of a palette.
        stem: the results' path up to `_labels.tif`, `_overlay.png` and `_area.json`.
        alpha: weight of the colours in the preview, 0..1.
        memory: bytes that network and tiles may take.

    Raises:
        InputError: rasterio is absent, the image cannot be read, or the budget or the protocol do not fit.
        OSError: a result cannot be written.
    """
    from segkit.inference.tiling.large_image import plan_large

    with _opened(path) as source:
        _check_range(source, path)
        large = plan_large(
            segmenter.network,
            lambda first, last: read_rows(source, path, first, last),
            (source.height, source.width),
            segmenter.protocol,
            segmenter.normalization,
            segmenter.device,
            memory,
        )
        step = -(-max(large.size) // PREVIEW_SIDE)
        counts, small = np.zeros(2**16, np.int64), []
        with replacing(stem.with_name(stem.name + "_labels.tif")) as temporary:
            bar = Bar(total=large.forwards, unit="tile", desc=printable(path.name), leave=False)
            with bar, _label_map(temporary, source, segmenter) as write:
                for start, labels in large.strips(seen=bar.update):
                    write(labels)
                    counts += np.bincount(labels.ravel(), minlength=len(counts))
                    small.append(labels[-start % step :: step, ::step].copy())
        labels = np.concatenate(small)
        write_png(stem.with_name(stem.name + "_overlay.png"), _preview(segmenter, source, path, labels, alpha))
    found = areas(segmenter, counts, large.size)
    write_json(stem.with_name(stem.name + "_area.json"), {"image": str(path)} | found)


def areas(segmenter: "Segmenter", counts: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """What `_area.json` holds of an image of (H, W) in which each train id has `counts` pixels."""
    total = size[0] * size[1]
    classes = [
        {"id": int(i), "name": segmenter.class_names[i], "pixels": int(counts[i]), "share": int(counts[i]) / total}
        for i in np.argsort(-counts, kind="stable")
        if counts[i]
    ]
    how = {"protocol": segmenter.protocol.to_dict(), "precision": segmenter.precision}
    return {"height": size[0], "width": size[1], **how, "classes": classes}


def read_rows(source: Any, path: Path, first: int, last: int) -> np.ndarray:
    """Rows [first, last) of a rasterio dataset as uint8 RGB (last - first, W, 3), as `segkit.io.read_image` has them.

    Raises:
        InputError: the file is damaged.
    """
    from rasterio.windows import Window

    return _as_rgb(source, _read(source, path, window=Window(0, first, source.width, last - first)))


def _read(source: Any, path: Path, **where: Any) -> np.ndarray:
    """Some of the first three bands, (bands, h, w)."""
    from rasterio.errors import RasterioError

    try:
        bands: np.ndarray = source.read(indexes=[1, 2, 3] if source.count > 2 else [1], **where)
    except RasterioError as error:
        raise InputError(f"{path}: truncated or damaged image ({error}); copy it again") from error
    return bands


def _check_range(source: Any, path: Path) -> None:
    """Refuse 16 bits that hold 10, 12 or 14, as `segkit.io.read_image` does; every n-th pixel is looked at.

    Raises:
        InputError: Almost nothing would be left of the values.
    """
    step = -(-max(source.height, source.width) // PREVIEW_SIDE)
    if source.dtypes[0] == "uint16":
        high_byte(_read(source, path, out_shape=(-(-source.height // step), -(-source.width // step))), path)


def _as_rgb(source: Any, bands: np.ndarray) -> np.ndarray:
    """Bands (1 or 3, h, w) as uint8 RGB (h, w, 3): grey repeated, a palette resolved, of 16 bits the high byte."""
    from rasterio.enums import ColorInterp

    if bands.dtype == np.uint16:
        bands = (bands >> 8).astype(np.uint8)  # `_check_range` has looked at their range
    if source.colorinterp[0] == ColorInterp.palette:
        table = np.zeros((256, 3), np.uint8)
        for index, colour in source.colormap(1).items():
            table[index] = colour[:3]
        return np.asarray(table[bands[0]])  # (h, w) -> (h, w, 3)
    return np.ascontiguousarray(np.broadcast_to(bands, (3, *bands.shape[1:])).transpose(1, 2, 0))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The image as a rasterio dataset, with a bounded cache.

    Raises:
        InputError: rasterio is absent, or the file is no image of a kind that is allowed.
    """
    try:
        import rasterio
    except ImportError:
        raise InputError(
            f"{path}: is too large to be read at once, and reading in tiles needs rasterio: "
            + install_extra("large-images")
        ) from None
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MB), warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        try:
            source = rasterio.open(path)
        except rasterio.errors.RasterioError as error:
            raise InputError(f"{path}: GDAL cannot read this image ({error}); save it as a GeoTIFF") from error
        with source:
            kinds = set(source.dtypes)
            if source.count not in (1, 3, 4) or not kinds <= {"uint8", "uint16"}:
                raise InputError(
                    f"{path}: has {source.count} bands of {', '.join(sorted(kinds))}; allowed are 1, 3 or 4 bands of "
                    "uint8 or uint16: convert it, for example with gdal_translate -b 1 -b 2 -b 3 -ot Byte"
                )
            yield source


@contextmanager
def _label_map(path: Path, source: Any, segmenter: "Segmenter") -> Iterator[Any]:
    """A tiled, compressed GeoTIFF on the grid of `source`; gives a function that takes rows (n, W) from top to bottom.

    It writes whole rows of the file's tiles, so that none is compressed twice.
    """
    import rasterio
    from rasterio.windows import Window

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
                target.write(rows[:filled], 1, window=Window(0, written, source.width, filled))
                written, filled = written + filled, 0

    try:
        with rasterio.open(path, "w", **profile) as target:
            if not many:
                target.write_colormap(1, {i: tuple(colour) for i, colour in enumerate(segmenter.palette)})
            yield write
    except rasterio.errors.RasterioError as error:
        raise OSError(f"{path.parent}: cannot write the label map ({error})") from error


def _preview(segmenter: "Segmenter", source: Any, path: Path, labels: np.ndarray, alpha: float) -> np.ndarray:
    """The overlay of the image at the size of some of its labels (h, w), with a legend."""
    image = _as_rgb(source, _read(source, path, out_shape=labels.shape))
    names, palette = segmenter.class_names, segmenter.palette
    return with_legend(overlay(image, labels, palette, alpha), labels, names, palette)
