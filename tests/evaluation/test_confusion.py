"""Confusion matrix and scores against torchmetrics, cityscapesScripts and values worked out by hand."""

import warnings
from copy import copy

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling import args as global_args
from cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling import generateMatrix, getIouScoreForLabel
from cityscapesscripts.helpers.labels import trainId2label
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from segkit.errors import InputError
from segkit.evaluation.confusion import ConfusionMatrix, confusion_counts
from segkit.evaluation.conventions import convention_scores

official_args = copy(global_args)  # the script writes into them, and another test looks that nobody does


def scores(matrix):
    """Of a (K, K) matrix, in which no pixel is ignored or of no class."""
    return convention_scores(np.pad(np.asarray(matrix), ((0, 2), (0, 1))))


def confusion_matrix(mask, labels, num_classes, ignore_index=255):
    return confusion_counts(mask, labels, num_classes, ignore_index)[:num_classes, :num_classes]


def random_pair(num_classes, size=(2, 40, 50), seed=0, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, num_classes, size, generator=generator)
    wrong = torch.randint(0, num_classes, size, generator=generator)
    labels = torch.where(torch.rand(size, generator=generator) < 0.7, mask, wrong)
    mask[torch.rand(size, generator=generator) < 0.1] = 255
    return mask.to(dtype), labels.to(dtype)


@pytest.mark.parametrize("num_classes", [1, 2, 19, 150, 255])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.int32])
def test_matrix_is_the_slow_count(num_classes, dtype):
    mask, labels = random_pair(num_classes, size=(2, 9, 11), dtype=dtype)
    kept = mask.clone(), labels.clone()
    expected = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for t, p in zip(mask.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if t != 255:
            expected[t, p] += 1
    result = confusion_matrix(mask, labels, num_classes)
    assert result.dtype == torch.int64 and torch.equal(result, expected)
    assert torch.equal(mask, kept[0]) and torch.equal(labels, kept[1])


@pytest.mark.parametrize("num_classes", [5, 19, 150])
def test_scores_are_those_of_torchmetrics(num_classes):
    mask, labels = random_pair(num_classes)
    mask[mask == 3], labels[labels == 3] = 255, 0  # class 3 is absent from both
    options = dict(num_classes=num_classes, ignore_index=255)
    result = scores(confusion_matrix(mask, labels, num_classes))
    assert result.absent == (3,)
    jaccard = MulticlassJaccardIndex(average="macro", **options)(labels, mask)
    assert result.miou == pytest.approx(jaccard.item(), abs=1e-6)
    per_class = MulticlassJaccardIndex(average="none", **options)(labels, mask).numpy()
    np.testing.assert_allclose(np.nan_to_num(result.class_iou), per_class, atol=1e-6)
    micro = MulticlassAccuracy(average="micro", **options)(labels, mask)
    assert result.pixel_accuracy == pytest.approx(micro.item(), abs=1e-6)
    macro = MulticlassAccuracy(average="macro", **options)(labels, mask)
    assert result.mean_accuracy == pytest.approx(macro.item(), abs=1e-6)


def test_scores_are_the_official_ones_of_cityscapes():
    mask, labels = random_pair(19)
    mask[mask == 16], labels[labels == 16] = 255, 0  # no train
    counts = confusion_matrix(mask, labels, 19)
    ids = [trainId2label[i].id for i in range(19)]
    by_id = generateMatrix(official_args)  # zeros; also declares the labels to evaluate
    by_id[np.ix_(ids, ids)] = counts.numpy()
    by_id[0, ids] = 77  # predictions on ignored truth are nobody's false positives
    official_iou = [getIouScoreForLabel(i, by_id, official_args) for i in ids]
    result = scores(counts)
    np.testing.assert_allclose(result.class_iou, official_iou, rtol=1e-12)
    assert np.isnan(official_iou[16]) and result.absent == (16,)
    assert result.miou == pytest.approx(np.nanmean(official_iou), rel=1e-12)


def test_scores_by_hand():
    # class 0: 3 of 4 found, 1 false; class 1: 2 of 3, 1 false; class 2: predicted once, never true; class 3: absent
    matrix = np.array([[3, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    matrix[0, 2] = 1
    result = scores(matrix)
    np.testing.assert_array_equal(result.class_iou, [3 / 6, 2 / 4, 0, np.nan])
    np.testing.assert_array_equal(result.class_accuracy, [3 / 5, 2 / 3, np.nan, np.nan])
    assert result.absent == (3,)
    assert result.miou == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert result.pixel_accuracy == 5 / 8
    assert result.mean_accuracy == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert result.frequency_weighted_iou == pytest.approx(5 / 8 * 1 / 2 + 3 / 8 * 1 / 2)


def test_predictions_of_no_class_are_misses():
    confusion = ConfusionMatrix(2)
    mask = torch.tensor([[0, 0, 0, 1, 1, 255]], dtype=torch.uint8)
    confusion.update(mask, torch.tensor([[0, 255, 7, 1, 0, 255]], dtype=torch.uint8))
    assert confusion.matrix.tolist() == [[1, 0], [1, 1]] and confusion.missed.tolist() == [2, 0]
    assert confusion.num_pixels == 5
    result = confusion.scores()
    np.testing.assert_allclose(result.class_iou, [1 / 4, 1 / 2])
    np.testing.assert_allclose(result.class_accuracy, [1 / 3, 1 / 2])
    assert result.pixel_accuracy == 2 / 5


def test_negative_and_huge_ids_are_no_classes():
    confusion = ConfusionMatrix(2, ignore_index=-1)
    confusion.update(torch.tensor([[0, 0, 1, -1]]), torch.tensor([[-1, 2**40, 1, 0]]))
    assert confusion.matrix.tolist() == [[0, 0], [0, 1]] and confusion.missed.tolist() == [2, 0]
    confusion.update(torch.zeros(1, 1, dtype=torch.uint8), torch.zeros(1, 1, dtype=torch.uint8))
    assert confusion.matrix.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_undeclared_true_ids_are_refused(dtype):
    confusion = ConfusionMatrix(2)
    confusion.update(torch.tensor([[0, 2, 9]], dtype=dtype), torch.tensor([[0, 0, 0]], dtype=dtype))
    with pytest.raises(InputError, match="2 pixels"):
        _ = confusion.matrix


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_an_ignored_class(dtype):
    mask, labels = torch.tensor([0, 1, 1], dtype=dtype), torch.tensor([1, 1, 0], dtype=dtype)
    assert confusion_matrix(mask, labels, 2, ignore_index=0).tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("ignore_index", [255, 254, 3, -1])
def test_bytes_are_counted_like_other_integers(ignore_index):
    generator = torch.Generator().manual_seed(0)
    mask, labels = (torch.randint(0, 256, (5000,), generator=generator) for _ in range(2))
    wide = confusion_counts(mask, labels, 200, ignore_index)
    assert wide.shape == (202, 201) and wide.sum() == 5000
    assert torch.equal(confusion_counts(mask.to(torch.uint8), labels.to(torch.uint8), 200, ignore_index), wide)


@pytest.mark.parametrize("size", [(1, 4, 4), (1, 0, 4)])
def test_nothing_counted_is_nan_without_a_warning(size):
    confusion = ConfusionMatrix(3)
    confusion.update(torch.full(size, 255, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = confusion.scores()
    assert np.isnan(result.class_iou).all() and result.absent == (0, 1, 2)
    values = (result.miou, result.pixel_accuracy, result.mean_accuracy, result.frequency_weighted_iou)
    assert np.isnan(values).all()


def test_more_pixels_of_one_pair_than_float32_can_count():
    mask = torch.ones(2**24 + 3, dtype=torch.uint8)
    mask[-1] = 255
    counts = confusion_counts(mask, torch.zeros_like(mask), 2)
    assert counts[1, 0] == 2**24 + 2 and counts[2, 0] == 1 and counts.sum() == 2**24 + 3


def test_bytes_that_do_not_lie_one_after_the_other():
    mask, labels = random_pair(19)
    across, every_second = (mask.mT, labels.mT), (mask[:, ::2, 3:], labels[:, ::2, 3:])
    for true, predicted in (across, every_second):
        assert not true.is_contiguous()
        assert torch.equal(confusion_counts(true, predicted, 19), confusion_counts(true.int(), predicted.int(), 19))


def test_counts_are_checked_and_whole():
    confusion = ConfusionMatrix(2)
    confusion.update(torch.tensor([[0, 1, 255]]), torch.tensor([[0, 9, 1]]))
    assert confusion.counts.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]]
    confusion.update(torch.tensor([[7]]), torch.tensor([[0]]))
    with pytest.raises(InputError, match="1 pixels"):
        _ = confusion.counts


def test_one_pixel():
    result = scores(confusion_matrix(torch.tensor([[1]]), torch.tensor([[1]]), 3))
    assert (result.miou, result.pixel_accuracy, result.absent) == (1.0, 1.0, (0, 2))


def test_sum_over_updates_does_not_depend_on_the_batches():
    mask, labels = random_pair(7, size=(4, 10, 13))
    together, apart = ConfusionMatrix(7), ConfusionMatrix(7)
    together.update(mask, labels)
    for i in range(4):
        apart.update(mask[i], labels[i].long())
    assert torch.equal(together.matrix, apart.matrix) and together.num_images == apart.num_images == 4
    apart.all_reduce()  # no process group: nothing changes
    assert torch.equal(together.matrix, apart.matrix) and apart.num_images == 4
    apart.reset()
    assert apart.num_images == 0 and not apart.matrix.any()


def test_deterministic_mode():
    mask, labels = random_pair(150)
    torch.use_deterministic_algorithms(True)
    try:
        result = confusion_matrix(mask, labels, 150)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(result, confusion_matrix(mask, labels, 150))


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="shape"):
        confusion_matrix(torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(3, 2, dtype=torch.uint8), 2)
    with pytest.raises(InputError, match="integer"):
        confusion_matrix(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.uint8), 2)
