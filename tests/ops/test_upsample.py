"""Upsampling by rows against the full `interpolate`."""

import pytest
import torch
import torch.nn.functional as F

from segkit.ops.upsample import RowUpsampler, neighbours, upsample

SIZES = [((13, 9), (97, 65)), ((5, 7), (5, 50)), ((6, 4), (3, 9)), ((1, 1), (5, 7)), ((4, 3), (1, 1)), ((3, 3), (3, 3))]


def full(logits, size, align_corners):
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("source, size", SIZES)
def test_upsample_is_interpolate(source, size, align_corners):
    logits = torch.randn(2, 4, *source)
    assert torch.equal(upsample(logits, size, align_corners), full(logits, size, align_corners))


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("source, size", [(60, 480), (7, 50), (50, 7), (1, 5), (5, 1), (4, 4)])
def test_neighbours_make_the_outputs(source, size, align_corners):
    samples = torch.randn(1, 1, source)
    lower, upper, weight = neighbours(source, size, align_corners)
    expected = F.interpolate(samples, size, mode="linear", align_corners=align_corners)[0, 0]
    made = samples[0, 0, lower] * (1 - weight) + samples[0, 0, upper] * weight
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=2e-6)
    assert ((upper == lower) | (upper == lower + 1)).all() and ((weight >= 0) & (weight <= 1)).all()


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
