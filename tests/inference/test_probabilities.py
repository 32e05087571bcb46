"""Probabilities, confidence and temperature: one is read off the other, under every protocol and within memory."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from every_fusion import PROTOCOLS, TinyNetwork
from largest_tensor import Largest
from torch import Tensor
from torch.nn import functional as F

from segkit.errors import InputError
from segkit.inference.engine import Limits, predict_with_confidence, score_strips
from segkit.inference.fusion import best_of, probabilities
from segkit.inference.protocols import NAMED, Protocol, get
from segkit.inference.segmenter import Segmenter
from segkit.models.segmentation import FCN
from segkit.ops.dispatch import plain_ops
from segkit.ops.normalize import IMAGENET
from segkit.ops.upsample_argmax import upsample_argmax, upsample_argmax_confidence

IMAGE = np.random.default_rng(0).integers(0, 256, (61, 45, 3), np.uint8)


def segmenter(protocol: Protocol, temperature: float | None = None, memory: int | None = None) -> Segmenter:
    torch.manual_seed(0)
    network = FCN("resnest14_tiny", num_classes=5)
    network.head[-1].weight.data *= 300  # confidences of all sizes
    card = None if temperature is None else {"calibration": {"temperature": temperature}}
    return Segmenter(network, None, IMAGENET, protocol, torch.device("cpu"), card, memory)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [None, 2.5])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_probabilities_labels_and_confidence_agree(name: str, temperature: float | None) -> None:
    made = segmenter(PROTOCOLS[name], temperature)
    labels, confidence = made.predict(IMAGE, with_confidence=True)
    shares = made.predict_proba(IMAGE)
    assert shares.dtype == confidence.dtype == np.float32 and shares.shape == (5, 61, 45)
    assert np.array_equal(labels, made.predict(IMAGE)) and labels.dtype == np.uint8
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(shares.max(0), confidence, atol=1e-5)
    assert (shares.argmax(0) == labels).mean() > 0.999  # but for ties
    assert np.ptp(confidence) > 0.1 and shares.min() >= 0 and shares.max() <= 1


def small(protocol: Protocol) -> Protocol:
    """A named protocol, for small images."""
    sizes = {"base_size": 60, "long_limit": 100, "window": 36, "stride": 24}
    kept = {name: value for name, value in sizes.items() if getattr(protocol, name) is not None}
    return replace(protocol, scales=protocol.scales[:3], **kept)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.4, 3.0])
@pytest.mark.parametrize("name", NAMED)
def test_a_temperature_raises_the_fused_probabilities_to_a_power_and_keeps_every_label(
    name: str, temperature: float
) -> None:
    cold, warm = (segmenter(small(NAMED[name]), value) for value in (None, temperature))
    powers = cold.predict_proba(IMAGE).astype(np.float64) ** (1 / temperature)
    np.testing.assert_allclose(warm.predict_proba(IMAGE), powers / powers.sum(0), atol=2e-5)
    assert np.array_equal(cold.predict(IMAGE), warm.predict(IMAGE, with_confidence=True)[0])


def test_of_one_view_it_divides_the_logits() -> None:
    network, image = TinyNetwork(), torch.randn(2, 3, 61, 45, generator=torch.Generator().manual_seed(0))
    logits = F.interpolate(network(image)["out"], (61, 45), mode="bilinear", align_corners=True)
    for limits in (Limits(), Limits(always_strips=True)):
        _, confidence = predict_with_confidence(network, image, get("whole"), limits=limits, temperature=3)
        torch.testing.assert_close(confidence, (logits / 3).softmax(1).amax(1), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("max_bytes", [None, 20_000])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 1.7])
def test_forms_of_the_operation_agree_on_a_temperature(temperature: float, max_bytes: int | None) -> None:
    logits = torch.randn(2, 11, 7, 5, generator=torch.Generator().manual_seed(1)).mul(9)
    arguments = (logits, (50, 33), False, max_bytes)
    expected = F.interpolate(logits, (50, 33), mode="bilinear").div(temperature).softmax(1).amax(1)
    for found in (upsample_argmax_confidence(*arguments, temperature), plainly(arguments, temperature)):
        torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=0)
        assert (found[0] == upsample_argmax(*arguments)).float().mean() > 0.999


def plainly(arguments: tuple[Tensor, tuple[int, int], bool, int | None], temperature: float) -> tuple[Tensor, Tensor]:
    with plain_ops():
        labels, confidence = upsample_argmax_confidence(*arguments, temperature)
        assert torch.equal(labels, upsample_argmax(*arguments))
    return labels, confidence


@pytest.mark.parametrize("fusion", ["softmax_mean", "logit_mean", "exp_sum"])
def test_scores_by_hand(fusion: str) -> None:
    shares = torch.tensor([0.64, 0.32, 0.04])
    scores = {"softmax_mean": shares, "logit_mean": shares.log() + 7, "exp_sum": shares * 5}[fusion].view(1, 3, 1, 1)
    root = torch.tensor([0.8, 0.32**0.5, 0.2])
    for temperature, expected in ((1, shares), (2, root / root.sum())):
        torch.testing.assert_close(probabilities(scores, fusion, temperature).flatten(), expected)
        labels, confidence = best_of(scores, fusion, temperature)
        assert labels.item() == 0 and confidence.item() == pytest.approx(expected[0].item(), rel=1e-6)
    if fusion == "exp_sum":  # all of them underflowed
        for temperature in (1, 2):
            assert best_of(torch.zeros(1, 4, 1, 1), fusion, temperature)[1].item() == 0.25
            assert probabilities(torch.zeros(1, 4, 1, 1), fusion, temperature).flatten().tolist() == [0.25] * 4


@pytest.mark.slow
def test_strips_hold_little_of_many_classes() -> None:
    class Many(torch.nn.Module):
        align_corners, num_classes = True, 150

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": x.mean() + torch.zeros(len(x), 150, x.shape[2] // 8, x.shape[3] // 8)}

    image = torch.zeros(1, 3, 512, 768)
    whole = 4 * 150 * 512 * 768
    rows = 0
    with Largest() as largest:
        for start, stop, scores in score_strips(Many(), image, get("whole"), limits=Limits(strip_bytes=2**22)):
            probabilities(scores, "softmax_mean", 1.5)
            assert start == rows
            rows = stop
    assert rows == 512 and largest.seen < whole / 40


def test_what_cannot_fit_is_said_in_one_line_before_the_network_runs() -> None:
    made = segmenter(get("whole"), memory=40_000_000)
    seen: list[object] = []
    made.network.register_forward_hook(lambda *arguments: seen.append(arguments))
    large = np.zeros((1500, 1500, 3), np.uint8)  # 45 MB of probabilities
    with pytest.raises(InputError, match=r"1500 x 1500 .* takes at least .* but 40 MB are allowed"):
        made.predict_proba(large)
    assert not [arguments for arguments in seen if not arguments[1][0].is_meta]


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), "2", None, True])
def test_a_temperature_that_is_none(value: object) -> None:
    network = segmenter(get("whole")).network
    with pytest.raises(InputError, match="no temperature from"):
        card = {"calibration": {"temperature": value}}
        Segmenter(network, None, IMAGENET, get("whole"), torch.device("cpu"), card)


@pytest.mark.parametrize("protocol", [get("whole"), replace(get("ms-flip"), scales=(1.0, 1.3))])
def test_a_batch_has_the_confidence_of_its_images(protocol: Protocol) -> None:
    made = segmenter(protocol, 1.5)
    images = [IMAGE, np.ascontiguousarray(IMAGE[::-1])]
    labels, confidence = made.queue_with_confidence(images)()
    alone: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] = lambda image: made.predict(image, True)  # noqa: E731
    for i, image in enumerate(images):
        assert (labels[i] == alone(image)[0]).mean() > 0.999
        np.testing.assert_allclose(confidence[i], alone(image)[1], atol=1e-4)
