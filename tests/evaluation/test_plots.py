"""The images of an evaluation: every text inside the image and none over another, and what the cells show."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from segkit.errors import InputError
from segkit.evaluation.calibration import Calibration
from segkit.evaluation.comparison import paired_comparison
from segkit.evaluation.plots import BLUE, comparison_figure, confusion_figure, reliability_figure
from segkit.evaluation.plots import save_figure as save
from segkit.evaluation.results import most_confused_pairs, pairs_table
from segkit.evaluation.statistics import ImageAreas
from segkit.metadata.ade20k import ADE20K
from segkit.metadata.cityscapes import CITYSCAPES

NAMES = {2: ("a", "b"), 11: tuple(f"name {i}" for i in range(11)), 19: CITYSCAPES.class_names, 150: ADE20K.class_names}


def matrix(num_classes, seed=0):
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, 100, (num_classes, num_classes)) ** 2
    counts[np.diag_indices(num_classes)] = 100_000
    if num_classes > 2:
        counts[num_classes // 2] = 0
    return counts


def text_boxes(texts, renderer):
    return [t.get_window_extent(renderer) for t in texts if t.get_text() and t.get_visible()]


def check_layout(figure: Figure) -> None:
    """All text lies within the image, and the labels of each axis are apart."""
    figure.set_dpi(150)  # as `save_figure` has it
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    width, height = canvas.get_width_height()
    boxes = text_boxes(figure.texts, renderer)
    for axes in figure.axes:
        boxes += [*text_boxes(axes.texts, renderer), axes.get_tightbbox(renderer)]
        for labels, sides in ((axes.get_xticklabels(), "x"), (axes.get_yticklabels(), "y")):
            boxes_of = text_boxes(labels, renderer)
            ends = sorted({(getattr(b, f"{sides}0"), getattr(b, f"{sides}1")) for b in boxes_of})  # above = below
            assert all(first[1] <= second[0] + 1 for first, second in pairwise(ends))
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= width and b.y1 <= height for b in boxes)


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [2, 11, 19, 150])
def test_confusion_matrix_is_readable_at_any_number_of_classes(num_classes):
    figure = confusion_figure(matrix(num_classes), NAMES[num_classes])
    check_layout(figure)
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == list(NAMES[num_classes])
    cell = axes.get_position().width * figure.get_size_inches()[0] / num_classes
    label = axes.get_yticklabels()[0].get_size() / 72
    assert label >= 7 / 72 and cell >= 1.2 * label


def test_cells_of_the_confusion_matrix():
    counts = np.array([[90, 10, 0, 0], [0, 0, 0, 0], [1, 0, 1999, 0], [2, 1, 0, 1]])
    axes = confusion_figure(counts, tuple("abcd")).axes[0]
    errors, diagonal, absent = (image.get_array() for image in axes.images)
    assert errors.mask.tolist() == [[1, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]]  # 1 of 2000 stays white
    assert errors[0, 1] == 0.1 and diagonal[0, 0] == 0.9
    assert absent.mask.tolist() == [[True] * 4, [False] * 4, [True] * 4, [True] * 4]
    written = [t.get_text().strip() for t in axes.texts]
    assert {"90", "10", "100", "50", "25"} <= set(written) and "0.1" not in written
    assert written[-6:-2] == ["87.4", "0.0", "100.0", "25.0"]  # 90 / 103, 0 / 11, 1999 / 2000, 1 / 4


def test_most_confused_pairs():
    counts = np.array([[50, 30, 20], [9, 1, 0], [0, 0, 0]])
    names = ("road", "pole", "train")
    by_pixels = most_confused_pairs(counts, names)
    assert [(p.true, p.predicted, p.pixels) for p in by_pixels] == [
        ("road", "pole", 30), ("road", "train", 20), ("pole", "road", 9)
    ]  # fmt: skip
    by_share = most_confused_pairs(counts, names, 2, by="share")
    assert [(p.true, p.predicted, p.share) for p in by_share] == [("pole", "road", 0.9), ("road", "pole", 0.3)]
    assert pairs_table(by_share).splitlines() == [
        "true  predicted as  pixels  % of true",
        "-------------------------------------",
        "pole  road               9       90.0",
        "road  pole              30       30.0",
    ]
    with pytest.raises(InputError, match="class names"):
        most_confused_pairs(counts, names[:2])
    with pytest.raises(InputError, match="class names"):
        confusion_figure(counts, names[:2])


@pytest.mark.slow
def test_reliability_diagram():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(5000, generator=generator) * 0.5 + 0.5
    calibration = Calibration(num_bins=10)
    calibration.update(torch.ones(5000).long(), (confidence > 0.6).long(), confidence)
    result = calibration.result()
    figure = reliability_figure(result)
    check_layout(figure)
    upper, lower = figure.axes
    heights = [bar.get_height() for bar in upper.containers[0]]
    np.testing.assert_allclose(heights, result.accuracy[5:])  # empty bins have no bar
    tops = [bar.get_y() + bar.get_height() for bar in upper.containers[1]]
    np.testing.assert_allclose(tops, result.confidence[5:])
    assert sum(bar.get_height() for bar in lower.containers[0]) == pytest.approx(100)
    assert f"{100 * result.expected_error:.2f} %" in upper.texts[0].get_text()
    check_layout(reliability_figure(Calibration().result()))  # nothing counted


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [2, 19, 150])
def test_comparison_plot(num_classes):
    generator = np.random.default_rng(0)
    truth = generator.integers(50, 5000, (30, num_classes))
    truth[:, 1] = 0
    parts = [np.round(truth * share).astype(np.int64) for share in (0.6, 0.8)]
    a, b = (ImageAreas(np.stack([p, truth, truth], 1), tuple(map(str, range(30)))) for p in parts)
    result = paired_comparison(a, b, num_samples=50, num_permutations=10_000)
    figure = comparison_figure(result, NAMES[num_classes], "a model with a long name indeed", "other")
    check_layout(figure)
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels[-1] == "mIoU" and len(labels) == num_classes and NAMES[num_classes][1] not in labels
    assert figure.axes[0].lines[-4].get_color() == BLUE  # the interval of the mIoU


@pytest.mark.slow
def test_images_are_written_whole_and_grow_with_the_classes(tmp_path):
    sizes = {}
    for count in (11, 19):
        save(confusion_figure(matrix(count), NAMES[count]), tmp_path / "new" / f"{count}.png")
        with Image.open(tmp_path / "new" / f"{count}.png") as image:
            image.load()
            sizes[count] = image.width
    assert 600 < sizes[11] < sizes[19] < 2000
    assert len(list((tmp_path / "new").iterdir())) == 2
