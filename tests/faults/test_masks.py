"""Masks that were damaged: the values that were written, or a line; a PNG that is not whole is never read."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from campaign import Campaign
from mutations import Stored, interlaced_png, mutated, saved
from PIL import Image

from segkit.data.sets.folder import FolderDataModule
from segkit.errors import InputError
from segkit.io import read_colors, read_label
from segkit.metadata.label_space import LabelSpace

SEED = 7
CLASSES = 12

Say = Callable[[str], None]
Read = Callable[[Stored], np.ndarray]


def labels() -> np.ndarray:
    """Blocks of train ids and of 255, (40, 48)."""
    values = np.append(np.arange(CLASSES), 255).astype(np.uint8)
    small = np.random.default_rng(0).choice(values, (5, 6))
    return small.repeat(8, 0).repeat(8, 1)


def masks_of_ids() -> dict[str, bytes]:
    grey, few = Image.fromarray(labels()), Image.fromarray(labels() % 4)
    paletted = [image.copy() for image in (grey, few)]
    for image in paletted:
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
    return {
        "png": saved(grey, "PNG"),
        "png, palette": saved(paletted[0], "PNG"),
        "png, 2 bits": saved(paletted[1], "PNG", bits=2),
        "png, interlaced": interlaced_png(labels()),
        "png, 1 bit": saved(Image.fromarray(labels() < 5), "PNG"),
        "tiff, deflate": saved(grey, "TIFF", compression="tiff_adobe_deflate"),
        "tiff, lzw": saved(grey, "TIFF", compression="tiff_lzw"),
        "gif": saved(paletted[0], "GIF"),
    }


def masks_of_colours() -> dict[str, bytes]:
    paletted = Image.fromarray(labels())
    paletted.putpalette(PALETTE.ravel().tolist())
    image = Image.fromarray(PALETTE[labels()])
    return {
        "png": saved(image, "PNG"),
        "png, palette": saved(paletted, "PNG"),
        "png, interlaced": interlaced_png(PALETTE[labels()]),
        "tiff, lzw": saved(image, "TIFF", compression="tiff_lzw"),
        "webp": saved(image, "WEBP", lossless=True),
    }


PALETTE = np.random.default_rng(2).integers(0, 256, (256, 3), np.uint8)


def by_pillow(data: bytes, colours: bool) -> np.ndarray | None:
    """Values, or colours; None where Pillow refuses."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB") if colours else image, np.uint8)
    except Exception:
        return None


def attack(name: str, files: dict[str, bytes], read: Read, count: int, seed: int, say: Say) -> None:
    """Read masks; compare them with Pillow's, and those of PNG, which has check sums, with what was written."""
    campaign, is_colour = Campaign(name, say), read is read_colors
    written = {data: read(Stored(kind, data)) for kind, data in files.items()}
    for kind, data in files.items():
        with campaign.case(kind):
            assert np.array_equal(written[data], by_pillow(data, is_colour))
    for label, original, data in mutated(files, count, seed):
        with campaign.case(label):
            values = read(Stored("x", data))
            has_check_sums = "png" in label and "edit_chunk" not in label
            expected = None if has_check_sums else by_pillow(data, is_colour)
            assert np.array_equal(values, written[original] if expected is None else expected), "wrong values"
    campaign.finish()
    assert campaign.counts["done"] > count / 20  # a reader that refuses everything survives, too


def attack_tables(count: int, seed: int, say: Say, folder: Path) -> None:
    """Masks of any values through a data set's reader and its table: train ids, or the value that has none."""
    (folder / "classes.txt").write_text("\n".join(f"c{i}" for i in range(CLASSES)))
    rows = "\n".join(f"{255 - i},{i % (CLASSES + 1) if i % (CLASSES + 1) < CLASSES else 255}" for i in range(200))
    campaign = Campaign("masks through label tables", say)
    for i in range(count):
        (folder / "table.csv").write_text(f"raw,id\n{rows}\n") if i == count // 2 else None
        space: LabelSpace = FolderDataModule(folder).label_space
        rng = np.random.default_rng((seed, i))
        table = np.array(space.table)
        raw = rng.choice(np.flatnonzero(table >= 0), (9, 11)).astype(np.uint8)
        spoiled = rng.random() < 0.5
        if spoiled:
            raw[rng.integers(9), rng.integers(11)] = value = rng.choice(np.flatnonzero(table < 0))
        with campaign.case(f"seed ({seed}, {i})"):
            mask = FolderDataModule(folder).read_mask(Stored("x", saved(Image.fromarray(raw), "PNG")))
            try:
                ids = space.map_labels(mask, "x")
            except InputError as error:
                assert spoiled and f"x: raw label value {value} is not declared: 1 pixels" in str(error)
                raise
            assert not spoiled and np.array_equal(ids, table[raw])
    campaign.finish()


def test_a_sample_of_ids(figures: Say) -> None:
    attack("masks", masks_of_ids(), read_label, 300, SEED, figures)


def test_a_sample_of_colours(figures: Say) -> None:
    attack("masks of colours", masks_of_colours(), read_colors, 150, SEED, figures)


def test_a_sample_through_tables(figures: Say, tmp_path: Path) -> None:
    attack_tables(60, SEED, figures, tmp_path)


@pytest.mark.campaign
def test_1200_masks_of_ids(figures: Say) -> None:
    attack("masks", masks_of_ids(), read_label, 1200, SEED, figures)


@pytest.mark.campaign
def test_600_masks_of_colours(figures: Say) -> None:
    attack("masks of colours", masks_of_colours(), read_colors, 600, SEED, figures)


@pytest.mark.campaign
def test_200_masks_through_tables(figures: Say, tmp_path: Path) -> None:
    attack_tables(200, SEED, figures, tmp_path)
