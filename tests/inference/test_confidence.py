"""Confidence, and logits that half precision can hold but exp cannot."""

import pytest
import torch
from every_fusion import PROTOCOLS, TinyNetwork
from random_image import random_image
from torch import nn

from segkit.inference.engine import Limits, predict, predict_with_confidence, scores
from segkit.ops.upsample_argmax import upsample_argmax, upsample_argmax_confidence


@pytest.mark.slow
@pytest.mark.parametrize("strip_bytes", [None, 9000])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_confidence_is_the_largest_fused_probability(name, strip_bytes):
    protocol, network, image = PROTOCOLS[name], TinyNetwork(), random_image(61, 45, batch=2)
    fused = scores(network, image, protocol)
    if protocol.fusion == "logit_mean":
        fused = fused.softmax(1)
    expected = (fused / fused.sum(1, keepdim=True)).amax(1)
    labels, confidence = predict_with_confidence(network, image, protocol, limits=Limits(strip_bytes=strip_bytes))
    assert torch.equal(labels, predict(network, image, protocol, limits=Limits(strip_bytes=strip_bytes)))
    assert confidence.dtype == torch.float32 and confidence.shape == labels.shape
    assert confidence.min() > 1 / 5 - 1e-6 and confidence.max() <= 1
    torch.testing.assert_close(confidence, expected, rtol=2e-5, atol=1e-6)
    confidence += 1  # not an inference tensor


class Constant(nn.Module):
    """Logits of one value in class 1 and its negative in class 0, left half; half of that on the right."""

    def __init__(self, value, dtype):
        super().__init__()
        self.value, self.dtype = value, dtype

    def forward(self, x):
        cells = torch.full((len(x), 1, x.shape[2] // 8 + 1, x.shape[3] // 8 + 1), self.value)
        cells[..., cells.shape[3] // 2 :] *= 0.998
        return {"out": torch.cat([-cells, cells, cells - self.value * 0.001], dim=1).to(self.dtype)}


@pytest.mark.slow
@pytest.mark.parametrize("dtype, value", [(torch.float16, 60000.0), (torch.bfloat16, 60000.0), (torch.bfloat16, 400.0)])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_logits_as_large_as_half_precision_holds_do_not_overflow(name, dtype, value):
    network, image = Constant(value, dtype), random_image(61, 45)
    fused = scores(network, image, PROTOCOLS[name])
    labels, confidence = predict_with_confidence(network, image, PROTOCOLS[name])
    assert fused.isfinite().all() and confidence.isfinite().all()
    assert confidence.min() > 0.33 and confidence.max() <= 1
    assert (labels[..., :15] == 1).all()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_autocast_changes_only_the_network(name):
    protocol, image = PROTOCOLS[name], random_image(45, 58)

    class Autocast(TinyNetwork):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    inside = scores(Autocast(), image, protocol)
    with torch.autocast("cpu", torch.bfloat16):
        around = scores(TinyNetwork(), image, protocol)
        labels, confidence = predict_with_confidence(TinyNetwork(), image, protocol)
    assert around.dtype == confidence.dtype == torch.float32
    torch.testing.assert_close(around, inside, rtol=1e-6, atol=0)
    assert (labels.long() == inside.argmax(1)).float().mean() > 0.999  # but for ties


@pytest.mark.parametrize("max_bytes", [1, 20_000, 2**30])
def test_confidence_by_pieces_is_the_softmax(max_bytes):
    logits = torch.randn(2, 11, 7, 5, generator=torch.Generator().manual_seed(1)).mul(9).bfloat16()
    labels, confidence = upsample_argmax_confidence(logits, (50, 33), False, max_bytes)
    full = torch.nn.functional.interpolate(logits.float(), (50, 33), mode="bilinear", align_corners=False).softmax(1)
    assert torch.equal(labels, upsample_argmax(logits, (50, 33), False, max_bytes))
    torch.testing.assert_close(confidence, full.amax(1), rtol=1e-5, atol=0)
