"""One look of a network at an image: its labels, the attention of its blocks, and Grad-CAM.

Grad-CAM is that of Selvaraju et al. 2017 (arXiv 1610.02391), section 3; the score of a class is that of Seg-Grad-CAM
(Vinogradova et al. 2020, arXiv 2002.11434): its logits at a set of pixels, here the mean over those predicted as it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segkit.arrays import UInt8Array
from segkit.errors import InputError
from segkit.explain.attention import Reading, reading
from segkit.inference.segmenter import Segmenter
from segkit.models.encoders import padded_to
from segkit.ops.normalize import normalize
from segkit.ops.upsample import upsample
from segkit.ops.upsample_argmax import upsample_argmax

MOST_PIXELS = 2**22  # of an image; a larger one is reduced, as a figure is in any case
LAST = 4  # stage


class Look(NamedTuple):
    """What one forward showed.

    Attributes:
        image: uint8 (H, W, 3), for the eye.
        x: Normalised float (1, C, H, W).
        labels: uint8 (H, W): the train ids of `Segmenter.predict` by the protocol "whole".
        attention: By block; see `reading`.
        covered: Height and width of all cells of a feature, in pixels; see `padded`.
        reduced: The whole factor by which the image was reduced.
    """

    image: UInt8Array
    x: Tensor
    labels: UInt8Array
    attention: dict[str, Reading]
    covered: tuple[int, int]
    reduced: int


def look(segmenter: Segmenter, path: Path) -> Look:
    """Show an image to a network once, as a whole.

    Raises:
        InputError: The image cannot be read.
    """
    array = segmenter.read(path)
    image = array if segmenter.bands is None else segmenter.bands.as_rgb(array)
    factor = next(f for f in range(1, 2**16) if array.shape[0] * array.shape[1] <= MOST_PIXELS * f * f)
    network: Any = segmenter.network
    with torch.no_grad():
        x = normalize(torch.from_numpy(array).permute(2, 0, 1)[None].to(segmenter.device), segmenter.normalization)
        x = F.avg_pool2d(x, factor, ceil_mode=True) if factor > 1 else x
        with reading(network) as attention:
            logits = network(x)["out"]
        labels = upsample_argmax(logits, _size(x), network.align_corners)[0].cpu().numpy()
    return Look(image[::factor, ::factor], x, labels, attention, _size(padded(network, x)), factor)


def padded(network: Any, x: Tensor) -> Tensor:
    """An image as a network's encoder gets it, which smp's decoders have padded at the right and bottom."""
    return padded_to(x, getattr(network, "multiple", 1), getattr(network, "least", 0))


def stages_of(features: Any) -> list[Tensor]:
    """The features of stages 1, 2, ... in what an encoder returned; none of a network of a user's own."""
    if isinstance(features, tuple):  # of a plain transformer, with its prefix tokens
        return list(features[0])
    return features[2:] if isinstance(features, list) else []  # the input and the stem come first


def grad_cams(network: Any, x: Tensor, labels: UInt8Array, classes: Sequence[int], stages: Sequence[int]) -> Tensor:
    """Grad-CAM of classes at stages of the encoder: float (m, n, H, W), 0 or more.

    Args:
        network: In eval mode, its parameters not requiring gradients. For the last stage alone only what follows it is
            kept for the gradient; an earlier one takes as much memory as training.
        x: Normalised float (1, C, H, W).
        labels: (H, W) predicted train ids.
        classes: n train ids, each with pixels.
        stages: m of 1 to 4.

    Raises:
        InputError: The network has no such stage, or its logits do not depend on it.
    """
    (height, width), covered = _size(x), _size(padded(network, x))
    x = x.detach().clone().requires_grad_(min(stages) < LAST)
    kept: list[Tensor] = []

    def keep(_: nn.Module, inputs: Any, output: Any) -> None:
        features = output[0] if isinstance(output, tuple) else output
        if not x.requires_grad and isinstance(features, list):
            features[-1] = features[-1].detach().requires_grad_()
        kept.extend(stages_of(output))

    handle = network.encoder.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = upsample(network(x)["out"][:, list(classes)], (height, width), network.align_corners)
    finally:
        handle.remove()
    if max(stages) > len(kept):
        raise InputError(f"--stages {max(stages)}: the encoder has {len(kept)} stages whose features it gives")
    features = [kept[stage - 1] for stage in stages]
    cams = x.new_zeros(len(stages), len(classes), height, width)
    for i, k in enumerate(classes):
        score = logits[0, i][torch.from_numpy(labels == k).to(x.device)].mean()
        gradients = torch.autograd.grad(score, features, retain_graph=True, allow_unused=True)
        for j, (feature, gradient) in enumerate(zip(features, gradients, strict=True)):
            if gradient is None:
                raise InputError(f"--stages {stages[j]}: the logits do not depend on that stage's feature")
            cam = (gradient.mean((2, 3), keepdim=True) * feature.detach()).sum(1, keepdim=True).relu()  # (1, 1, h, w)
            cams[j, i] = upsample(cam, covered, network.align_corners)[0, 0, :height, :width]
    return cams


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]
