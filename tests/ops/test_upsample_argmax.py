"""Labels without full-size scores, in their form for the CPU and the plain one, against `interpolate` and argmax."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from segkit.ops import upsample_argmax_cpu
from segkit.ops.dispatch import plain_ops
from segkit.ops.upsample_argmax import upsample_argmax, upsample_argmax_confidence

SIZES = [
    ((13, 9), (97, 65)),
    ((12, 9), (101, 150)),
    ((5, 7), (5, 50)),
    ((6, 4), (3, 9)),
    ((9, 30), (40, 11)),
    ((1, 1), (5, 7)),
    ((1, 6), (40, 70)),
    ((6, 1), (40, 70)),
    ((4, 3), (1, 1)),
    ((3, 3), (3, 3)),
    ((2, 2), (200, 3)),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def full(logits, size, align_corners):
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=align_corners)


def noise(num_classes, size, batch=2, seed=1):
    return torch.randn(batch, num_classes, *size, generator=torch.Generator().manual_seed(seed)) * 5


def blobs(num_classes, size, batch=2, seed=1, grain=0.05):
    """Objects some twelve cells wide, with a little noise: like a network's logits."""
    coarse = noise(num_classes, (2 + size[0] // 12, 2 + size[1] // 12), batch, seed)
    return full(coarse, size, True) + grain * noise(num_classes, size, batch, seed + 1)


def assert_labels(labels, logits, size, align_corners):
    scores = full(logits, size, align_corners)
    expected = scores.argmax(1)
    assert labels.dtype == (torch.uint8 if logits.shape[1] <= 256 else torch.int16)
    differ = labels.long() != expected
    if differ.any():
        given = scores.gather(1, labels.long()[:, None])[:, 0]
        gap = (scores.amax(1) - given) / logits.float().abs().max()
        assert gap.max() < 1e-5
        assert differ.float().mean() < 1e-4


@pytest.fixture(params=["cells", "strips", "as it comes"])
def form(request, monkeypatch):
    """Each way of the CPU form, whatever the image."""
    if request.param == "cells":
        monkeypatch.setattr(upsample_argmax_cpu, "MIXED_SHARE", 1.0)
        monkeypatch.setattr(upsample_argmax_cpu, "SCORE_SHARE", float("inf"))
        monkeypatch.setattr(upsample_argmax_cpu, "LEAST_GROWTH", 0)
    if request.param == "strips":
        monkeypatch.setattr(upsample_argmax_cpu, "LEAST_GROWTH", float("inf"))
    return request.param


@pytest.mark.slow
@pytest.mark.parametrize("max_bytes", [1, 20_000, None])
@pytest.mark.parametrize("make", [noise, blobs])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("source, size", SIZES)
def test_labels_are_those_of_the_full_resize(source, size, align_corners, make, max_bytes, form):
    logits = make(11, source)
    for layout in LAYOUTS:
        labels = upsample_argmax(logits.contiguous(memory_format=layout), size, align_corners, max_bytes)
        assert_labels(labels, logits, size, align_corners)


@pytest.mark.parametrize("align_corners", [True, False])
def test_labels_of_many_classes(align_corners, form):
    logits = blobs(150, (21, 31), batch=1)
    assert_labels(upsample_argmax(logits, (160, 241), align_corners), logits, (160, 241), align_corners)


@pytest.mark.parametrize("source, size, align_corners", [((9, 5), (65, 33), True), ((9, 5), (72, 40), False)])
@pytest.mark.parametrize("seed", range(5))
def test_labels_are_the_same_where_nothing_is_rounded(source, size, align_corners, seed, form):
    """Small integers, and positions that are multiples of 1/16: ties are ties, and the first class wins."""
    logits = torch.randint(-4, 4, (2, 6, *source), generator=torch.Generator().manual_seed(seed)).float()
    expected = full(logits, size, align_corners).argmax(1)
    assert torch.equal(upsample_argmax(logits, size, align_corners).long(), expected)
    with plain_ops():
        assert torch.equal(upsample_argmax(logits, size, align_corners).long(), expected)


def test_first_of_equal_scores_wins(form):
    assert not upsample_argmax(torch.zeros(1, 5, 2, 2), (40, 40)).any()
    equal = torch.full((1, 5, 3, 3), 0.1)
    equal[:, 0] = -1
    equal[:, 3, 1, 1] = 0.2  # a mixed cell: the mean of three or four winners of 0.1 is rounded
    assert set(upsample_argmax(equal, (40, 40)).unique().tolist()) == {1, 3}


def test_uniform_cells_are_not_interpolated(monkeypatch):
    monkeypatch.setattr(upsample_argmax_cpu, "_strips", None)
    monkeypatch.setattr(upsample_argmax_cpu, "_interpolated_labels", None)
    logits = torch.rand(1, 7, 5, 5)
    logits[:, 4] += 2
    assert upsample_argmax(logits, (40, 40)).unique().tolist() == [4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_resized_in_float32(dtype, form):
    logits = blobs(9, (6, 6)).to(dtype)
    assert_labels(upsample_argmax(logits, (61, 83)), logits, (61, 83), True)


def test_many_classes_need_a_wider_type(form):
    logits = torch.zeros(1, 300, 3, 3)
    logits[0, 299] = 1
    labels = upsample_argmax(logits, (20, 30))
    assert labels.dtype == torch.int16 and labels.unique().tolist() == [299]


@pytest.mark.parametrize("max_bytes", [1, 60_000, 2**30])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("source, size", SIZES)
def test_plain_labels_are_the_very_ones(source, size, align_corners, max_bytes):
    logits = noise(11, source)
    with plain_ops():
        labels = upsample_argmax(logits, size, align_corners, max_bytes)
    assert torch.equal(labels.long(), full(logits, size, align_corners).argmax(1))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("max_bytes", [1, 20_000, None])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("source, size", SIZES)
@pytest.mark.slow
def test_confidence_is_the_softmax(source, size, align_corners, max_bytes, plain):
    logits = noise(11, source).bfloat16()
    if plain:
        with plain_ops():
            labels, confidence = upsample_argmax_confidence(logits, size, align_corners, max_bytes)
    else:
        labels, confidence = upsample_argmax_confidence(logits, size, align_corners, max_bytes)
    assert_labels(labels, logits, size, align_corners)
    expected = full(logits, size, align_corners).softmax(1).amax(1)
    torch.testing.assert_close(confidence, expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize("sharpness", [None, 1.0, 0.4])
@pytest.mark.slow
def test_the_operator_keeps_pytorchs_contract(sharpness):
    for size, max_bytes in (((20, 30), None), ((3, 3), 100)):
        arguments = (blobs(7, (4, 5)), size, True, max_bytes, sharpness)
        torch.library.opcheck(torch.ops.segkit.upsample_argmax.default, arguments)


@pytest.mark.parametrize("operation", [upsample_argmax, upsample_argmax_confidence])
@pytest.mark.slow
def test_operators_compile_without_a_break(operation):
    compiled = torch.compile(lambda logits, size: operation(logits * 2, size), fullgraph=True, backend="aot_eager")
    for batch in (1, 2):
        logits = blobs(7, (4, 5), batch)
        torch.testing.assert_close(compiled(logits, (20, 31)), operation(logits * 2, (20, 31)))


class LargestFloats(TorchDispatchMode):
    """The bytes of the largest float tensor that anything made."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("make", [noise, blobs])
def test_memory_is_bounded(make):
    logits, size, max_bytes = make(50, (40, 50), batch=1).half(), (320, 400), 200_000
    with LargestFloats() as largest:
        upsample_argmax_cpu.label_images(logits, size, True, max_bytes)
    assert largest.bytes <= max_bytes  # of 25 MB; the logits in float32 are 400 kB


MEASURE = """
import resource, torch
from segkit.ops.upsample_argmax import upsample_argmax
torch.set_num_threads(1)
h, w = {source}
logits = torch.empty(1, 150, h, w)
for i in range(150):
    logits[0, i] = torch.nn.functional.interpolate(
        5 * torch.randn(1, 1, h // {cell}, w // {cell}), (h, w), mode="bilinear")[0, 0]
upsample_argmax(logits[:, :, :8, :8], (64, 64))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
labels = upsample_argmax(logits, (8 * h, 8 * w))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, labels.numel())
"""


def grown(source, cell):
    """How much a process grows by one call, in bytes, beyond the labels."""
    unit = 1 if sys.platform == "darwin" else 1024
    code = MEASURE.format(source=source, cell=cell)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, labels = map(int, done.stdout.split())
    return peak * unit - labels


@pytest.mark.slow
def test_the_process_hardly_grows():
    assert grown((60, 80), 12) < 50 * 2**20  # of 184 MB


@pytest.mark.slow
@pytest.mark.parametrize("cell", [1, 20])
def test_twelve_megapixels_of_150_classes_in_200_mb(cell):
    assert grown((375, 500), cell) < 200 * 10**6  # of 7.2 GB
