"""The EXIF orientation of every format that has one, against Pillow: applied when asked for, and never otherwise."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image, ImageOps

from segkit.errors import InputError
from segkit.io import image_size, read_header, read_image, read_label

STORED = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)  # (64, 96, 3)
LOSSLESS = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}


def write(path: Path, orientation: int, pixels: np.ndarray = STORED) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **LOSSLESS.get(path.suffix[1:], {}))
    return path


def write_tiff(path: Path, orientation: int, pixels: np.ndarray = STORED, end: str = "<", big: bool = False) -> Path:
    """A TIFF of one strip, little or big end first, classic or BigTIFF."""
    height, width, channels = pixels.shape
    number, inline, head = ("Q", 8, 16) if big else ("I", 4, 8)
    data = pixels.astype(pixels.dtype.newbyteorder(end)).tobytes()
    bits = struct.pack(f"{end}{channels}H", *[8 * pixels.itemsize] * channels)
    tags = {256: width, 257: height, 259: 1, 262: 2 if channels == 3 else 1, 273: head + 8}
    tags |= {277: channels, 278: height, 279: len(data)}
    rows = {tag: (16 if big else 4, 1, struct.pack(end + number, value)) for tag, value in tags.items()}
    rows[274] = 3, 1, struct.pack(f"{end}H", orientation)
    rows[258] = 3, channels, bits if len(bits) <= inline else struct.pack(end + number, head)
    directory = head + 8 + len(data)
    start = {"<": b"II", ">": b"MM"}[end]
    start += struct.pack(f"{end}HHHQ", 43, 8, 0, directory) if big else struct.pack(f"{end}HI", 42, directory)
    table = struct.pack(end + ("Q" if big else "H"), len(rows))
    for tag, (kind, count, value) in sorted(rows.items()):
        table += struct.pack(f"{end}HH{number}", tag, kind, count) + value.ljust(inline, b"\0")
    path.write_bytes(start + bits.ljust(8, b"\0") + data + table + b"\0" * inline)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["tif", "jpg", "png", "webp"])
def test_all_orientations(tmp_path: Path, ending: str, orientation: int) -> None:
    path = write(tmp_path / f"a.{ending}", orientation)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    tolerance = 3 if ending == "jpg" else 0
    assert np.abs(read_image(path).astype(int) - STORED).max() <= tolerance
    shown = read_image(path, apply_exif=True)
    assert shown.shape == upright.shape and np.abs(shown.astype(int) - upright).max() <= tolerance
    assert image_size(path) == (96, 64)
    assert image_size(path, apply_exif=True) == shown.shape[1::-1]
    assert read_header(path).orientation == orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["tif", "png"])
def test_masks_are_read_as_they_are_stored(tmp_path: Path, ending: str, orientation: int) -> None:
    path = write(tmp_path / f"a.{ending}", orientation, STORED[..., 0])
    assert np.array_equal(read_label(path), STORED[..., 0])


@pytest.mark.parametrize("orientation", [1, 2, 6])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("end", ["<", ">"])
def test_every_kind_of_tiff_header(tmp_path: Path, end: str, big: bool, orientation: int) -> None:
    deep = STORED.astype(np.uint16) * 257
    for pixels, shown in ((STORED, STORED), (deep, STORED), (STORED[..., :1], STORED[..., :1].repeat(3, 2))):
        path = write_tiff(tmp_path / "a.tif", orientation, pixels, end, big)
        assert read_header(path).orientation == orientation
        if (end, big) == (">", True):  # which Pillow does not know
            with pytest.raises(InputError, match="of a kind that is not read"):
                read_image(path)
            continue
        assert np.array_equal(read_image(path), shown)
        assert image_size(path) == (96, 64)
        turned = {1: shown, 2: shown[:, ::-1], 6: np.rot90(shown, -1)}[orientation]
        assert np.array_equal(read_image(path, apply_exif=True), turned)


def test_tiles_and_compression_change_nothing(tmp_path: Path) -> None:
    for i, options in enumerate(({"tiled": True}, {"compress": "lzw"}, {"compress": "deflate", "interleave": "band"})):
        path = tmp_path / f"{i}.tif"
        with rasterio.open(path, "w", driver="GTiff", width=96, height=64, count=3, dtype="uint8", photometric="RGB",
                           blockxsize=32, blockysize=32, **options) as file:  # fmt: skip
            file.write(STORED.transpose(2, 0, 1))
        assert np.array_equal(read_image(path), STORED)


def test_an_orientation_that_is_damaged_is_upright(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", 6)
    data = path.read_bytes()
    at = data.index(b"Exif\0\0") + 6
    for spoiled in (b"XX", b"II*\0\xff\xff\xff\xff", data[at : at + 4] + b"\0\0\0\0"):
        path.write_bytes(data[:at] + spoiled + data[at + len(spoiled) :])
        assert read_image(path, apply_exif=True).shape == STORED.shape
    write(path, 9)
    assert read_image(path, apply_exif=True).shape == STORED.shape


def test_opencv_still_turns_tiffs_unasked(tmp_path: Path) -> None:
    """The reason of `upright_tiff`; if this fails, it can go (Pillow turns masks, though)."""
    data = np.frombuffer(write(tmp_path / "a.tif", 6).read_bytes(), np.uint8)
    assert cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION).shape == (96, 64, 3)
