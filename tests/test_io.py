import io
import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image

from segkit.errors import InputError
from segkit.files import write_json
from segkit.io import image_size, read_colors, read_header, read_image, read_label, write_png
from segkit.io.header import PNG_START

RGB = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def fails(call, path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        call(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff"])
def test_rgb_is_read_as_it_is(tmp_path, ending):
    assert np.array_equal(read_image(save(tmp_path / f"a.{ending}", Image.fromarray(RGB))), RGB)


def test_jpeg_agrees_with_pillow(tmp_path):
    smooth = np.asarray(Image.fromarray(RGB).resize((8, 6)).resize((80, 60)))
    path = save(tmp_path / "a.jpg", Image.fromarray(smooth), quality=95)
    difference = np.abs(read_image(path).astype(int) - np.asarray(Image.open(path)))
    assert difference.max() <= 3


def test_other_kinds_become_rgb(tmp_path):
    grey = RGB[..., 0]
    assert np.array_equal(read_image(save(tmp_path / "g.png", Image.fromarray(grey))), np.dstack([grey] * 3))
    alpha = Image.fromarray(np.dstack([RGB, grey]))
    assert np.array_equal(read_image(save(tmp_path / "a.png", alpha)), RGB)
    palette = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(read_image(save(tmp_path / "p.png", palette)), np.asarray(palette.convert("RGB")))
    deep = grey.astype(np.uint16) * 256 + 77
    assert np.array_equal(read_image(save(tmp_path / "d.png", Image.fromarray(deep)))[..., 1], grey)


def save_deep(path: Path, values: np.ndarray) -> Path:
    """As PNG or TIFF, grey or RGB, of the values' own type."""
    bands = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    colours = {"photometric": "RGB"} if len(bands) == 3 and path.suffix == ".tif" else {}
    driver = {".png": "PNG", ".tif": "GTiff"}[path.suffix]
    count, height, width = bands.shape
    with rasterio.open(path, "w", driver, width, height, count, dtype=values.dtype, **colours) as file:
        file.write(bands)
    return path


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_of_16_bits_the_high_byte_is_read(tmp_path, ending, channels):
    eight = RGB[..., :channels].squeeze()
    shown = np.dstack([RGB[..., i % channels] for i in range(3)])
    for deep in (eight.astype(np.uint16) * 256 + 77, eight.astype(np.uint16) * 257):
        path = save_deep(tmp_path / f"a.{ending}", deep)
        assert np.array_equal(read_image(path), shown)
        assert read_header(path).losses() == ["has 16 bits per channel, of which the upper 8 are read"]
    dark = eight.astype(np.uint16) // 8 * 257  # from 8 bits: nothing is lost
    assert np.array_equal(read_image(save_deep(tmp_path / f"b.{ending}", dark)), shown // 8)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_fewer_bits_in_16_are_not_read_as_black(tmp_path, ending, bits, channels):
    values = np.random.default_rng(1).integers(0, 1 << bits, (40, 56, channels), np.uint16)
    values[0, 0], values[0, 1] = 0, (1 << bits) - 1
    path = save_deep(tmp_path / f"a.{ending}", values.squeeze())
    fails(read_image, path, f"values 0..{(1 << bits) - 1}", f"{1 << bits >> 8} of 256 levels", "save 8 bits")


def test_values_without_a_known_range_are_refused(tmp_path):
    for kind in (np.float32, np.float64, np.int16, np.uint32, np.int8):
        for values in (RGB[..., 0] // 2, RGB // 2):
            path = save_deep(tmp_path / "a.tif", values.astype(kind))
            undecoded = kind is np.uint32 and cv2.__version__ < "5"  # OpenCV 4 does not read these at all
            words = ["32 bits unsigned"] if undecoded else [f"values of {np.dtype(kind)}", "..127", "0..255"]
            fails(read_image, path, *words)


def test_a_jpeg_that_lost_its_middle(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB.repeat(4, 0).repeat(4, 1)))
    data = path.read_bytes()
    start = data.index(b"\xff\xda")
    for lost in (0.1, 0.5, 0.9):
        keep = start + 40 + int((len(data) - start) * (1 - lost) / 2)
        path.write_bytes(data[:keep] + data[keep + int((len(data) - start) * lost) :])
        fails(read_image, path, "a part of the JPEG's data is missing")
    grey = save(tmp_path / "grey.jpg", Image.new("RGB", (64, 64), (128, 128, 128)))  # looks like one, and is none
    assert (read_image(grey) == 128).all()


def test_too_many_pixels_are_refused_by_the_header(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", str(40 * 56 - 1))
    for ending in ("png", "jpg", "tif", "webp", "bmp"):
        path = save(tmp_path / f"a.{ending}", Image.fromarray(RGB))
        for read in (read_image, read_label) if ending in ("png", "tif") else (read_image,):
            fails(read, path, "is 56 x 40", "SEGKIT_MAX_PIXELS")
        assert image_size(path) == (56, 40)
    fails(read_label, save(tmp_path / "l.png", Image.fromarray(RGB[..., 0])), "is 56 x 40")
    fails(read_colors, save(tmp_path / "c.png", Image.fromarray(RGB)), "is 56 x 40")
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", str(40 * 56))
    assert read_image(tmp_path / "a.png").shape == RGB.shape
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", "many")
    with pytest.raises(InputError, match=r"SEGKIT_MAX_PIXELS is 'many'; it must be a whole number"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("colours", [0, 2])
def test_a_small_file_that_claims_900_million_pixels_is_not_decoded(tmp_path, colours):
    """Grey, it took 5 GB; a mask of RGB was decoded in order to be refused. Its data would be 109 kB of zeros."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, colours, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(b""), b"IEND": b""}
    (tmp_path / "a.png").write_bytes(PNG_START + b"".join(png_chunk(kind, body) for kind, body in chunks.items()))
    for read in (read_image, read_label, read_colors):
        fails(read, tmp_path / "a.png", "is 30000 x 30000, 900 million pixels", "at most 500 million")
    assert image_size(tmp_path / "a.png") == (30_000, 30_000)


def test_a_side_that_no_image_has_is_damage(tmp_path):
    """A damaged TIFF of 6 kB claimed 15 million columns, and planning its tiles took minutes."""
    header = struct.pack(">IIBBBBB", 2**20 + 1, 4, 8, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(b""), b"IEND": b""}
    (tmp_path / "a.png").write_bytes(PNG_START + b"".join(png_chunk(kind, body) for kind, body in chunks.items()))
    for read in (read_image, image_size):
        fails(read, tmp_path / "a.png", "a side of 1048577 pixels, more than 1048576")


def test_a_large_mask_of_another_kind_is_described_from_a_sample(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (3000, 1500), (1, 2, 3)))
    fails(read_label, path, "1 colour, (1, 2, 3) at row 0, column 0 and in 500000 pixels of 500000 that were looked at")


def test_several_pages_are_said(tmp_path):
    one, two = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    for ending, options in (("tif", {}), ("png", {}), ("webp", {"lossless": True}), ("gif", {})):
        path = save(tmp_path / f"a.{ending}", one, save_all=True, append_images=[two, one], **options)
        assert read_header(path).losses() == ["has 3 pages or frames, of which only the first is read"]
        if ending != "gif":
            assert np.array_equal(read_image(path), RGB)
        assert read_header(save(tmp_path / f"b.{ending}", one)).losses() == []


def test_overviews_are_no_pages(tmp_path):
    path = save_deep(tmp_path / "a.tif", RGB.repeat(8, 0).repeat(8, 1))
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    assert read_header(path).losses() == []


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "webp", "tiff", "gif"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.97])
def test_truncated_image_is_refused(tmp_path, ending, keep):
    path = save(tmp_path / f"a.{ending}", Image.fromarray(RGB))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    fails(read_image, path)


def test_bytes_after_the_end_are_harmless(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB))
    path.write_bytes(path.read_bytes() + b"\0\0camera")
    assert read_image(path).shape == RGB.shape


@pytest.mark.parametrize("read", [read_image, read_label])
def test_not_a_file_to_read(tmp_path, read):
    fails(read, tmp_path / "absent.png", "no such")
    fails(read, tmp_path, "folder")
    (tmp_path / "empty.png").touch()
    fails(read, tmp_path / "empty.png", "empty")
    (tmp_path / "text.png").write_text("not an image")
    fails(read, tmp_path / "text.png")


def test_labels_keep_their_values(tmp_path):
    labels = RGB[..., 0]
    assert np.array_equal(read_label(save(tmp_path / "l.png", Image.fromarray(labels))), labels)
    write_png(tmp_path / "p.png", labels, palette=[(i, 255 - i, 7) for i in range(256)])
    assert Image.open(tmp_path / "p.png").mode == "P"
    assert np.array_equal(read_label(tmp_path / "p.png"), labels)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bit_grey_labels_are_not_stretched(tmp_path, bits):
    values = (np.arange(64).reshape(8, 8) % (1 << bits)).astype(np.uint8)
    rows = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes() for row in values]

    header = struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    data = PNG_START + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    (tmp_path / "l.png").write_bytes(data)
    assert np.array_equal(read_label(tmp_path / "l.png"), values)


def test_wrong_label_kinds_are_refused(tmp_path):
    labels = Image.fromarray(RGB[..., 0])
    fails(read_label, save(tmp_path / "rgb.png", Image.fromarray(RGB)), "RGB", "class number", "--data.masks colors")
    two = np.zeros((4, 5, 3), np.uint8)
    two[1:, 2:] = 64, 128, 192
    held = "2 colours, (0, 0, 0) at row 0, column 0 and in 11 pixels"
    fails(read_label, save(tmp_path / "two.png", Image.fromarray(two)), held)
    fails(read_label, save(tmp_path / "deep.png", Image.fromarray(RGB[..., 0].astype(np.uint16))), "mode I", "8 bits")
    fails(read_label, save(tmp_path / "l.jpg", labels), "JPEG", "PNG", " values, ", "at row 0, column 0 and in ")
    cut = save(tmp_path / "cut.png", labels)
    cut.write_bytes(cut.read_bytes()[:-40])
    fails(read_label, cut)


def test_writing_makes_folders_and_leaves_nothing_behind(tmp_path):
    write_png(tmp_path / "a/b/c.png", RGB)
    write_json(tmp_path / "a/b/d.json", {"x": [1, 2]})
    assert np.array_equal(read_image(tmp_path / "a/b/c.png"), RGB)
    assert json.loads((tmp_path / "a/b/d.json").read_text()) == {"x": [1, 2]}
    assert sorted(path.name for path in (tmp_path / "a/b").iterdir()) == ["c.png", "d.json"]
    with pytest.raises(ValueError):
        write_png(tmp_path / "f.png", RGB.astype(np.float32))


def test_png_in_memory_size_is_unchanged(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    assert np.array_equal(read_image(str(tmp_path / "a.png")), RGB)


@pytest.mark.parametrize("kind", ["tif", "npy"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_labels_of_many_bits_are_read_where_no_value_changes(kind: str, dtype: type, tmp_path: Path) -> None:
    values = np.array([[0, 1, 255], [7, 0, 2]])
    assert (read_label(save_values(tmp_path / f"whole.{kind}", values.astype(dtype))) == values).all()
    assert read_label(tmp_path / f"whole.{kind}").dtype == np.uint8
    if dtype is not np.uint8:
        values[1, 1] = 256
        fails(read_label, save_values(tmp_path / f"a.{kind}", values.astype(dtype)), "the value 256", "row 1, column 1")
    if dtype is np.float32:
        for wrong in (0.5, np.nan, -1.0):
            mixed = np.array([[1, wrong]], np.float32)
            fails(read_label, save_values(tmp_path / f"b.{kind}", mixed), f"the value {wrong}", "whole numbers 0..255")


def save_values(path: Path, values: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    return path


def test_labels_of_several_channels_or_objects_are_refused(tmp_path: Path) -> None:
    fails(read_label, save_values(tmp_path / "a.npy", np.zeros((2, 3, 3))), "(2, 3, 3)", "needed is (H, W)")
    np.save(tmp_path / "b.npy", np.array([[{}]], object), allow_pickle=True)
    fails(read_label, tmp_path / "b.npy", "b.npy")
