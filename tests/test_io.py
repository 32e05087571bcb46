import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segkit.errors import InputError
from segkit.files import write_json
from segkit.io import read_image, read_label, write_png

RGB = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def save(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


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


def test_exif_turns_only_when_asked(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    path = save(tmp_path / "e.jpg", Image.fromarray(RGB), exif=exif.tobytes())
    assert read_image(path).shape == (40, 56, 3)
    assert read_image(path, apply_exif=True).shape == (56, 40, 3)


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "webp", "tiff", "gif"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.97])
def test_truncated_picture_is_refused(tmp_path, ending, keep):
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
    (tmp_path / "text.png").write_text("not a picture")
    fails(read, tmp_path / "text.png")


def test_labels_keep_their_values(tmp_path):
    labels = RGB[..., 0]
    assert np.array_equal(read_label(save(tmp_path / "l.png", Image.fromarray(labels))), labels)
    write_png(tmp_path / "p.png", labels, palette=[(i, 255 - i, 7) for i in range(256)])
    assert Image.open(tmp_path / "p.png").mode == "P"
    assert np.array_equal(read_label(tmp_path / "p.png"), labels)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bit_grey_labels_are_not_stretched(tmp_path, bits):
    import struct
    import zlib

    values = (np.arange(64).reshape(8, 8) % (1 << bits)).astype(np.uint8)
    rows = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes() for row in values]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    (tmp_path / "l.png").write_bytes(data)
    assert np.array_equal(read_label(tmp_path / "l.png"), values)


def test_wrong_label_kinds_are_refused(tmp_path):
    labels = Image.fromarray(RGB[..., 0])
    fails(read_label, save(tmp_path / "rgb.png", Image.fromarray(RGB)), "RGB", "class number")
    two = np.zeros((4, 5, 3), np.uint8)
    two[1:, 2:] = 64, 128, 192
    held = "2 colours, (0, 0, 0) at row 0, column 0 and in 11 pixels"
    fails(read_label, save(tmp_path / "two.png", Image.fromarray(two)), held)
    fails(read_label, save(tmp_path / "deep.png", Image.fromarray(RGB[..., 0].astype(np.uint16))), "I;16", "8 bits")
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
