"""Calibration on CUDA: the CPU's integers, without a wait; skipped without a GPU."""

import pytest
import torch

from segkit.evaluation.calibration import Calibration

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


def test_bins_are_the_same_integers_without_a_sync() -> None:
    mask, labels = (torch.randint(0, 19, (2, 480, 640), dtype=torch.uint8) for _ in range(2))
    mask[0, :50], confidence = 255, torch.rand(2, 480, 640)
    expected, counted = Calibration(num_classes=19), Calibration("cuda", num_classes=19)
    expected.update(mask, labels, confidence)
    on_gpu = [t.cuda() for t in (mask, labels, confidence)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        counted.update(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert counted.result().to_dict() == expected.result().to_dict()
