"""The engine: maps a network and a normalised image to labels or scores, by any protocol.

Windows and flips of one scale share forwards; their logits are kept at the network's stride, never at full size.

Memory: the network's parameters; its largest forward (684 bytes for each pixel of the input of a ResNeSt-50 DeepLabV3:
8 GB for 12 megapixels); the logits of all views at the network's stride s, that is 4 B K H W sum(scale^2) / s^2 bytes,
more by the overlap of windows, twice that with flip; some tensors of at most `Limits.strip_bytes` each (see
`StripFusion` for the minimum); and the result. One window in one view, as in the protocol `whole`, takes a shorter
way, `upsample_argmax`, which has its own bound. Everything but the parameters grows linearly with the pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.inference.fusion import StripFusion, View, best_of
from segkit.inference.protocols import Protocol
from segkit.inference.views import ImageResizer, SlidingWindow, cut, network_inputs, view_size, window_grid
from segkit.models.norms import eval_mode
from segkit.ops.normalize import IMAGENET, Normalization, by_channel
from segkit.ops.upsample import label_dtype
from segkit.ops.upsample_argmax import upsample_argmax, upsample_argmax_confidence


class Task(NamedTuple):
    """The request of one call.

    Attributes:
        batch: Shape (B, C, H, W) of the images.
        device: The images' device.
        protocol: The resolved protocol.
        size: (height, width) of the result.
        all_classes: Whether the result has K floats per pixel.
    """

    batch: torch.Size
    device: torch.device
    protocol: Protocol
    size: tuple[int, int]
    all_classes: bool = False


@dataclass(frozen=True)
class Limits:
    """How much one call does at once, which affects speed and memory but no result.

    `segkit.inference.tiling.budget.Budget` is a subclass that keeps a call within a number of bytes.

    Attributes:
        max_pixels: Pixels of the images or windows in one forward; a single window may exceed it. None means
            `default_pixels`.
        strip_bytes: Bytes of the largest float tensor of the fusion; None means `default_strip`.
        always_strips: Whether even one window in one view is fused in strips, which takes less memory.
    """

    max_pixels: int | None = None
    strip_bytes: int | None = None
    always_strips: bool = False

    def applied(self, network: nn.Module, task: Task) -> tuple[nn.Module, Limits]:
        """Return the network to run and the limits that apply to it, here both unchanged."""
        return network, self


def default_pixels(device: torch.device) -> int:
    """Pixels per forward: one Cityscapes image or nine windows of 480 fill a GPU; a CPU gains nothing from two."""
    return 2**19 if device.type == "cpu" else 2**21


def default_strip(device: torch.device) -> int:
    """Bytes of the largest tensor of a fusion; on CPUs, as much as their caches hold."""
    return (16 if device.type == "cpu" else 256) * 2**20


def predict(
    network: nn.Module,
    image: Tensor,
    protocol: Protocol,
    size: tuple[int, int] | None = None,
    normalization: Normalization = IMAGENET,
    limits: Limits | None = None,
) -> Tensor:
    """Label each pixel of a batch of images of one size.

    Args:
        network: Maps normalised float (b, 3, h, w) to {"out": (b, K, ., .)}, for any h and w, on the image's device.
            It runs in eval mode, and each module gets its own mode back.
        image: Normalised float (B, 3, H, W).
        protocol: Scales, flip, windows and fusion.
        size: Height and width of the labels; None means those of `image`.
        normalization: How `image` was normalised, which defines black.
        limits: How much is done at once; None means what suits the device.

    Returns:
        uint8 (B, H, W), int16 above 256 classes.

    Raises:
        InputError: `image` is not a float (B, 3, H, W), `size` is empty, or the limits cannot be kept.
    """
    look = _look(network, image, protocol, size, normalization, limits)
    # Made outside inference mode, so that the caller may write to them.
    labels = look.empty(label_dtype(look.num_classes))
    with torch.inference_mode():
        if look.is_plain:
            return look.fill(labels, upsample_argmax(*look.plain(), look.limits.strip_bytes))
        for start, stop, strip in look.strips():
            labels[:, start:stop] = strip.max(dim=1).indices  # (B, K, n, W) -> (B, n, W); on CPUs faster than argmax
    return labels


def predict_with_confidence(
    network: nn.Module,
    image: Tensor,
    protocol: Protocol,
    size: tuple[int, int] | None = None,
    normalization: Normalization = IMAGENET,
    limits: Limits | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the labels of `predict`, with the same arguments and errors, and the fused views' confidence in each.

    The temperature is that of `segkit.inference.fusion.best_of`.

    Returns:
        uint8 (B, H, W), int16 above 256 classes; and float32 (B, H, W) in 0..1, the largest fused probability: the
        score itself for softmax_mean, a softmax of the mean logits for logit_mean, its share of the sum for exp_sum.
    """
    look = _look(network, image, protocol, size, normalization, limits)
    labels, confidence = look.empty(label_dtype(look.num_classes)), look.empty(torch.float32)
    with torch.inference_mode():
        if look.is_plain:
            logits, seen, align = look.plain()
            if look.task.protocol.flip and look.task.protocol.fusion == "logit_mean":
                logits = logits / 2  # they are the sum of both views; the division is exact and changes no label
            found = upsample_argmax_confidence(logits, seen, align, look.limits.strip_bytes, temperature)
            for result, part in zip((labels, confidence), found, strict=True):
                look.fill(result, part)
            return labels, confidence
        for start, stop, strip in look.strips():
            labels[:, start:stop], confidence[:, start:stop] = best_of(strip, look.task.protocol.fusion, temperature)
    return labels, confidence


def score_strips(
    network: nn.Module,
    image: Tensor,
    protocol: Protocol,
    size: tuple[int, int] | None = None,
    normalization: Normalization = IMAGENET,
    limits: Limits | None = None,
    all_classes: bool = False,
) -> Iterator[tuple[int, int, Tensor]]:
    """Give the scores of `scores` some rows at a time, so that nothing has all classes at full size.

    Arguments and errors, raised at the call, are those of `predict`.

    Args:
        all_classes: Whether the caller keeps all of them, which the limits then count.

    Returns:
        An iterator, from top to bottom, over (start, stop) rows and their scores, float (B, K, stop - start, W).
    """
    return _strips(_look(network, image, protocol, size, normalization, limits, all_classes))


def scores(
    network: nn.Module,
    image: Tensor,
    protocol: Protocol,
    size: tuple[int, int] | None = None,
    normalization: Normalization = IMAGENET,
    limits: Limits | None = None,
) -> Tensor:
    """Return the fused scores behind `predict`: probabilities, mean logits or sums of exp, as the protocol says.

    Arguments and errors are those of `predict`; this result has all classes at full size.

    Returns:
        float32 (B, K, H, W). For exp_sum they are defined up to one factor per image (see `StripFusion`).
    """
    look = _look(network, image, protocol, size, normalization, limits, all_classes=True)
    result = look.empty(torch.float32, look.num_classes)
    with torch.inference_mode():
        for start, stop, strip in look.strips():
            result[:, :, start:stop] = strip
    return result


@torch.inference_mode()
def _strips(look: _Look) -> Iterator[tuple[int, int, Tensor]]:
    yield from look.strips()


def forwards(protocol: Protocol, size: tuple[int, int]) -> int:
    """How many images the network sees for one image of `size` (height, width): windows x flips, all scales."""
    return sum(count for count, _ in network_inputs(protocol, size))


def resolve(protocol: Protocol, network: nn.Module) -> Protocol:
    """The protocol that really runs with this network, with every None replaced; log and store this one."""
    return protocol.resolved(align_corners=bool(getattr(network, "align_corners", True)))


@dataclass(frozen=True)
class _Look:
    """The network's output for a batch, and how it is turned into a result."""

    views: list[View]
    task: Task
    limits: Limits

    @property
    def num_classes(self) -> int:
        return self.views[0].logits[0].shape[1]

    @property
    def is_plain(self) -> bool:
        """Whether one window needs no further resize: exp and softmax keep the order of classes, so logits suffice."""
        is_one = len(self.views) == 1 and len(self.views[0].logits) == 1 and not self.limits.always_strips
        return is_one and (self.task.protocol.upsample_to == "output" or self.views[0].grid.image == self.task.size)

    def plain(self) -> tuple[Tensor, tuple[int, int], bool]:
        """The logits of the only window, the size to which they are upsampled, and align_corners."""
        protocol, view = self.task.protocol, self.views[0]
        seen = self.task.size if protocol.upsample_to == "output" else view.grid.shape
        return view.logits[0], seen, bool(protocol.align_corners)

    def strips(self) -> StripFusion:
        """The fused scores, some rows at a time."""
        protocol = self.task.protocol
        count = len(protocol.scales) * (2 if protocol.flip else 1)
        strip_bytes = self.limits.strip_bytes or default_strip(self.task.device)
        return StripFusion(self.views, self.task.size, protocol, count, strip_bytes)

    def empty(self, dtype: torch.dtype, *channels: int) -> Tensor:
        """An uninitialised result (B, ..., H, W)."""
        return torch.empty(self.task.batch[0], *channels, *self.task.size, dtype=dtype, device=self.task.device)

    def fill(self, result: Tensor, whole: Tensor) -> Tensor:
        """Copy to the result the part of a window, possibly filled with black, that lies in the image."""
        return result.copy_(whole[:, : self.task.size[0], : self.task.size[1]])


def _look(
    network: nn.Module,
    image: Tensor,
    protocol: Protocol,
    size: tuple[int, int] | None,
    normalization: Normalization,
    limits: Limits | None,
    all_classes: bool = False,
) -> _Look:
    """Check the arguments and run the network on all views."""
    size = _checked_size(image, normalization, size)
    task = Task(image.shape, image.device, resolve(protocol, network), size, all_classes)
    network, limits = (limits or Limits()).applied(network, task)
    max_pixels = limits.max_pixels or default_pixels(image.device)
    return _Look(_views(network, image, task.protocol, normalization, max_pixels), task, limits)


@torch.inference_mode()
def _views(
    network: nn.Module, image: Tensor, protocol: Protocol, normalization: Normalization, max_pixels: int
) -> list[View]:
    """Run the network on every scale, window and flip of a resolved protocol.

    Returns:
        One view per scale, or two for softmax_mean with flip (the flipped one turned back). Otherwise the flipped
        logits are already added to the others at the network's stride: upsampling is linear and symmetric.
    """
    views = []
    black = by_channel(normalization.black, image.device).to(image.dtype)
    flips = (False, True) if protocol.flip else (False,)
    resize = ImageResizer(image, protocol.resample, bool(protocol.align_corners), normalization)
    with eval_mode(network):
        for scale in protocol.scales:
            size = view_size(protocol, scale, (image.shape[2], image.shape[3]))
            grid = window_grid(protocol, size)
            seen = [(window, flip) for flip in flips for window in grid.windows]
            logits = _forward(network, resize(size), grid.shape, seen, black, max_pixels)
            half = len(grid.windows)
            if protocol.flip and protocol.fusion != "softmax_mean":
                logits = [a.float() + b.float() for a, b in zip(logits[:half], logits[half:], strict=True)]
            views += [View(grid, logits[i : i + half]) for i in range(0, len(logits), half)]
    return views


def _forward(
    network: nn.Module,
    image: Tensor,
    shape: tuple[int, int],
    seen: list[tuple[SlidingWindow, bool]],
    black: Tensor,
    max_pixels: int,
) -> list[Tensor]:
    """Logits (B, K, h, w) of each (window, flip), turned back, with as many per forward as `max_pixels` allows."""
    at_once = max(1, max_pixels // (shape[0] * shape[1]))
    parts = []
    for batch in torch.split(image, min(len(image), at_once)):  # (b, 3, H, W)
        step = at_once // len(batch)
        part: list[Tensor] = []
        for i in range(0, len(seen), step):
            chunk = seen[i : i + step]
            crops = [_turn(cut(batch, window, shape, black), flip) for window, flip in chunk]
            out = network(crops[0] if len(crops) == 1 else torch.cat(crops))["out"]  # (b * chunk, K, h, w)
            part += [_turn(logits, flip) for logits, (_, flip) in zip(out.split(len(batch)), chunk, strict=True)]
        parts.append(part)
    return parts[0] if len(parts) == 1 else [torch.cat(pieces) for pieces in zip(*parts, strict=True)]


def _turn(tensor: Tensor, flip: bool) -> Tensor:
    return tensor.flip(-1) if flip else tensor


def _checked_size(image: Tensor, normalization: Normalization, size: tuple[int, int] | None) -> tuple[int, int]:
    channels = len(normalization.mean)
    if image.ndim != 4 or image.shape[1] != channels or not image.is_floating_point():
        raise InputError(
            f"engine: the image is {image.dtype} {tuple(image.shape)}, but normalised float (B, {channels}, H, W) "
            "is needed; see segkit.ops.normalize"
        )
    if image.numel() == 0:
        raise InputError(f"engine: the image has shape {tuple(image.shape)}; every side must be 1 or more")
    height, width = (image.shape[2], image.shape[3]) if size is None else size
    if height < 1 or width < 1:
        raise InputError(f"engine: the output size is {height} x {width}; both sides must be 1 or more")
    return int(height), int(width)
