"""Calibration error against torchmetrics, a hand-worked example, and itself in other orders."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from segkit.errors import InputError
from segkit.evaluation.calibration import THRESHOLDS, Calibration
from segkit.evaluation.confusion import ConfusionMatrix


def random_prediction(num_classes, size=(2, 40, 50), seed=0, sharpness=3.0):
    generator = torch.Generator().manual_seed(seed)
    scores = (sharpness * torch.randn(size[0], num_classes, *size[1:], generator=generator)).softmax(dim=1)
    mask = torch.randint(0, num_classes, size, generator=generator)
    confidence, labels = scores.max(dim=1)
    mask = torch.where(torch.rand(size, generator=generator) < 0.6, labels, mask)
    mask[torch.rand(size, generator=generator) < 0.1] = 255
    return mask, labels, confidence, scores


@pytest.mark.parametrize("num_bins", [10, 15, 30])
@pytest.mark.parametrize(("num_classes", "sharpness"), [(2, 0.5), (19, 1.0), (150, 3.0)])
def test_errors_are_those_of_torchmetrics(num_classes, num_bins, sharpness):
    mask, labels, confidence, scores = random_prediction(num_classes, sharpness=sharpness)
    calibration = Calibration(num_bins=num_bins)
    calibration.update(mask.to(torch.uint8), labels.to(torch.uint8), confidence)
    for norm, ours in (("l1", calibration.result().expected_error), ("max", calibration.result().maximum_error)):
        theirs = MulticlassCalibrationError(num_classes, n_bins=num_bins, norm=norm, ignore_index=255)(scores, mask)
        assert ours == pytest.approx(theirs.item(), abs=2e-6)


def test_by_hand():
    calibration = Calibration(num_bins=4)
    mask = torch.tensor([[0, 1, 1, 0, 1, 255, 0]])
    labels = torch.tensor([[0, 1, 0, 0, 0, 0, 0]])
    calibration.update(mask, labels, torch.tensor([[0.5, 0.375, 0.5, 1.0, 1.0, 0.9, 0.875]]))
    # bin (0.25, 0.5]: confidences 0.5, 0.375, 0.5, two of three right; bin (0.75, 1]: 1, 1, 0.875, two of three right
    result = calibration.result()
    assert result.pixels.tolist() == [0, 3, 0, 3]
    np.testing.assert_allclose(result.accuracy, [np.nan, 2 / 3, np.nan, 2 / 3])
    np.testing.assert_allclose(result.confidence, [np.nan, 1.375 / 3, np.nan, 2.875 / 3])
    np.testing.assert_allclose(result.gaps[[1, 3]], [0.625 / 3, -0.875 / 3])
    assert result.expected_error == pytest.approx((0.625 + 0.875) / 6)
    assert result.maximum_error == pytest.approx(0.875 / 3)
    plain = result.to_dict()
    assert plain["expected_calibration_error"] == result.expected_error and plain["bins"][0]["accuracy"] is None
    assert plain["bins"][3] == {"low": 0.75, "high": 1, "pixels": 3, "accuracy": 2 / 3, "confidence": 2.875 / 3}


def test_a_network_as_sure_as_it_is_right_has_no_error():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(200_000, generator=generator)
    right = torch.rand(200_000, generator=generator) < confidence
    calibration = Calibration()
    calibration.update(right.long(), torch.ones_like(right).long(), confidence)
    assert calibration.result().expected_error < 0.01
    certain = Calibration()
    certain.update(right.long(), torch.ones_like(right).long(), torch.ones(200_000))
    assert certain.result().expected_error == pytest.approx(1 - right.double().mean().item(), abs=1e-12)


def test_order_and_batches_do_not_change_a_bit():
    mask, labels, confidence, _ = random_prediction(19, size=(4, 30, 30))
    together, apart = Calibration(), Calibration()
    together.update(mask, labels, confidence)
    for i in (2, 0, 3, 1):
        apart.update(mask[i], labels[i], confidence[i])
    assert together.result().to_dict() == apart.result().to_dict()
    apart.all_reduce()  # no process group: nothing changes
    assert together.result().to_dict() == apart.result().to_dict()


def test_nothing_counted_is_no_error():
    calibration = Calibration()
    calibration.update(torch.full((2, 2), 255), torch.zeros(2, 2), torch.rand(2, 2))
    assert np.isnan(calibration.result().expected_error) and np.isnan(calibration.result().maximum_error)
    assert calibration.result().to_dict()["expected_calibration_error"] is None


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.1])
def test_logits_are_refused_but_not_at_ignored_pixels(value):
    calibration = Calibration()
    calibration.update(torch.tensor([255, 0]), torch.tensor([0, 0]), torch.tensor([value, 1.00001]))
    assert calibration.result().pixels.tolist() == [0] * 14 + [1]
    calibration.update(torch.tensor([0, 0]), torch.tensor([0, 0]), torch.tensor([value, 0.5]))
    with pytest.raises(InputError, match="confidence of 1 pixels"):
        calibration.result()


def test_thresholds_by_hand():
    calibration = Calibration(num_classes=3)
    mask = torch.tensor([0, 0, 1, 1, 2, 255, 1])
    labels = torch.tensor([0, 1, 1, 1, 0, 0, 1])
    calibration.update(mask, labels, torch.tensor([0.9, 0.3, 0.99, 0.5, 0.899, 1.0, 0.95]))
    rows = {row["threshold"]: row for row in calibration.result().thresholds}
    assert tuple(rows) == THRESHOLDS
    # All: IoU 1/3, 3/4, 0/1. From 0.5 on (5 of 6): 1/2, 3/3, 0/1. From 0.9 on (3): 1, 1, and 2 is absent.
    for threshold, coverage, miou in (
        *((0.0, 1, (1 / 3 + 3 / 4) / 3), (0.3, 1, (1 / 3 + 3 / 4) / 3), (0.5, 5 / 6, 1.5 / 3), (0.8, 4 / 6, 1.5 / 3)),
        *((0.9, 3 / 6, 1), (0.95, 2 / 6, 1), (0.99, 1 / 6, 1)),
    ):
        assert (rows[threshold]["coverage"], rows[threshold]["mIoU"]) == pytest.approx((coverage, miou)), threshold
    assert calibration.result(without=[2]).thresholds[5]["mIoU"] == pytest.approx(3 / 4)
    plain = calibration.result().to_dict()["thresholds"]
    assert plain[-1] == {"threshold": 0.99, "coverage": pytest.approx(1 / 6), "mIoU": 1}
    lines = calibration.result().table().splitlines()
    assert lines[-1].split() == ["0.99", "16.67", "100.00"] and len(lines) == 2 + len(THRESHOLDS)


@pytest.mark.parametrize("num_classes", [2, 19, 150])
def test_at_each_threshold_the_miou_is_that_of_the_pixels_it_keeps(num_classes):
    mask, labels, confidence, _ = random_prediction(num_classes, sharpness=2.0)
    together, apart = Calibration(num_classes=num_classes), Calibration(num_classes=num_classes)
    together.update(mask, labels, confidence)
    for i in (1, 0):
        apart.update(mask[i].byte(), labels[i].byte(), confidence[i])
    assert together.result().to_dict() == apart.result().to_dict()
    for threshold, coverage, miou in map(dict.values, together.result().thresholds):
        kept = mask.masked_fill(confidence < torch.tensor(threshold), 255)
        confusion = ConfusionMatrix(num_classes)
        confusion.update(kept, labels)
        assert coverage == pytest.approx((kept != 255).sum().item() / (mask != 255).sum().item(), abs=1e-12)
        np.testing.assert_allclose(np.array(miou, float), confusion.scores().miou, rtol=1e-12)  # None is NaN


def test_nothing_counted_has_no_threshold():
    calibration = Calibration(num_classes=2)
    calibration.update(torch.full((2, 2), 255), torch.zeros(2, 2), torch.rand(2, 2))
    assert calibration.result().to_dict()["thresholds"][0] == {"threshold": 0, "coverage": None, "mIoU": None}
    assert "thresholds" not in Calibration().result().to_dict()


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="shapes"):
        Calibration().update(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(InputError, match="float"):
        Calibration().update(torch.zeros(2).long(), torch.zeros(2).long(), torch.zeros(2).long())
    with pytest.raises(InputError, match="bins"):
        Calibration(num_bins=0)
