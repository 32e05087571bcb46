"""Each named protocol against its rule restated in plain loops, and against the toolkits' own code.

In tests/goldens, resize.npz was written by make_resize.py with mmcv 2.1.0, mmsegmentation 1.2.2 and CSAIL's mit_semseg
1.0.0, and paddleseg_scores.npz by make_paddleseg_scores.py with PaddleSeg 2.8.0.
"""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from segkit.inference.engine import forwards, predict, scores
from segkit.inference.protocols import NAMED, get
from segkit.inference.views import ImageResizer, denormalize, view_size
from segkit.ops.normalize import IMAGENET, Normalization, normalize

UNRECORDED = "mmseg-0x-ms-cityscapes"  # but for its base_size it is mmseg-0x-ms
LIKE_OTHERS = (UNRECORDED, "encoding-ms-cityscapes")  # but for their base_size; large images would take seconds
SIX = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
GOLDENS = Path(__file__).parents[1] / "goldens"
GOLDEN = {**np.load(GOLDENS / "resize.npz"), **np.load(GOLDENS / "paddleseg_scores.npz")}


def make_image(height, width):
    """Edges and slopes, uint8 (H, W, 3); tests/goldens/make_resize.py makes the same."""
    y, x, c = np.mgrid[:height, :width, :3]
    return ((x * 3 + y * 5 + c * 40 + (x * y) // 37 + 90 * ((x // 11 + y // 7) % 2)) % 256).astype(np.uint8)


def as_input(rgb):
    return normalize(torch.from_numpy(rgb).permute(2, 0, 1)[None])


class Patches(nn.Module):
    """Stride 8, five classes, cheap enough for the real sizes, and sees beyond its cell."""

    def __init__(self, align_corners):
        super().__init__()
        self.align_corners = align_corners
        self.first = nn.Conv2d(3, 6, 5, stride=4, padding=2)
        self.second = nn.Conv2d(6, 5, 3, stride=2, padding=1)
        for i, parameter in enumerate(self.parameters()):
            spread = 1.0 / parameter[0].numel() ** 0.5
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) * spread

    def forward(self, x):
        return {"out": self.second(F.relu(self.first(x)))}


def up(x, size, align_corners):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def normalized(rgb):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((torch.from_numpy(rgb) / 255 - mean) / std).permute(2, 0, 1)[None]


def encoding(network, rgb, base, crop, factors):
    """MultiEvalModule: long side, padding, windows cut at the border, exp of the flip pair, sum over scales."""
    height, width = rgb.shape[:2]
    black = -torch.tensor([0.485, 0.456, 0.406]) / torch.tensor([0.229, 0.224, 0.225])
    total = torch.zeros(1, 5, height, width)
    for factor in factors:
        long = math.ceil(base * factor)
        h = long if height > width else int(1.0 * height * long / width + 0.5)
        w = int(1.0 * width * long / height + 0.5) if height > width else long
        image = up(normalized(rgb), (h, w), True)
        rows, columns = (math.ceil((max(side, crop) - crop) / int(crop * 2 / 3)) + 1 for side in (h, w))
        sums, counts = torch.zeros(1, 5, h, w), torch.zeros(h, w)
        for y in (i * int(crop * 2 / 3) for i in range(rows)):
            for x in (i * int(crop * 2 / 3) for i in range(columns)):
                part = image[:, :, y : y + crop, x : x + crop]
                window = black.view(1, 3, 1, 1).repeat(1, 1, crop, crop)
                window[:, :, : part.shape[2], : part.shape[3]] = part
                logits = up(network(window)["out"], (crop, crop), True)
                mirrored = up(network(window.flip(3))["out"], (crop, crop), True).flip(3)
                said = (logits + mirrored).exp()[:, :, : part.shape[2], : part.shape[3]]
                sums[:, :, y : y + crop, x : x + crop] += said
                counts[y : y + crop, x : x + crop] += 1
        total += up(sums / counts, (height, width), True)
    return total


def fitted(rgb, limits):
    """mmcv: as large as fits between the two limits, 8-bit OpenCV."""
    height, width = rgb.shape[:2]
    factor = min(max(limits) / max(height, width), min(limits) / min(height, width))
    return normalized(cv2.resize(rgb, (int(width * factor + 0.5), int(height * factor + 0.5))))


def mmseg_single(network, rgb, limits):
    image = fitted(rgb, limits)
    return up(up(network(image)["out"], image.shape[2:], network.align_corners), rgb.shape[:2], network.align_corners)


def mmseg_augmented(network, rgb, all_limits):
    total, align = 0, network.align_corners
    for limits in all_limits:
        image = fitted(rgb, limits)
        for flip in (False, True):
            logits = up(network(image.flip(3) if flip else image)["out"], image.shape[2:], align)
            total = total + up(logits.flip(3) if flip else logits, rgb.shape[:2], align).softmax(1)
    return total / (2 * len(all_limits))


def mmseg_ms(network, rgb):
    height, width = rgb.shape[:2]
    return mmseg_augmented(network, rgb, [(int(height * r + 0.5), int(width * r + 0.5)) for r in SIX])


def mmseg_slide(network, rgb):
    image, crop, stride, align = fitted(rgb, (2049, 1025)), 769, 513, network.align_corners
    height, width = image.shape[2:]
    sums, counts = torch.zeros(1, 5, height, width), torch.zeros(height, width)
    for row in range(max(height - crop + stride - 1, 0) // stride + 1):
        for column in range(max(width - crop + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + crop, height), min(column * stride + crop, width)
            top, left = max(bottom - crop, 0), max(right - crop, 0)
            window = image[:, :, top:bottom, left:right]
            sums[:, :, top:bottom, left:right] += up(network(window)["out"], window.shape[2:], align)
            counts[top:bottom, left:right] += 1
    return up(sums / counts, rgb.shape[:2], align)


def csail_ms(network, rgb):
    height, width = rgb.shape[:2]
    total = torch.zeros(1, 5, height, width)
    for short in (300, 375, 450, 525, 600):
        factor = min(short / min(height, width), 1000 / max(height, width))
        h, w = (((int(side * factor) - 1) // 8 + 1) * 8 for side in (height, width))
        image = normalized(np.array(Image.fromarray(rgb).resize((w, h), Image.Resampling.BILINEAR)))
        total += up(network(image)["out"], (height, width), False).softmax(1) / 5
    return total


def paddleseg_ms(network, rgb):
    total, (height, width) = 0, rgb.shape[:2]
    for factor in (0.75, 1.0, 1.25):
        size = (int(height * factor + 0.5), int(width * factor + 0.5))
        image = up(normalized(rgb), size, False)
        total = total + up(up(network(image)["out"], size, False), (height, width), False)
        mirrored = up(network(image.flip(3))["out"], size, False).flip(3)
        total = total + up(mirrored, (height, width), False)
    return total / 6


def ms_flip(network, rgb):
    total, (height, width), align = 0, rgb.shape[:2], network.align_corners
    for factor in SIX:
        size = (int(height * factor + 0.5), int(width * factor + 0.5))
        image = up(normalized(rgb), size, align)
        for flip in (False, True):
            logits = up(network(image.flip(3) if flip else image)["out"], size, align)
            total = total + up(logits.flip(3) if flip else logits, (height, width), align).softmax(1)
    return total / 12


def window(network, rgb):
    """Like mmseg's, without its resize: squares of 512 every int(512 * 2 / 3) pixels."""
    image, align = normalized(rgb), network.align_corners
    height, width = image.shape[2:]
    sums, counts = torch.zeros(1, 5, height, width), torch.zeros(height, width)
    for top in sorted({max(0, min(y, height - 512)) for y in range(0, max(height - 512, 0) + 341, 341)}):
        for left in sorted({max(0, min(x, width - 512)) for x in range(0, max(width - 512, 0) + 341, 341)}):
            part = image[:, :, top : top + 512, left : left + 512]
            sums[:, :, top : top + 512, left : left + 512] += up(network(part)["out"], part.shape[2:], align)
            counts[top : top + 512, left : left + 512] += 1
    return (sums / counts).softmax(1)


RULES = {
    "whole": lambda n, x: up(n(normalized(x))["out"], x.shape[:2], n.align_corners).softmax(1),
    "ms-flip": ms_flip,
    "window": window,
    "encoding-ms": lambda n, x: encoding(n, x, 520, 480, SIX),
    "encoding-ms-cityscapes": lambda n, x: encoding(n, x, 2048, 768, (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25)),
    "mmseg-ss": lambda n, x: mmseg_single(n, x, (2048, 512)),
    "mmseg-ss-cityscapes": lambda n, x: mmseg_single(n, x, (2048, 1024)),
    "mmseg-ms": mmseg_ms,
    "mmseg-0x-ms": lambda n, x: mmseg_augmented(n, x, [(int(2048 * r), int(512 * r)) for r in SIX]),
    "mmseg-0x-ms-cityscapes": lambda n, x: mmseg_augmented(n, x, [(int(2048 * r), int(1024 * r)) for r in SIX]),
    "mmseg-slide": mmseg_slide,
    "csail-ms": csail_ms,
    "paddleseg-ms": paddleseg_ms,
}

# Smaller and larger than every crop but Cityscapes', whose images are long strips: fewer windows of 768.
SIZES = {name: [(61, 83), (701, 533)] for name in RULES}
SIZES["encoding-ms-cityscapes"] = [(37, 331), (2111, 301)]
SIZES["mmseg-0x-ms-cityscapes"] = [(37, 331), (1031, 301)]
# Their smallest image is as large as one of Cityscapes, or is looked at in six sizes of 2048.
ENLARGING = ("encoding-ms", "encoding-ms-cityscapes", "mmseg-0x-ms", "mmseg-0x-ms-cityscapes", "mmseg-ss-cityscapes")


def test_every_named_protocol_has_its_rule_here():
    assert RULES.keys() == NAMED.keys()


@pytest.mark.parametrize(
    "name, size",
    [
        pytest.param(name, small, marks=[pytest.mark.slow] if name in ENLARGING else [])
        for name, (small, _) in SIZES.items()
    ],
)
def test_the_engine_does_what_the_rule_says_to_a_small_image(name, size):
    check_rule(name, size)


@pytest.mark.slow
@pytest.mark.parametrize("name, size", [(name, large) for name, (_, large) in SIZES.items() if name not in LIKE_OTHERS])
def test_the_engine_does_what_the_rule_says_to_a_large_image(name, size):
    check_rule(name, size)


def check_rule(name, size):
    rgb, network = make_image(*size), Patches(align_corners=name == "mmseg-slide").eval()
    with torch.no_grad():
        expected = RULES[name](network, rgb)
    result = scores(network, as_input(rgb), get(name))
    assert ((result - expected).abs().max() / expected.abs().max()).item() < 1e-5
    assert_labels(predict(network, as_input(rgb), get(name)), expected)


def assert_labels(labels, expected):
    """Equal, but for pixels whose two best scores are a rounding apart."""
    best = expected.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > 1e-5 * best[:, 0].abs()
    assert clear.float().mean() > 0.999
    assert torch.equal(labels.long()[clear], expected.argmax(1)[clear])


class GoldenNetwork(nn.Module):
    """The network of make_resize.py, with the head that mmsegmentation or CSAIL put on it."""

    def __init__(self, head, align_corners):
        super().__init__()
        self.align_corners, self.head = align_corners, head

    def forward(self, x):
        layers = {name[7:]: torch.from_numpy(GOLDEN[name]) for name in GOLDEN if name.startswith("weight_")}
        for name in "abc":
            x = F.relu(F.conv2d(x, layers[name], stride=2, padding=layers[name].shape[-1] // 2))
        if self.head == "csail":
            x = F.relu(F.conv2d(x, layers["csail"], padding=1))
        return {"out": F.conv2d(x, layers[f"{self.head}_out"], layers[f"{self.head}_out_bias"])}


@pytest.mark.slow
@pytest.mark.parametrize("size", [(61, 83), (530, 701), (93, 47)])
@pytest.mark.parametrize("name", [n for n in NAMED if n.startswith(("mmseg", "csail", "paddle")) and n != UNRECORDED])
def test_the_engine_gives_the_scores_of_the_toolkit(name, size):
    key = name + {61: "_small", 530: "_large", 93: "_tall"}[size[0]]
    network = GoldenNetwork("csail" if name == "csail-ms" else "mmseg", align_corners=name == "mmseg-slide")
    protocol, image = get(name), as_input(make_image(*size))
    step, expected = int(GOLDEN["step"]), torch.from_numpy(GOLDEN[key])
    result = scores(network, image, protocol)[0]
    difference = (result[:, ::step, ::step] - expected).abs().max() / expected.abs().max()
    assert difference.item() < 1e-5
    if f"{key}_labels" in GOLDEN:  # those that SegTTAModel and aug_inference give themselves
        labels, best = predict(network, image, protocol)[0], result.topk(2, dim=0).values
        clear = (best[0] - best[1] > 1e-5)[::3, ::3]
        assert clear.float().mean() > 0.999
        assert torch.equal(labels[::3, ::3][clear], torch.from_numpy(GOLDEN[f"{key}_labels"])[0][clear])


@pytest.mark.slow
def test_sizes_are_those_of_mmcv_and_csail():
    sizes = [tuple(size) for size in GOLDEN["sizes"].tolist()]
    rules = [(get(name), 1.0) for name in ("mmseg-ss", "mmseg-ss-cityscapes", "mmseg-slide")]
    rules += [(get(name), ratio) for name in ("mmseg-ms", "mmseg-0x-ms") for ratio in SIX]
    ours = [[view_size(protocol, scale, size) for protocol, scale in rules] for size in sizes]
    assert len(sizes) > 250 and np.array_equal(np.array(ours), GOLDEN["mmcv_sizes"])
    sizes = [tuple(size) for size in GOLDEN["csail_from"].tolist()]
    csail = get("csail-ms")
    ours = [[view_size(csail, scale, size) for scale in csail.scales] for size in sizes]
    assert len(sizes) > 250 and np.array_equal(np.array(ours), GOLDEN["csail_sizes"])


@pytest.mark.parametrize(
    "resample, key",
    [("opencv", "opencv_0.75"), ("opencv", "opencv_1.25"), ("pillow", "pillow_0"), ("pillow", "pillow_1")],
)
def test_images_are_those_of_mmcv_and_csail(resample, key):
    expected = GOLDEN[key]
    resize = ImageResizer(as_input(make_image(61, 83)), resample, True, IMAGENET)
    resized = denormalize(resize(expected.shape[:2]), IMAGENET)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(resized, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_eight_bits_come_back_from_a_normalised_image(dtype):
    rgb = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    assert torch.equal(denormalize(normalize(rgb, dtype=dtype), IMAGENET), rgb)
    assert denormalize(torch.full((1, 3, 1, 1), 9.0), IMAGENET).eq(255).all()


def test_a_single_channel_is_resized_too():
    grey = Normalization((0.5,), (0.25,))
    image = normalize(torch.arange(12, dtype=torch.uint8).view(1, 1, 3, 4) * 20, grey)
    for resample in ("opencv", "pillow"):
        assert ImageResizer(image, resample, True, grey)((6, 9)).shape == (1, 1, 6, 9)


def test_forwards_count_what_the_network_sees():
    expected = {"encoding-ms": 36, "mmseg-ss": 1, "mmseg-ms": 12, "mmseg-0x-ms": 12, "csail-ms": 5, "paddleseg-ms": 6}
    assert {name: forwards(get(name), (512, 683)) for name in expected} == expected
    # Fitted into (2049, 1025) it is 1024.5 x 2049, halves up: 2 rows of 1 + ceil((2049 - 769) / 513) = 4 windows.
    assert forwards(get("mmseg-slide"), (1024, 2048)) == 2 * 4
    assert forwards(get("encoding-ms-cityscapes"), (1024, 2048)) == 256
