"""What a report gathers of each image: worked out by hand, and the same in any order."""

import random

import cv2
import numpy as np
import pytest
import torch

from segkit.evaluation.calibration import Calibration, Reliability
from segkit.evaluation.confusion import confusion_counts
from segkit.evaluation.report.content import LONGEST
from segkit.evaluation.report.gather import Gatherer, ReadImage, example
from segkit.evaluation.report.measure import Facts, Piece, boundary_bands, measure, object_sizes
from segkit.evaluation.statistics import class_iou, mean_iou

NAMES = ("sky", "road", "sidewalk", "car")


def noisy(seed, shape=(40, 60)):
    """Truth of blobs, labels that are right for about two thirds, and a confidence."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, (shape[0] // 10, shape[1] // 10)).astype(np.uint8)
    truth = coarse.repeat(10, 0).repeat(10, 1)
    truth[rng.random(shape) < 0.05] = 255
    labels = np.where(rng.random(shape) < 0.7, truth % 4, rng.integers(0, 4, shape)).astype(np.uint8)
    labels[rng.random(shape) < 0.02] = 255
    return truth, labels, rng.integers(0, 256, shape).astype(np.uint8)


def gathered(seeds):
    found = Gatherer(len(NAMES))
    for seed in seeds:
        found.add(measure(f"image {seed}", *noisy(seed), NAMES))
    return found


def test_objects_are_connected_parts_of_one_class():
    truth = np.zeros((200, 200), np.uint8)
    truth[10:41, 10:43] = 1  # 31 x 33 = 1023 pixels: small
    truth[41:73, 43:75] = 1  # 32 x 32 = 1024, touching the first at a corner only: medium
    truth[100:196, 100:196] = 2  # 96 x 96: still medium
    truth[100:196, 99] = 3  # 96 pixels of another class beside it
    sizes = object_sizes(truth)
    for row, colour, area in ((0, 1, 1023), (1, 1, 1024), (1, 2, 96 * 96), (0, 3, 96)):
        assert ((sizes == row) & (truth == colour)).sum() == area
    assert (sizes[truth == 0] == 2).all()
    truth[196, 100] = 2  # one pixel more
    assert (object_sizes(truth)[truth == 2] == 2).all()


@pytest.mark.parametrize("seed", range(3))
def test_object_sizes_are_those_of_each_class_alone(seed):
    truth = np.random.default_rng(seed).integers(0, 3, (90, 110)).astype(np.uint8)
    truth[20:60, 30:90] = 1
    expected = np.zeros(truth.shape, np.uint8)
    for label in range(3):
        part, stats = cv2.connectedComponentsWithStats((truth == label).astype(np.uint8), connectivity=4)[1:3]
        area = stats[:, cv2.CC_STAT_AREA][part]
        mine = (area >= 1024).astype(np.uint8) + (area > 9216)
        expected[truth == label] = mine[truth == label]
    np.testing.assert_array_equal(object_sizes(truth), expected)


def test_distances_to_a_boundary():
    truth = np.zeros((5, 60), np.uint8)
    truth[:, 30:] = 1  # pixels 29 and 30 are at the boundary: distance 0
    truth[:, 50:] = 255  # whose edge is no boundary
    expected = [np.searchsorted((2, 5, 10, 20), 29 - x if x < 30 else x - 30) for x in range(60)]
    np.testing.assert_array_equal(boundary_bands(truth), np.tile(expected, (5, 1)))
    assert (boundary_bands(np.zeros((4, 4), np.uint8)) == 4).all()  # without a boundary, nothing is near one
    corner = np.zeros((9, 9), np.uint8)
    corner[0, 0] = 1
    # a square window round the three pixels at the boundary, (0, 0), (0, 1) and (1, 0)
    assert boundary_bands(corner)[2, 3] == boundary_bands(corner)[3, 2] == 0 and boundary_bands(corner)[3, 3] == 1


def test_groups_are_the_scores_of_their_pixels():
    found = gathered(range(3))
    maps = [noisy(seed)[:2] for seed in range(3)]
    for group, rows_of in zip(found.groups(), (object_sizes, boundary_bands), strict=True):
        for row, (_, iou, pixels) in enumerate(group.rows):
            areas = np.zeros((3, 4))
            for truth, labels in maps:
                here = (rows_of(truth) == row) & (truth != 255)
                for label in range(4):
                    true, predicted = here & (truth == label), here & (labels == label)
                    areas[:, label] += (true & predicted).sum(), true.sum(), predicted.sum()
            assert pixels == areas[1].sum()
            assert iou == (None if not pixels else pytest.approx(mean_iou(class_iou(areas))))
        assert sum(pixels for _, _, pixels in group.rows) == found.confusion.num_pixels


def test_the_confusion_is_that_of_confusion_counts():
    found, total = gathered(range(4)), 0
    for seed in range(4):
        truth, labels, _ = noisy(seed)
        total = total + confusion_counts(torch.from_numpy(truth.copy()), torch.from_numpy(labels), 4)
    assert torch.equal(found.confusion.counts, total) and found.confusion.num_images == 4
    assert dict(found.image_miou).keys() == {f"image {seed}" for seed in range(4)} == set(found.areas.names)
    np.testing.assert_array_equal(found.areas.areas.sum(axis=0)[0], total.numpy()[:4, :4].diagonal())


def test_nothing_depends_on_the_order():
    seeds = list(range(12))
    ordered, names = gathered(seeds), []
    random.Random(0).shuffle(seeds)
    shuffled = gathered(seeds)
    assert ordered.groups() == shuffled.groups() and ordered.image_miou == shuffled.image_miou
    assert ordered.reliability.to_dict() == shuffled.reliability.to_dict()
    assert ordered.chosen(3) == shuffled.chosen(3)
    names = [name for name, reasons in ordered.chosen(3).items() if "random" in reasons]
    other = Gatherer(4)
    for seed in seeds:
        truth, labels, _ = noisy(seed)
        other.add(measure(f"image {seed}", truth, 3 - np.minimum(labels, 3), None, NAMES))
    assert [name for name, reasons in other.chosen(3).items() if "random" in reasons] == names  # of another model, too


def test_the_worst_and_the_least_sure_are_chosen():
    found = Gatherer(4)
    for i in range(9):
        truth = np.ones((10, 10), np.uint8)
        labels = truth.copy()
        labels[:i] = 2
        found.add(measure(f"{i}", truth, labels, np.full((10, 10), 20 * i, np.uint8), NAMES))
    chosen = found.chosen(2)
    assert {name for name, reasons in chosen.items() if "worst" in reasons} == {"7", "8"}
    assert {name for name, reasons in chosen.items() if "uncertain" in reasons} == {"0", "1"}
    assert dict(found.image_miou)["4"] == pytest.approx((0.6 + 0) / 2)  # road 60 of 100, sidewalk 0 of 40


def test_words_name_the_largest_confusion():
    truth = np.ones((10, 10), np.uint8)
    labels = truth.copy()
    labels[:3, :] = 2
    labels[3, 0] = 0
    said = measure("a", truth, labels, None, NAMES).facts
    assert said.words == "road taken for sidewalk: 30 % of its pixels" and said.confidence_mean is None
    labels[:] = 255
    assert measure("a", truth, labels, None, NAMES).facts.words == (
        "road of no class in the prediction: 100 % of its pixels"
    )
    assert measure("a", truth, truth, None, NAMES).facts.words == "every pixel is right"
    nothing = measure("a", np.full((4, 4), 255, np.uint8), labels[:4, :4], None, NAMES).facts
    assert nothing.words == "" and nothing.miou is None
    assert measure("a", None, labels, None, NAMES).facts == Facts("a", "", None, None, None)


def test_a_planted_mislabelled_piece_is_found():
    truth = np.ones((100, 100), np.uint8)
    truth[20:30, 40:55] = 3  # the piece: 150 pixels of 10000, car in the truth
    labels, confidence = np.ones((100, 100), np.uint8), np.full((100, 100), 240, np.uint8)
    found = measure("a", truth, labels, confidence, NAMES).facts
    assert found.piece == Piece((20, 40, 30, 55), 0.015)
    assert "labelled car, surely predicted road in one piece of 2 % of the image" in found.words
    confidence[20:30, 40] = 229  # below 0.9
    assert measure("a", truth, labels, confidence, NAMES).facts.piece == Piece((20, 41, 30, 55), 0.014)
    confidence[20:30, 47] = 229  # two pieces, each below the share
    assert measure("a", truth, labels, confidence, NAMES).facts.piece is None
    confidence[:] = 240
    truth[20:30, 40:55] = 255
    assert measure("a", truth, labels, confidence, NAMES).facts.piece is None


def test_calibration_from_bytes_is_that_of_every_pixel():
    rng = np.random.default_rng(0)
    values, right = rng.integers(0, 256, 5000), rng.random(5000) < 0.6
    pixels = np.zeros((2, 256), np.int64)
    np.add.at(pixels, (right.astype(int), values), 1)
    reference = Calibration()
    # half a value lower at the bins' ends, which are not the same number in float32
    share = torch.from_numpy(values / 255).clamp(0, 1) - 1e-6 * torch.from_numpy((values % 17 == 0) & (values > 0))
    reference.update(torch.from_numpy(right).long(), torch.ones(5000).long(), share.float())
    found, wanted = Reliability.from_bytes(pixels), reference.result()
    np.testing.assert_array_equal(found.pixels, wanted.pixels)
    np.testing.assert_array_equal(found.accuracy, wanted.accuracy)
    np.testing.assert_allclose(found.confidence, wanted.confidence, atol=1e-5)


def test_an_example_is_reduced_with_its_box():
    size = (2 * LONGEST, 3 * LONGEST)
    labels = np.zeros(size, np.uint8)
    labels[:, 600:] = 1
    facts = Facts("a", "words", 0.5, 0.9, Piece((300, 600, 400, 1200), 0.1))
    drawn = example(facts, ("mislabelled",), ReadImage(np.zeros((*size, 3), np.uint8), None, labels, labels))
    assert drawn.labels.shape == (341, LONGEST) and drawn.image.shape == (341, LONGEST, 3) and drawn.truth is None
    assert (
        drawn.box == (100, 200, 134, 400) and (drawn.labels[:, 200:] == 1).all() and (drawn.labels[:, :200] == 0).all()
    )
    assert example(facts, ("random",), ReadImage(None, None, labels, None)).box is None


def test_memory_does_not_grow_with_the_images():
    """What is kept of an image is its facts and its areas: no array of its size, and no matrix of its classes."""
    few, many = gathered(range(2)), gathered(range(10))
    kept = [sum(array.nbytes for _, array in found._areas) for found in (few, many)]
    assert kept == [2 * 3 * 4 * 8, 10 * 3 * 4 * 8]
    for found in (few, many):
        others = [value for name, value in vars(found).items() if name not in ("facts", "_areas", "confusion")]
        assert sum(array.nbytes for array in others) == (15 * 3 * 4 + 2 * 256) * 8
        assert not any(isinstance(value, np.ndarray) for facts in found.facts for value in vars(facts).values())
