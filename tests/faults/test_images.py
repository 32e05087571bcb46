"""Images that were damaged: read as Pillow reads them or refused in a line; no traceback, no hang, no gigabytes."""

import io
import resource
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from campaign import Campaign
from checkpoints import write_checkpoint
from mutations import Stored, geotiff, interlaced_png, mutated, saved
from PIL import Image, ImageOps

from segkit.cli import main
from segkit.errors import InputError
from segkit.io import image_size, read_image
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.segmentation import FCN

SEED = 13
LOSSY = 3  # levels by which OpenCV's and Pillow's JPEGs may differ
GROWTH = 400e6  # bytes that reading many small files may need at most
SPACE = LabelSpace(("road", "tree", "sky"), distinct_palette(3), identity_table(3))

Say = Callable[[str], None]


def originals() -> dict[str, bytes]:
    """One of each kind, 48 x 40, smooth with some noise."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    smooth = np.asarray(small.resize((48, 40), Image.Resampling.BICUBIC)).astype(int)
    rgb = np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
    deep, image, grey = rgb.astype(np.uint16) * 257, Image.fromarray(rgb), Image.fromarray(rgb[..., 0])
    bands, lying = rgb.transpose(2, 0, 1), Image.Exif()
    lying[0x0112] = 6
    tiles = {"tiled": True, "blockxsize": 32, "blockysize": 32, "photometric": "RGB"}
    return {
        "jpeg": saved(image, "JPEG"),
        "jpeg, progressive": saved(image, "JPEG", progressive=True),
        "jpeg, grey": saved(grey, "JPEG"),
        "jpeg, turned": saved(image, "JPEG", exif=lying),
        "jpeg, restarts": saved(image, "JPEG", restart_marker_rows=1),
        "png": saved(image, "PNG"),
        "png, grey": saved(grey, "PNG"),
        "png, palette": saved(image.quantize(40), "PNG"),
        "png, 4 bits": saved(image.quantize(16), "PNG", bits=4),
        "png, alpha": saved(Image.fromarray(np.dstack([rgb, rgb[..., 0]])), "PNG"),
        "png, 16 bits": saved(Image.fromarray(deep[..., 0]), "PNG"),
        "png, interlaced": interlaced_png(rgb),
        "png, turned": saved(image, "PNG", exif=lying),
        "tiff": saved(image, "TIFF"),
        "tiff, lzw": saved(image, "TIFF", compression="tiff_lzw"),
        "tiff, turned": saved(image, "TIFF", exif=lying),
        "tiff, tiles": geotiff(bands, **tiles),
        "tiff, planes": geotiff(bands, compress="deflate", interleave="band", photometric="RGB"),
        "tiff, 16 bits": geotiff(deep.transpose(2, 0, 1), compress="lzw", photometric="RGB"),
        "tiff, 16 bits grey": geotiff(deep[..., :1].transpose(2, 0, 1)),
        "webp": saved(image, "WEBP"),
        "webp, lossless": saved(image, "WEBP", lossless=True),
        "bmp": saved(image, "BMP"),
        "bmp, palette": saved(image.quantize(64), "BMP"),
        "gif": saved(image.quantize(64), "GIF"),
    }


def by_pillow(data: bytes) -> np.ndarray | None:
    """RGB as it is shown; None where Pillow refuses."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            image.load()
            with suppress(Exception):  # an orientation that is damaged
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):
                return np.asarray(image).astype(np.uint16)[..., None].repeat(3, 2) >> 8
            return np.asarray(image.convert("RGB"))
    except Exception:
        return None


def check(data: bytes, original: bytes) -> None:
    """Read one; compare it with what Pillow makes of it."""
    try:
        read = read_image(Stored("x", data), apply_exif=True)
    except InputError:
        if data == original:
            raise AssertionError("an undamaged file was refused") from None
        raise
    assert image_size(Stored("x", data), apply_exif=True) == read.shape[1::-1], "its size is another one"
    expected, is_jpeg = by_pillow(data), data.startswith(b"\xff\xd8")
    if expected is None:
        assert is_jpeg, "Pillow refuses it"  # a part that is there twice: JPEG has no check sum
        return
    assert expected.shape == read.shape, f"Pillow reads {expected.shape}, segkit {read.shape}"
    most = np.abs(read.astype(int) - expected).max()
    assert most <= (LOSSY if is_jpeg else 0), f"differs from Pillow's by {most}"


def attack_reading(count: int, say: Say) -> None:
    campaign = Campaign("images", say)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files = originals()
    for name, data in files.items():
        with campaign.case(name):
            check(data, data)
    for label, original, data in mutated(files, count, SEED):
        with campaign.case(label):
            check(data, original)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if grown > GROWTH:
        campaign.fail("all", f"took {grown / 1e6:.0f} MB")
    campaign.finish()
    assert campaign.counts["done"] > count / 5  # a reader that refuses everything survives, too


def attack_infer(count: int, say: Say, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each file `segkit infer` writes all results, or one line."""
    torch.manual_seed(0)
    checkpoint = write_checkpoint(folder / "tiny.ckpt", FCN("resnest14_tiny", num_classes=3), SPACE)
    paths: dict[Path, str] = {}
    for i, (label, _, data) in enumerate(mutated(originals(), count, SEED + 1)):
        path = folder / "in" / f"{i:04d}.{label.split()[4].strip(',')}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        paths[path] = label
    options = ["--checkpoint", str(checkpoint), "--output", str(folder / "out"), "--device", "cpu"]
    code = main(["infer", *map(str, paths), *options, "--precision", "float32"])
    said = capsys.readouterr().err.replace("\r", "\n").splitlines()
    campaign = Campaign("images through infer", say)
    failed = 0
    for path, label in paths.items():
        lines = [line for line in said if f"error: {path}" in line]
        results = len(list((folder / "out").glob(f"{path.stem}_*")))
        failed += bool(lines)
        with campaign.case(label):
            assert (len(lines), results) in ((0, 4), (0, 3), (1, 0)), f"{results} results, {lines}"  # 3: in tiles
            if lines:
                raise InputError(lines[0])
    assert code == (1 if failed else 0) and failed < len(paths)
    campaign.finish()


@pytest.fixture(autouse=True)
def _small_files_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", "1000000")


def test_a_sample_is_read_rightly_or_refused(figures: Say) -> None:
    attack_reading(500, figures)


@pytest.mark.slow
def test_a_sample_through_infer(figures: Say, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attack_infer(25, figures, tmp_path, capsys)


@pytest.mark.campaign
def test_5000_images_are_read_rightly_or_refused(figures: Say) -> None:
    attack_reading(5000, figures)


@pytest.mark.campaign
def test_250_images_through_infer(figures: Say, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attack_infer(250, figures, tmp_path, capsys)
