"""Colours, overlays, legends and panels: hand-worked pixels, sizes, and text that is really there."""

import numpy as np
import pytest

from segkit.errors import InputError
from segkit.visualization import colorize, hatch, legend, occurring, overlay, with_legend

PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
NAMES = ["road", "tree", "sky"]
LABELS = np.array([[0, 1, 1], [2, 255, 1]], np.uint8)


def test_colorize_paints_each_class_and_leaves_ignored_black() -> None:
    image = colorize(LABELS, PALETTE)
    assert image.dtype == np.uint8
    assert image.tolist() == [[[200, 0, 0], [0, 200, 0], [0, 200, 0]], [[0, 0, 200], [0, 0, 0], [0, 200, 0]]]


def test_colorize_accepts_any_integer_type() -> None:
    assert (colorize(LABELS.astype(np.int64), PALETTE) == colorize(LABELS, PALETTE)).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([[3]], np.uint8), "label 3 has no colour"),
        (np.array([[-1]], np.int64), "label -1 has no colour"),
        (np.zeros((2, 2, 3), np.uint8), "2-d integer array"),
        (np.zeros((2, 2), np.float32), "2-d integer array"),
    ],
)
def test_colorize_refuses_what_it_cannot_paint(labels: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        colorize(labels, PALETTE)


def test_overlay_mixes_and_shows_the_image_where_ignored() -> None:
    image = np.full((2, 3, 3), 100, np.uint8)
    mixed = overlay(image, LABELS, PALETTE, alpha=0.5)
    assert mixed[0, 0].tolist() == [150, 50, 50]
    assert mixed[1, 1].tolist() == [100, 100, 100]
    assert (overlay(image, LABELS, PALETTE, alpha=0) == image).all()
    full = overlay(image, LABELS, PALETTE, alpha=1)
    assert (full[LABELS != 255] == colorize(LABELS, PALETTE)[LABELS != 255]).all()


def test_overlay_refuses_other_sizes_and_weights() -> None:
    with pytest.raises(InputError, match="differ"):
        overlay(np.zeros((3, 2, 3), np.uint8), LABELS, PALETTE)
    with pytest.raises(InputError, match=r"outside 0\.\.1"):
        overlay(np.zeros((2, 3, 3), np.uint8), LABELS, PALETTE, alpha=2)


def test_hatch_marks_ignored_pixels_alone_and_black_ones_too() -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[:, 30:] = 255
    for grey in (0, 90, 255):
        image = np.full((40, 60, 3), grey, np.uint8)
        hatched = hatch(image, labels)
        assert (hatched[:, :30] == grey).all() and (image == grey).all()
        values, counts = np.unique(hatched[:, 30:], return_counts=True)
        assert set(values) == {grey // 3, 130} and counts.min() / counts.sum() == pytest.approx(0.25, abs=0.01)


def test_occurring_is_sorted_by_area_then_id() -> None:
    assert occurring(LABELS) == [1, 0, 2, 255]


def test_legend_shows_each_colour_and_dark_text() -> None:
    image = legend(NAMES, PALETTE, width=400)
    colours = {tuple(c) for c in image.reshape(-1, 3).tolist()}
    assert set(PALETTE) <= colours
    assert image.shape[1] == 400
    assert (image.max(axis=2) < 60).sum() > 20  # ink


@pytest.mark.slow
def test_legend_of_150_classes_stays_small_and_says_how_many_are_left_out() -> None:
    palette = [(i, 255 - i, 128) for i in range(150)]
    names = [f"a class with a rather long name {i}" for i in range(150)]
    image = legend(names, palette, width=800)
    assert image.shape[0] < 180
    colours = {tuple(c) for c in image.reshape(-1, 3).tolist()}
    shown = [colour in colours for colour in palette]
    assert shown.index(False) == sum(shown) > 5  # the first ones, and only they


def test_legend_of_nothing_has_no_height_and_needs_a_colour_each() -> None:
    assert legend([], [], width=50).shape == (0, 50, 3)
    with pytest.raises(InputError, match="2 class names and 3 colours"):
        legend(NAMES[:2], PALETTE, width=50)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (32, 40), (97, 65), (300, 20), (2, 3000)])
def test_with_legend_of_any_size(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 77, np.uint8)
    labels = np.zeros(shape, np.uint8)
    drawn = with_legend(image, labels, NAMES, PALETTE)
    assert drawn.dtype == np.uint8 and drawn.ndim == 3
    assert PALETTE[0] in {tuple(c) for c in drawn.reshape(-1, 3).tolist()}
    assert drawn.shape[0] >= min(240, shape[0])
    assert drawn.shape[1] >= 240


def test_with_legend_enlarges_small_images_without_new_colours() -> None:
    labels = np.array([[0, 1], [1, 0]], np.uint8)
    image = with_legend(colorize(labels, PALETTE), labels, NAMES, PALETTE)
    assert (image == PALETTE[0]).all(axis=2).sum() >= 240 * 240 // 2
    assert not (image == (100, 100, 0)).all(axis=2).any()


def test_arguments_are_left_as_they_were() -> None:
    image, labels = np.full((2, 3, 3), 9, np.uint8), LABELS.copy()
    with_legend(image, labels, NAMES, PALETTE)
    overlay(image, labels, PALETTE)
    assert (image == 9).all() and (labels == LABELS).all()
