"""PhotoMetricDistortion: byte for byte mmsegmentation's, its draws, and its place in the training transform."""

import math
import random

import cv2
import numpy as np
import pytest

from segkit.data.albumentations import A
from segkit.data.crops import RandomLongSideCrop
from segkit.data.photometric import PhotoMetricDistortion
from segkit.data.transforms import TrainTransform
from segkit.errors import InputError

NO = math.nan  # a step that is left out
NAMES = ("brightness", "contrast", "contrast_first", "saturation", "hue")
DRAWS = (
    (NO,       NO,       0, NO,      NO),
    (17.3,     NO,       0, NO,      NO),
    (-31.9,    NO,       1, NO,      NO),
    (NO,       1.4871,   0, NO,      NO),
    (NO,       0.5123,   1, NO,      NO),
    (NO,       NO,       0, 1.4999,  NO),
    (NO,       NO,       1, 0.5001,  NO),
    (NO,       NO,       0, NO,      17),
    (NO,       NO,       1, NO,      -18),
    (NO,       NO,       0, 1.2345,  -7),
    (31.7,     1.3333,   1, NO,      NO),
    (31.7,     1.3333,   0, NO,      NO),
    (-12.25,   0.7777,   0, 0.8765,  9),
    (-12.25,   0.7777,   1, 0.8765,  9),
    (28.0,     1.5,      0, 1.5,     -18),
    (-28.0,    1.5,      1, 1.5,     17),
)  # fmt: skip
IMAGE = np.random.default_rng(7).integers(0, 256, (37, 53, 3), np.uint8)
MASK = np.random.default_rng(8).integers(0, 5, (37, 53), np.uint8)


class FixedDraws:
    """In the place of `numpy.random` in mmseg's file: yields what it is given, in the order of the calls."""

    def __init__(self, values):
        self.values = values

    def randint(self, *_):
        return int(self.values.pop(0))

    def uniform(self, *_):
        return float(self.values.pop(0))


def in_order(brightness, contrast, contrast_first, saturation, hue):
    """The draws as mmseg's `transform` asks for them: whether, and then how much."""
    b, c, s, h = ([0] if math.isnan(v) else [1, v] for v in (brightness, contrast, saturation, hue))
    return [*b, contrast_first, *([*c, *s, *h] if contrast_first else [*s, *h, *c])]


def as_params(row):
    """A row of the draws as `apply` takes it."""
    params = {name: None if math.isnan(value) else float(value) for name, value in zip(NAMES, row, strict=True)}
    hue = params["hue"]
    return params | {"contrast_first": bool(params["contrast_first"]), "hue": None if hue is None else int(hue)}


def greys_and_colours():
    """Greys, full colours and random ones, (16, 64, 3) RGB."""
    made = np.random.default_rng(0).integers(0, 256, (16, 64, 3), np.uint8)
    made[:4] = np.arange(256, dtype=np.uint8).reshape(4, 64, 1)
    made[4:6] = np.random.default_rng(1).choice(np.array([0, 255], np.uint8), (2, 64, 3))
    return made


@pytest.mark.parametrize("draws", DRAWS)
def test_each_combination_is_that_of_mmsegmentation(draws, monkeypatch):
    """Of mmsegmentation itself: `uv run --group mmseg pytest tests/data/test_photometric.py`."""
    reason = "mmsegmentation is not installed: uv run --group mmseg pytest"
    theirs = pytest.importorskip("mmseg.datasets.transforms.transforms", reason=reason)
    fixed, rgb = FixedDraws(in_order(*draws)), greys_and_colours()
    monkeypatch.setattr(theirs, "random", fixed)
    expected = theirs.PhotoMetricDistortion().transform({"img": rgb[..., ::-1].copy()})["img"][..., ::-1]
    made = PhotoMetricDistortion().apply(rgb, **as_params(draws))
    assert made.dtype == np.uint8 and not fixed.values
    np.testing.assert_array_equal(made, expected)


def plain(img, brightness, contrast, contrast_first, saturation, hue):
    """The same without tables, in float32 and cut off, at every step."""

    def convert(array, alpha=1.0, beta=0.0):
        return np.clip(array.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)

    def in_hsv(img, channel, change):
        hsv = cv2.cvtColor(img, cv2.COLOR_RGB2HSV)
        hsv[..., channel] = change(hsv[..., channel])
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)

    img = img if brightness is None else convert(img, beta=brightness)
    img = convert(img, alpha=contrast) if contrast is not None and contrast_first else img
    img = img if saturation is None else in_hsv(img, 1, lambda s: convert(s, alpha=saturation))
    img = img if hue is None else in_hsv(img, 0, lambda h: (h.astype(int) + hue) % 180)
    return convert(img, alpha=contrast) if contrast is not None and not contrast_first else img


def seeded(seed, **options):
    transform = PhotoMetricDistortion(**options)
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return transform


def test_draws_are_those_of_the_formulas_without_tables():
    transform = seeded(0)
    for params in [*map(as_params, DRAWS), *(transform.get_params() for _ in range(60))]:
        np.testing.assert_array_equal(transform.apply(IMAGE, **params), plain(IMAGE, **params))


def test_draws_have_mmsegmentations_ranges_and_probabilities():
    transform = seeded(1)
    drawn = [transform.get_params() for _ in range(4000)]
    bounds = {"brightness": (-32, 32), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-18, 17)}
    for name, (low, high) in bounds.items():
        values = [params[name] for params in drawn if params[name] is not None]
        assert 0.46 < len(values) / len(drawn) < 0.54
        assert low <= min(values) < low + 0.05 * (high - low) and high - 0.05 * (high - low) < max(values) <= high
    assert {params["hue"] for params in drawn} == {None, *range(-18, 18)}
    assert 0.46 < np.mean([params["contrast_first"] for params in drawn]) < 0.54


def test_randomness_is_the_transforms_own_and_the_input_stays():
    before = IMAGE.copy()
    first, again = (
        [seeded_transform(image=IMAGE)["image"] for _ in range(5)] for seeded_transform in (seeded(3), seeded(3))
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({image.tobytes() for image in first}) > 1
    np.testing.assert_array_equal(IMAGE, before)


def test_ranges_of_nothing_and_p_0_change_nothing():
    still = seeded(0, brightness_delta=0, contrast_range=(1, 1))
    assert np.array_equal(still.apply(IMAGE, 0.0, 1.0, True, None, None), IMAGE)
    assert seeded(0, hue_delta=0).get_params()["hue"] in (None, 0)
    never = seeded(0, p=0.0)
    assert all(np.array_equal(never(image=IMAGE)["image"], IMAGE) for _ in range(10))


def test_the_training_transform_takes_it_among_others():
    """Every key its own draw, the mask follows rotation alone."""
    others = [A.GaussianBlur(p=0.5), A.Rotate((-20, 20), fill_mask=255, p=0.5)]
    transform = TrainTransform(RandomLongSideCrop(53, 32), [A.OneOf([PhotoMetricDistortion(), A.NoOp()]), *others])
    first = [transform(IMAGE, MASK, (0, 0, index)) for index in range(8)]
    again = [transform(IMAGE, MASK, (0, 0, index)) for index in reversed(range(8))][::-1]
    for (image, mask), (same_image, same_mask) in zip(first, again, strict=True):
        assert np.array_equal(image, same_image) and np.array_equal(mask, same_mask)
        assert image.shape == (32, 32, 3) and set(np.unique(mask)) <= {0, 1, 2, 3, 4, 255}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"brightness_delta": -1}, "brightness_delta is -1; allowed is 0 to 255"),
        ({"hue_delta": 91}, "hue_delta is 91; allowed is 0 to 90"),
        ({"contrast_range": (1.5, 0.5)}, "contrast_range is .*smaller one first"),
        ({"saturation_range": (-0.5, 0.5)}, "saturation_range is .*from 0 on"),
    ],
)
def test_wrong_numbers_are_refused_at_once(options, message):
    with pytest.raises(InputError, match=message):
        PhotoMetricDistortion(**options)


@pytest.mark.parametrize("wrong", [IMAGE.astype(np.float32), IMAGE[..., 0], IMAGE[..., :2]])
def test_other_images_are_refused(wrong):
    with pytest.raises(InputError, match="allowed is uint8"):
        PhotoMetricDistortion().apply(wrong, 1.0, None, False, None, None)
