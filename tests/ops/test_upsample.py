"""Upsampling by pieces against the full `interpolate`."""

import pytest
import torch
import torch.nn.functional as F

from segkit.ops.upsample import RowUpsampler, upsample, upsample_argmax

SIZES = [((13, 9), (97, 65)), ((5, 7), (5, 50)), ((6, 4), (3, 9)), ((1, 1), (5, 7)), ((4, 3), (1, 1)), ((3, 3), (3, 3))]


def full(logits, size, align_corners):
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("source, size", SIZES)
def test_upsample_is_interpolate(source, size, align_corners):
    logits = torch.randn(2, 4, *source)
    assert torch.equal(upsample(logits, size, align_corners), full(logits, size, align_corners))


@pytest.mark.parametrize("max_bytes", [1, 60_000, 2**30])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("source, size", SIZES)
def test_labels_are_those_of_the_full_resize(source, size, align_corners, max_bytes):
    logits = torch.randn(2, 11, *source, generator=torch.Generator().manual_seed(1)) * 5
    labels = upsample_argmax(logits, size, align_corners, max_bytes)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), full(logits, size, align_corners).argmax(1))


def test_first_of_equal_scores_wins_across_pieces():
    labels = upsample_argmax(torch.zeros(1, 5, 2, 2), (4, 4), max_bytes=1)
    assert not labels.any()


def test_half_precision_is_resized_in_float32():
    logits = torch.randn(1, 4, 6, 6).bfloat16()
    assert torch.equal(upsample_argmax(logits, (41, 43)).long(), full(logits.float(), (41, 43), True).argmax(1))


def test_many_classes_need_a_wider_type():
    logits = torch.zeros(1, 300, 1, 1)
    logits[0, 299] = 1
    labels = upsample_argmax(logits, (2, 3), max_bytes=100)
    assert labels.dtype == torch.int16 and labels.unique().tolist() == [299]


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("source, size", SIZES)
def test_rows_are_those_of_the_full_resize(source, size, align_corners):
    logits = torch.randn(2, 3, *source)
    expected = full(logits, size, align_corners)
    rows = RowUpsampler(source, size, align_corners, torch.device("cpu"))
    for step in (1, 4, size[0]):
        for start in range(0, size[0], step):
            stop = min(start + step, size[0])
            first, last = rows.needed(start, stop)
            assert last - first <= (stop - start) * max(1, source[0] / size[0]) + 3
            result = rows(logits[:, :, first:last], start, stop)
            torch.testing.assert_close(result, expected[:, :, start:stop], rtol=1e-5, atol=2e-6)
