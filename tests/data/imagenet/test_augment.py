"""The authors' training augmentation: operations against NumPy and torchvision, the random area by its distribution."""

import random

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional

from segkit.data.imagenet.augment import OPERATIONS, TrainCrop, augmented, random_area


def image(height: int = 31, width: int = 46, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def run(name: str, value: float, sign: float = 0.0, of: Image.Image | None = None) -> np.ndarray:
    """The operation, with the side to which it goes fixed: 0 the positive one, 1 the other."""
    rng = random.Random(0)
    rng.random = lambda: sign  # type: ignore[method-assign]
    return np.array(OPERATIONS[name][2](image() if of is None else of, value, rng))


def test_there_are_sixteen_with_the_published_ranges() -> None:
    ranges = {name: (low, high) for name, (low, high, _) in OPERATIONS.items()}
    assert len(ranges) == 16
    assert {ranges[n] for n in ("color", "contrast", "brightness", "sharpness")} == {(0.1, 1.9)}
    rest = {n: high for n, (low, high) in ranges.items() if low == 0.0}
    assert rest == {"auto_contrast": 1, "equalize": 1, "invert": 1, "rotate": 30, "posterize": 4, "solarize": 256,
                    "solarize_add": 110, "shear_x": 0.3, "shear_y": 0.3, "cutout": 40, "translate_x": 100,
                    "translate_y": 100}  # fmt: skip


def test_colours_change_as_torchvision_changes_them() -> None:
    given = image()
    expected = {
        "auto_contrast": functional.autocontrast(given),
        "equalize": functional.equalize(given),
        "invert": functional.invert(given),
        "posterize": functional.posterize(given, 1),
        "solarize": functional.solarize(given, 102.4),
        "color": functional.adjust_saturation(given, 0.82),
        "contrast": functional.adjust_contrast(given, 0.82),
        "brightness": functional.adjust_brightness(given, 0.82),
        "sharpness": functional.adjust_sharpness(given, 0.82),
    }
    values = {"posterize": 1.6, "solarize": 102.4}
    for name, wanted in expected.items():
        assert np.array_equal(run(name, values.get(name, 0.82)), wanted), name
    brighter = np.minimum(np.asarray(given).astype(int) + 44, 255)
    assert np.array_equal(run("solarize_add", 44.0), np.where(brighter < 128, brighter, 255 - brighter))
    assert run("posterize", 0.4).max() == 128  # one bit at least, as Pillow allows


def test_geometry_moves_as_it_says() -> None:
    given = np.asarray(image())
    assert np.array_equal(run("translate_x", 5.0)[:, :-5], given[:, 5:]) and not run("translate_x", 5.0)[:, -5:].any()
    assert np.array_equal(run("translate_y", 5.0, 1)[5:], given[:-5]) and not run("translate_y", 5.0, 1)[:5].any()
    assert np.array_equal(run("rotate", 90.0, of=image(32, 32)), np.rot90(image(32, 32)))
    assert np.array_equal(run("rotate", 90.0, 1, of=image(32, 32)), np.rot90(image(32, 32), -1))
    ramp = Image.fromarray(np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 20, 0).repeat(3, 2) * 2)
    sheared = run("shear_x", 0.25, of=ramp).astype(float)[:, 20:40, 0]  # row y shows what lies y / 4 to the right
    assert np.abs(sheared - (np.arange(20, 40) + 0.25 * (np.arange(20)[:, None] + 0.5)) * 2).max() <= 1
    assert np.array_equal(run("shear_y", 0.25, of=ramp.transpose(Image.Transpose.TRANSPOSE)).transpose(1, 0, 2),
                          run("shear_x", 0.25, of=ramp))  # fmt: skip


def test_a_hole_is_a_square_of_grey_around_any_place() -> None:
    rng = random.Random(1)
    sizes = set()
    for _ in range(200):
        changed = np.array(OPERATIONS["cutout"][2](Image.new("RGB", (64, 48)), 16.0, rng))
        rows, cols = np.nonzero((changed == (125, 123, 114)).all(axis=2))
        assert (changed == (125, 123, 114)).all(axis=2).sum() == (changed.sum(axis=2) > 0).sum()
        sizes.add((int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1))
    assert max(sizes) == (17, 17) and min(min(size) for size in sizes) < 17  # cut off at the border


def test_each_operation_is_left_out_half_of_the_time() -> None:
    rng, given = random.Random(0), image()
    done = sum(not np.array_equal(augmented(given, ["invert"], 12, rng), given) for _ in range(2000))
    assert 900 < done < 1100


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (100, 400)])
def test_areas_and_ratios_are_within_their_ranges(size: tuple[int, int]) -> None:
    rng = random.Random(0)
    boxes = [random_area(size, rng) for _ in range(2000)]
    found = np.array([box for box in boxes if box is not None])
    assert len(found) > 1900 or size == (100, 400)
    width, height = found[:, 2] - found[:, 0], found[:, 3] - found[:, 1]
    share = width * height / (size[0] * size[1])
    assert share.min() >= 0.1 and share.max() <= 1.0
    assert (np.abs(width - height * 0.75) <= 1).any() and (width / height).min() > 0.72
    assert (width / height).max() < 1.36
    assert found[:, :2].min() >= 0 and (found[:, 2] <= size[0]).all() and (found[:, 3] <= size[1]).all()


def test_a_height_is_drawn_evenly_not_an_area() -> None:
    """On a square with ratio 1 heights lie evenly between sqrt(0.1) and 1, so areas average (1 + r + r^2) / 3."""
    rng = random.Random(0)
    rng_uniform = rng.uniform
    rng.uniform = lambda a, b: 1.0 if (a, b) == (3 / 4, 4 / 3) else rng_uniform(a, b)  # type: ignore[method-assign]
    boxes = [random_area((1000, 1000), rng) for _ in range(4000)]
    shares = [(b[2] - b[0]) ** 2 / 1e6 for b in boxes if b is not None]
    smallest = 0.1**0.5
    assert np.mean(shares) == pytest.approx((1 + smallest + 0.1) / 3, abs=0.015)


def test_crops_are_a_function_of_their_key() -> None:
    crop, given = TrainCrop(32), image(80, 100)
    first = np.array(crop(given, (0, 1, 2, 0)))
    assert first.shape == (32, 32, 3) and np.array_equal(first, crop(given, (0, 1, 2, 0)))
    assert not any(np.array_equal(first, crop(given, key)) for key in [(1, 1, 2, 0), (0, 2, 2, 0), (0, 1, 3, 0)])


def test_nothing_but_mirroring_is_left_of_a_crop_without_augmentation() -> None:
    """Where the area is the whole image, the centre is taken, as for a test."""
    whole = Image.new("RGB", (2, 2), (9, 9, 9))
    assert np.array_equal(TrainCrop(2, (0, 0), 0.0)(whole, (0,)), whole)
