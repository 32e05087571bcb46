"""The engine against plain loops: one window, one flip, one scale at a time, everything at full size and in float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from random_image import random_image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from segkit.errors import InputError
from segkit.inference.engine import Limits, forwards, predict, resolve, scores
from segkit.inference.protocols import Protocol, get
from segkit.inference.views import view_size
from segkit.ops.normalize import IMAGENET

AUTHORS = replace(get("encoding-ms"), base_size=40, window=36, scales=(0.5, 1.0, 1.75))
PROTOCOLS = {
    "authors": AUTHORS,
    "authors, no flip": replace(AUTHORS, flip=False),
    "authors, corners not aligned": replace(AUTHORS, align_corners=False),
    "ms-flip": replace(get("ms-flip"), scales=(0.5, 1.0, 1.3)),
    "window": replace(get("window"), window=32),
    "window, ms, flip": Protocol("w", scales=(0.75, 1.5), flip=True, window=30, stride=17),
    "logit mean": Protocol(
        "l", scales=(0.8, 1.2), flip=True, fusion="logit_mean", resize_to="short_side", base_size=33, window=31
    ),
    "logit mean of whole images": Protocol("p", scales=(1.0, 2.0), fusion="logit_mean", align_corners=False),
}


class TinyNetwork(nn.Module):
    """Three convolutions to stride 8 with a wide enough view that windows differ; counts what it sees.

    It computes in float64, whose sums are the same on any processor and for any batch: what is tested to be right to
    the last digits of float32 is the engine's own arithmetic.
    """

    def __init__(self, num_classes: int = 5, gain: float = 3.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.Dropout(0.5),
            nn.ReLU(),
            nn.Conv2d(8, num_classes, 3, stride=2, padding=1),
        )
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * gain / parameter[0].numel() ** 0.5
        self.layers.double()
        self.align_corners = True
        self.batches: list[int] = []

    def forward(self, x):
        self.batches.append(len(x))
        return {"out": self.layers(x.double()).to(x.dtype)}


def resize(x, size, align_corners):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def windows_by_hand(protocol, height, width):
    """(top, left) of each window, padded size, window height and width."""
    side = protocol.window
    step = protocol.stride or int(side * 2 / 3)
    if protocol.window_rule == "truncate":
        padded = (max(height, side), max(width, side))
        starts = [[i * step for i in range(-(-(length - side) // step) + 1)] for length in padded]
        return [(y, x) for y in starts[0] for x in starts[1]], padded, (side, side)
    corners = []
    for y in range(max(height - side + step - 1, 0) // step + 1):
        for x in range(max(width - side + step - 1, 0) // step + 1):
            bottom, right = min(y * step + side, height), min(x * step + side, width)
            corners.append((max(bottom - side, 0), max(right - side, 0)))
    return corners, (height, width), (min(side, height), min(side, width))


def view_by_hand(network, image, protocol, align_corners, mirrored_too):
    """Logits (or exp of the flip sum) of one scaled image at its own size."""
    height, width = image.shape[2:]
    corners, (tall, wide), (h, w) = [(0, 0)], (height, width), (height, width)
    if protocol.window is not None:
        corners, (tall, wide), (h, w) = windows_by_hand(protocol, height, width)
    black = torch.tensor(IMAGENET.black).to(image).view(1, 3, 1, 1)
    canvas = black.expand(1, 3, tall + h, wide + w).clone()
    canvas[:, :, :height, :width] = image
    total, count = 0, image.new_zeros(1, 1, tall + h, wide + w)
    for y, x in corners:
        crop = canvas[:, :, y : y + h, x : x + w]
        out = resize(network(crop)["out"], (h, w), align_corners)
        if mirrored_too:
            out = out + resize(network(crop.flip(3))["out"], (h, w), align_corners).flip(3)
        if protocol.fusion == "exp_sum":
            out = out.exp()
        if isinstance(total, int):
            total = out.new_zeros(1, out.shape[1], tall + h, wide + w)
        total[:, :, y : y + h, x : x + w] += out
        count[:, :, y : y + h, x : x + w] += 1
    return (total / count)[:, :, :height, :width]


def by_hand(network, image, protocol, size=None):
    """The documented semantics of a protocol, one image, without any economy, in float64."""
    image = image.double()
    size = size or tuple(image.shape[2:])
    align_corners = network.align_corners if protocol.align_corners is None else protocol.align_corners
    total, number = 0, 0
    for scale in protocol.scales:
        seen = view_size(protocol, scale, tuple(image.shape[2:]))
        scaled = resize(image, seen, align_corners)
        if protocol.fusion == "exp_sum":
            view = view_by_hand(network, scaled, protocol, align_corners, protocol.flip)
            total = total + resize(view, size, align_corners)
            number = 1
            continue
        for mirrored in (False, True) if protocol.flip else (False,):
            network_of_view = network
            if mirrored:
                network_of_view = lambda x: {"out": network(x.flip(3))["out"].flip(3)}  # noqa: E731
            view = resize(view_by_hand(network_of_view, scaled, protocol, align_corners, False), size, align_corners)
            total = total + (view.softmax(1) if protocol.fusion == "softmax_mean" else view)
            number += 1
    return total / number


def rounding(network, image):
    """How far a score may be from float64, of the largest score.

    A logit, or the sum of two flipped ones, is rounded about 20 times (image and logits are resized by four products
    each, then added up over windows, flips and scales), each time by 2^-24 of the largest. The exponential of a logit
    is wrong by a share as large as what the logit is wrong by.
    """
    with torch.no_grad():
        return 20 * 2**-24 * 2 * network(image)["out"].abs().max().item()


def assert_same_labels(labels, reference, tolerance=1e-5):
    """Equal, but for pixels whose two best scores are a rounding apart."""
    best = reference.topk(2, dim=1)
    clear = (best.values[:, 0] - best.values[:, 1]) > tolerance * best.values[:, 0].abs()
    assert clear.float().mean() > 0.99
    assert torch.equal(labels.long()[clear], reference.argmax(1)[clear])


@pytest.mark.slow
@pytest.mark.parametrize("size", [(61, 45), (29, 45), (23, 21)])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_engine_is_the_plain_loop(name, size):
    protocol, network, image = PROTOCOLS[name], TinyNetwork().eval(), random_image(*size)
    with torch.no_grad():
        reference = by_hand(network, image, protocol)
    result = scores(network, image, protocol, limits=Limits(strip_bytes=40_000))
    assert result.dtype == torch.float32 and result.shape == (1, 5, *size)
    tolerance = rounding(network, image)
    assert ((result - reference).abs().max() / reference.abs().max()).item() < tolerance
    assert_same_labels(predict(network, image, protocol, limits=Limits(strip_bytes=40_000)), reference, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROTOCOLS)
def test_another_output_size(name):
    protocol, network, image = PROTOCOLS[name], TinyNetwork().eval(), random_image(37, 51)
    with torch.no_grad():
        reference = by_hand(network, image, protocol, size=(70, 41))
    result = scores(network, image, protocol, size=(70, 41))
    tolerance = rounding(network, image)
    assert ((result - reference).abs().max() / reference.abs().max()).item() < tolerance
    assert_same_labels(predict(network, image, protocol, size=(70, 41)), reference, tolerance)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(97, 65), (1, 1), (1, 30), (64, 64)])
def test_whole_is_forward_interpolate_argmax(size, align_corners):
    network, image = TinyNetwork().eval(), random_image(*size, batch=2)
    network.align_corners = align_corners
    with torch.no_grad():
        logits = resize(network(image)["out"], size, align_corners)
    labels = predict(network, image, get("whole"))
    assert labels.dtype == torch.uint8 and labels.shape == (2, *size)
    assert_same_labels(labels, logits)
    probabilities = scores(network, image, get("whole"))
    torch.testing.assert_close(probabilities, logits.softmax(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_one_pixel(name):
    labels = predict(TinyNetwork(), random_image(1, 1), PROTOCOLS[name])
    assert labels.shape == (1, 1, 1)


@pytest.mark.parametrize("name", ["authors", "ms-flip", "window"])
def test_neither_batch_nor_chunks_nor_strips_change_the_scores(name):
    protocol, network, image = PROTOCOLS[name], TinyNetwork(), random_image(75, 50, batch=3)
    together, tolerance = scores(network, image, protocol), 2 * rounding(network, image)
    for max_pixels, strip_bytes in ((1, 1), (3000, 4000), (10_000, 2**30)):
        result = scores(network, image, protocol, limits=Limits(max_pixels, strip_bytes))
        torch.testing.assert_close(result, together, rtol=tolerance, atol=1e-6)
    for index in range(3):
        alone = scores(network, image[index : index + 1], protocol)
        torch.testing.assert_close(alone[0], together[index], rtol=tolerance, atol=1e-6)


def test_windows_and_flips_share_forwards():
    network = TinyNetwork()
    protocol = Protocol("w", window=32, flip=True)
    number = forwards(protocol, (75, 50))
    predict(network, random_image(75, 50), protocol)
    assert network.batches == [number] and number == 2 * 4 * 2
    network.batches.clear()
    predict(network, random_image(75, 50), protocol, limits=Limits(5 * 32 * 32))
    assert network.batches == [5, 5, 5, 1]
    network.batches.clear()
    predict(network, random_image(75, 50, batch=3), protocol, limits=Limits(2 * 32 * 32))
    assert network.batches == [2] * (16 + 8)


def test_large_logits_do_not_overflow():
    network, image = TinyNetwork(gain=7.0).eval(), random_image(60, 41)
    with torch.no_grad():
        reference = by_hand(network, image, AUTHORS)  # float64 holds exp up to 709
        largest = network(image)["out"].max()
    assert 80 < 2 * largest < 700
    result = scores(network, image, AUTHORS)
    assert result.isfinite().all()
    ratio = (result / reference)[reference > reference.max() * 1e-20]
    assert ratio.max() / ratio.min() - 1 < 1e-3  # one constant; exp(x) of x in the hundreds keeps 4 to 5 digits
    assert_same_labels(predict(network, image, AUTHORS), reference)


@pytest.mark.parametrize("name", ["authors", "ms-flip", "logit mean"])
def test_half_precision_logits_are_fused_in_float32(name):
    class Half(TinyNetwork):
        def forward(self, x):
            return {"out": super().forward(x)["out"].bfloat16()}

    class Rounded(TinyNetwork):
        def forward(self, x):
            return {"out": super().forward(x)["out"].bfloat16().float()}

    image = random_image(45, 58)
    result = scores(Half(), image, PROTOCOLS[name])
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, scores(Rounded(), image, PROTOCOLS[name]), rtol=1e-6, atol=0)


def test_modes_are_restored_and_labels_are_ordinary_tensors():
    network = TinyNetwork().train()
    network.layers[0].eval()
    image = random_image(20, 20)
    kept = image.clone()
    labels = predict(network, image, get("ms-flip"))
    labels += 1  # not an inference tensor
    assert torch.equal(predict(network, image, get("ms-flip")) + 1, labels)  # no dropout
    assert network.training and network.layers[3].training and not network.layers[0].training
    assert torch.equal(image, kept)


def test_modes_are_restored_after_an_error():
    class Broken(TinyNetwork):
        def forward(self, x):
            raise RuntimeError("broken")

    network = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        predict(network, random_image(20, 20), get("whole"))
    assert network.training


def test_resolve_takes_the_networks_align_corners():
    network = TinyNetwork()
    network.align_corners = False
    assert resolve(get("whole"), network).align_corners is False
    assert resolve(AUTHORS, network).align_corners is True
    assert resolve(get("whole"), nn.Identity()).align_corners is True


@pytest.mark.parametrize(
    "image, size",
    [
        (torch.zeros(3, 4, 4), None),
        (torch.zeros(1, 4, 4, 3), None),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), None),
        (torch.zeros(1, 3, 0, 4), None),
        (torch.zeros(1, 3, 4, 4), (0, 4)),
    ],
)
def test_wrong_images_are_refused(image, size):
    with pytest.raises(InputError, match="engine"):
        predict(TinyNetwork(), image, get("whole"), size)


class LargestTensor(TorchDispatchMode):
    """The most elements any operation's output had while this mode was on."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


class Pool(nn.Module):
    """150 classes at stride 8 at the price of a pooling, so that all large tensors are the engine's."""

    def forward(self, x):
        cells = F.avg_pool2d(x, 8, ceil_mode=True)[:, :1]
        return {"out": cells * torch.linspace(-1, 1, 150).view(1, -1, 1, 1)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "protocol",
    [
        get("whole"),
        Protocol("ms", scales=(0.5, 1.25), flip=True),
        Protocol("authors", (1.0,), True, "exp_sum", "long_side", 640, 320, None, "truncate"),
    ],
    ids=lambda protocol: protocol.name,
)
def test_memory_is_bounded_by_the_strip(protocol):
    height, width, strip_bytes = 480, 640, 4 * 2**20
    with LargestTensor() as largest:
        predict(Pool(), random_image(height, width), protocol, limits=Limits(2**18, strip_bytes))
    scaled = height * width * max(protocol.scales) ** 2
    assert largest.numel <= max(strip_bytes // 4, 3 * scaled, 150 * scaled / 64 * 1.1)  # image, logits at stride 8
    assert largest.numel < 150 * height * width / 30
