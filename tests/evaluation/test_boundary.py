"""Boundary IoU against values worked out by hand, the paper's definition in plain loops, and per-class erosions."""

import cv2
import numpy as np
import pytest

from segkit.errors import InputError
from segkit.evaluation.boundary import boundary_areas, boundary_distance
from segkit.evaluation.statistics import class_iou, mean_iou


def boundary_iou(areas):
    iou = class_iou(areas)
    return iou, float(mean_iou(iou))


def blobs(num_classes, size, seed, cell=6):
    """Random label map made of patches, so that boundaries are not everything."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, num_classes, (size[0] // cell + 1, size[1] // cell + 1)).astype(np.uint8)
    return np.ascontiguousarray(small.repeat(cell, 0).repeat(cell, 1)[: size[0], : size[1]])


def pair(num_classes, size, seed):
    mask, labels = blobs(num_classes, size, seed), blobs(num_classes, size, seed)
    labels[2:] = labels[:-2].copy()
    labels[: size[0] // 3, :5] = num_classes - 1
    return mask, labels


def by_class_loops(mask, labels, num_classes, distance):
    """The definition, pixel by pixel: counted pixels of a class with a counted other pixel, or the end, within d."""
    height, width = mask.shape

    def boundary(ids, c):
        found = set()
        for y, x in zip(*np.nonzero((ids == c) & (mask != 255)), strict=True):
            inside = distance <= y < height - distance and distance <= x < width - distance
            rows, cols = slice(max(0, y - distance), y + distance + 1), slice(max(0, x - distance), x + distance + 1)
            if not inside or (ids[rows, cols] != c)[mask[rows, cols] != 255].any():
                found.add((y, x))
        return found

    both = [(boundary(mask, c), boundary(labels, c)) for c in range(num_classes)]
    return [[len(t & p) for t, p in both], [len(t) for t, _ in both], [len(p) for _, p in both]]


def authors_boundary(binary, distance):
    """As the paper's helper has it: pad by one, erode d times by 3 x 3, subtract."""
    padded = cv2.copyMakeBorder(binary, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return binary - cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]


def test_by_hand():
    # d = max(1, round(0.02 * 9.9)) = 1. Class 1 is a 5 x 5 square, predicted one column to the right, at the border.
    # Its rims have 16 pixels each and share 4 of the upper and 4 of the lower side. Class 0 is the 24 pixels around,
    # all of them boundary (beside the square or at the border); they share both rows (7 + 7) and column 0 (5).
    mask, labels = np.zeros((2, 7, 7), np.uint8)
    mask[1:6, 1:6], labels[1:6, 2:7] = 1, 1
    assert boundary_distance((7, 7)) == 1
    areas = boundary_areas(mask, labels, 3)
    assert areas.tolist() == [[19, 8, 0], [24, 16, 0], [24, 16, 0]]
    iou, mean = boundary_iou(areas)
    np.testing.assert_allclose(iou, [19 / 29, 8 / 24, np.nan])
    assert mean == pytest.approx((19 / 29 + 8 / 24) / 2)


@pytest.mark.parametrize(("size", "ratio"), [((23, 31), 0.02), ((30, 21), 0.06), ((12, 40), 0.2), ((1, 9), 0.02)])
def test_is_the_definition_in_loops(size, ratio):
    mask, labels = pair(4, size, seed=1)
    mask[np.random.default_rng(0).random(size) < 0.02] = 255
    mask[: size[0] // 4, : size[1] // 3] = 255
    labels[-1, -3:] = 200  # of no class
    distance = boundary_distance(size, ratio)
    expected = by_class_loops(mask, labels, 4, distance)
    assert boundary_areas(mask, labels, 4, dilation_ratio=ratio).tolist() == expected


@pytest.mark.parametrize("size", [(120, 160), (333, 250)])
@pytest.mark.parametrize("num_classes", [2, 19, 255])
def test_without_ignored_pixels_it_is_the_papers_helper_class_by_class(size, num_classes):
    mask, labels = pair(num_classes, size, seed=2)
    distance = boundary_distance(size)
    assert distance == max(1, round(0.02 * np.sqrt(size[0] ** 2 + size[1] ** 2))) > 3
    areas = boundary_areas(mask, labels, num_classes)
    for c in range(num_classes):
        true, predicted = (authors_boundary((ids == c).astype(np.uint8), distance) for ids in (mask, labels))
        assert areas[:, c].tolist() == [(true & predicted).sum(), true.sum(), predicted.sum()]


@pytest.mark.parametrize("distance", [1, 3, 8])
def test_erosions_by_three_are_one_by_a_larger_square(distance):
    binary = (blobs(5, (60, 70), seed=3, cell=13) < 3).astype(np.uint8)
    padded = cv2.copyMakeBorder(binary, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    many = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)
    assert np.array_equal(many, cv2.erode(padded, np.ones((2 * distance + 1,) * 2, np.uint8))) and many.any()


def test_truth_and_prediction_are_treated_alike():
    mask, labels = pair(5, (50, 60), seed=4)
    there, back = boundary_areas(mask, labels, 5), boundary_areas(labels, mask, 5)
    assert np.array_equal(there, back[[0, 2, 1]]) and not np.array_equal(there[1], there[2])


def test_class_numbers_do_not_matter():
    mask, labels = pair(5, (50, 60), seed=5)
    order = np.array([3, 0, 4, 1, 2], np.uint8)
    assert np.array_equal(boundary_areas(order[mask], order[labels], 5)[:, order], boundary_areas(mask, labels, 5))


def test_ignored_pixels_neither_earn_nor_cost():
    mask, _ = pair(4, (60, 80), seed=6)
    mask[20:30, 10:70] = 255
    right, other = mask.copy(), mask.copy()
    right[mask == 255] = 1
    other[mask == 255] = np.random.default_rng(0).integers(0, 256, 600).astype(np.uint8)
    areas = boundary_areas(mask, right, 4)
    assert np.array_equal(areas, boundary_areas(mask, other, 4))
    assert boundary_iou(areas)[1] == 1 and areas[0].sum() > 0
    alone = np.zeros((60, 80), np.uint8)
    alone[20:40, 30:50] = 255  # an ignored island in one class makes no boundary
    assert boundary_areas(alone, alone, 1)[1, 0] == 60 * 80 - 56 * 76


def test_a_thin_ignored_outline_hides_no_edge():
    mask = np.zeros((100, 100), np.uint8)
    mask[:, 50:] = 1
    bare = boundary_areas(mask, mask, 2, dilation_ratio=0.05)  # d = 7
    mask[:, 49:51] = 255
    outlined = boundary_areas(mask, mask, 2, dilation_ratio=0.05)
    assert bare[1, 0] - outlined[1, 0] == 2 * 86 + 14  # 7 wide becomes 5, and a column out of the border's 14 rows


def test_nothing_counted_has_no_score():
    iou, mean = boundary_iou(boundary_areas(np.full((4, 5), 255, np.uint8), np.zeros((4, 5), np.uint8), 2))
    assert np.isnan(iou).all() and np.isnan(mean)


def test_wrong_input_is_refused():
    zeros = np.zeros((4, 5), np.uint8)
    with pytest.raises(InputError, match="must both be"):
        boundary_areas(zeros, zeros[:3], 2)
    with pytest.raises(InputError, match="uint8"):
        boundary_areas(zeros, zeros.astype(np.int64), 2)
    with pytest.raises(InputError, match="the mask holds 7"):
        boundary_areas(zeros + 7, zeros, 2)
    with pytest.raises(InputError, match="ratio"):
        boundary_areas(zeros, zeros, 2, dilation_ratio=0)
