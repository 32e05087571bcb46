"""The kernel against `interpolate` and argmax; without a GPU in Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from segkit.ops.kernels.upsample_argmax import launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [((3, 5), (17, 70)), ((4, 3), (4, 9)), ((5, 6), (3, 2)), ((1, 1), (2, 3)), ((3, 2), (1, 1)), ((2, 2), (2, 2))]


def full(logits, size, align_corners):
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=align_corners)


def assert_result(logits, size, align_corners):
    scores = full(logits, size, align_corners)
    labels, nothing = launch(logits, size, align_corners, with_confidence=False)
    again, confidence = launch(logits, size, align_corners, with_confidence=True)
    assert nothing.numel() == 0 and torch.equal(labels, again)
    gap = scores.amax(1) - scores.gather(1, labels.long()[:, None])[:, 0]
    assert gap.max() <= 1e-5 * logits.float().abs().max()
    assert (labels.long() != scores.argmax(1)).float().mean() < 1e-4
    torch.testing.assert_close(confidence, scores.softmax(1).amax(1), rtol=2e-5, atol=0)
    unchanged, confidence = launch(logits, size, align_corners, with_confidence=True, sharpness=0.4)
    assert torch.equal(labels, unchanged)
    torch.testing.assert_close(confidence, (0.4 * scores).softmax(1).amax(1), rtol=2e-5, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("source, size", SIZES)
def test_labels_and_confidence(source, size, align_corners):
    assert_result(torch.randn(2, 6, *source, device=DEVICE) * 5, size, align_corners)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions(dtype):
    assert_result((torch.randn(1, 5, 3, 4, device=DEVICE) * 5).to(dtype), (11, 30), True)


@pytest.mark.slow
def test_strides():
    wide = torch.randn(2, 8, 6, 9, device=DEVICE) * 5
    assert_result(wide.contiguous(memory_format=torch.channels_last), (20, 31), False)
    assert_result(wide[1:, 1:6, ::2, 2:7], (20, 31), True)
    assert_result(wide.flip(3).transpose(2, 3).expand(2, 8, 9, 6), (20, 31), True)


def test_first_of_equal_scores_wins():
    logits = torch.randint(-3, 3, (1, 5, 3, 5), device=DEVICE).float()
    labels, _ = launch(logits, (17, 33), True, with_confidence=False)
    assert torch.equal(labels.long(), full(logits, (17, 33), True).argmax(1))  # multiples of 1/64: no rounding


@pytest.mark.parametrize("num_classes, dtype", [(1, torch.uint8), (256, torch.uint8), (257, torch.int16)])
@pytest.mark.slow
def test_number_of_classes(num_classes, dtype):
    logits = torch.zeros(1, num_classes, 2, 2, device=DEVICE)
    logits[:, -1] = 1
    labels, confidence = launch(logits, (3, 5), True, with_confidence=True)
    assert labels.dtype == dtype and labels.unique().tolist() == [num_classes - 1]
    torch.testing.assert_close(confidence, logits.softmax(1)[0, -1, 0, 0].expand(1, 3, 5))


def test_no_images():
    labels, confidence = launch(torch.zeros(0, 3, 2, 2, device=DEVICE), (4, 4), True, with_confidence=True)
    assert labels.shape == confidence.shape == (0, 4, 4)
