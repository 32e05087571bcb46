"""The engine: a network and a normalised image in, labels or scores out, by any protocol.

Windows and flips of one scale share forwards; their logits are kept at the network's stride, never at full size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.inference.budget import Limits, default_pixels, default_strip, limited
from segkit.inference.fusion import StripFusion, View, best_of
from segkit.inference.protocols import Protocol
from segkit.inference.resample import ImageResizer
from segkit.inference.tiles import plan_tiles, tell, tiled_logits
from segkit.inference.windows import Window, cut, network_inputs, window_grid
from segkit.models.norms import eval_mode
from segkit.ops.normalize import IMAGENET, Normalization, by_channel
from segkit.ops.upsample import label_dtype
from segkit.ops.upsample_argmax import upsample_argmax, upsample_argmax_confidence


def predict(
    network: nn.Module,
    image: Tensor,
    protocol: Protocol,
    size: tuple[int, int] | None = None,
    normalization: Normalization = IMAGENET,
    max_pixels: int | None = None,
    strip_bytes: int | None = None,
    memory: int | None = None,
) -> Tensor:
    """Label each pixel of a batch of images of one size.

    Memory: the network's parameters; at its largest forward, `footprint(network).per_pixel` bytes for each pixel of
    the input (684 for a ResNeSt-50 DeepLabV3: 8 GB for 12 megapixels); the logits of all views at the network's
    stride s, that is 4 B K H W sum(scale^2) / s^2 bytes, more by the overlap of windows, twice that with flip; some
    tensors of at most `strip_bytes` each (see `StripFusion` for the least possible); and the labels. Nothing of
    K H W floats is made. One window in one view, as in the protocol `whole`, takes a shorter way: `upsample_argmax`,
    which has its own bound. All but the parameters grows linearly with the pixels.

    With `memory` this sum is kept below it (`segkit.inference.budget` has the terms): fewer windows share a forward,
    a view that does not fit is seen in tiles (`segkit.inference.tiles`), which the log says, and strips are smaller.

    Args:
        network: maps normalised float (b, 3, h, w) to {"out": (b, K, ., .)}, for any h and w, on the image's device.
            It runs in eval mode, and each module gets its own mode back.
        image: normalised float (B, 3, H, W).
        protocol: scales, flip, windows and fusion.
        size: height and width of the labels; None = those of `image`.
        normalization: how `image` was normalised; says what black is.
        max_pixels: of one forward; a single window may exceed it. None = two windows of 480 on the CPU, which gains
            nothing from more, nine elsewhere. Changes speed and memory, not results.
        strip_bytes: of the largest float tensor made here; None = 16 MiB on the CPU (its caches), 256 MiB elsewhere.
        memory: bytes that the call may take, its arguments included; None = any. Where the image fits, it changes
            nothing.

    Returns:
        uint8 (B, H, W), int16 above 256 classes.

    Raises:
        InputError: `image` is not a float (B, 3, H, W), `size` is empty, or `memory` is too little for any tiles.
    """
    size = _checked_size(image, normalization, size)
    protocol = resolve(protocol, network)
    asked = Limits(max_pixels or default_pixels(image.device), strip_bytes, memory=memory)
    limits = limited(asked, network, image.shape, protocol, size, default_strip(image.device))
    views = _network_views(network, image, protocol, normalization, limits)
    batch, num_classes = views[0].logits[0].shape[:2]
    # Made outside inference mode, so that the caller may write to them.
    labels = torch.empty(batch, *size, dtype=label_dtype(num_classes), device=image.device)
    with torch.inference_mode():
        if limits.argmax_fits and _is_plain(views, size, protocol):
            whole = upsample_argmax(*_plain(views, size, protocol), strip_bytes)
            return labels.copy_(whole[:, : size[0], : size[1]])
        for start, stop, strip in _fusion(views, size, protocol, limits.strip_bytes):
            labels[:, start:stop] = strip.max(dim=1).indices  # (B, K, n, W) -> (B, n, W); on CPUs faster than argmax
    return labels


def predict_with_confidence(
    network: nn.Module,
    image: Tensor,
    protocol: Protocol,
    size: tuple[int, int] | None = None,
    normalization: Normalization = IMAGENET,
    max_pixels: int | None = None,
    strip_bytes: int | None = None,
    memory: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The labels of `predict` and how sure the fused views are of each; memory, arguments and errors are its own.

    Returns:
        uint8 (B, H, W), int16 above 256 classes; and float32 (B, H, W) in 0..1, the largest fused probability: of
        softmax_mean as it is, of logit_mean after a softmax of the mean logits, of exp_sum its share of the sum.
    """
    size = _checked_size(image, normalization, size)
    protocol = resolve(protocol, network)
    asked = Limits(max_pixels or default_pixels(image.device), strip_bytes, memory=memory)
    limits = limited(asked, network, image.shape, protocol, size, default_strip(image.device))
    views = _network_views(network, image, protocol, normalization, limits)
    batch, num_classes = views[0].logits[0].shape[:2]
    labels = torch.empty(batch, *size, dtype=label_dtype(num_classes), device=image.device)
    confidence = torch.empty(batch, *size, device=image.device)
    with torch.inference_mode():
        if limits.argmax_fits and _is_plain(views, size, protocol):
            logits, seen, align = _plain(views, size, protocol)
            if protocol.flip and protocol.fusion == "logit_mean":
                logits = logits / 2  # both are in it; exact, and the labels stay as they are
            whole = upsample_argmax_confidence(logits, seen, align, strip_bytes)
            for result, part in zip((labels, confidence), whole, strict=True):
                result.copy_(part[:, : size[0], : size[1]])
            return labels, confidence
        for start, stop, strip in _fusion(views, size, protocol, limits.strip_bytes):
            labels[:, start:stop], confidence[:, start:stop] = best_of(strip, protocol.fusion)
    return labels, confidence


def scores(
    network: nn.Module,
    image: Tensor,
    protocol: Protocol,
    size: tuple[int, int] | None = None,
    normalization: Normalization = IMAGENET,
    max_pixels: int | None = None,
    strip_bytes: int | None = None,
    memory: int | None = None,
) -> Tensor:
    """The fused scores whose argmax `predict` gives: probabilities, mean logits, or sums of exp, by the protocol.

    Arguments and errors are those of `predict`; this result has all classes at full size.

    Returns:
        float32 (B, K, H, W). For exp_sum they are defined up to one factor per image (see `StripFusion`).
    """
    size = _checked_size(image, normalization, size)
    protocol = resolve(protocol, network)
    asked = Limits(max_pixels or default_pixels(image.device), strip_bytes, memory=memory)
    limits = limited(asked, network, image.shape, protocol, size, default_strip(image.device), all_classes=True)
    views = _network_views(network, image, protocol, normalization, limits)
    batch, num_classes = views[0].logits[0].shape[:2]
    result = torch.empty(batch, num_classes, *size, device=image.device)
    with torch.inference_mode():
        for start, stop, strip in _fusion(views, size, protocol, limits.strip_bytes):
            result[:, :, start:stop] = strip
    return result


def forwards(protocol: Protocol, size: tuple[int, int]) -> int:
    """How many images the network sees for one image of `size` (height, width): windows x flips, all scales."""
    return sum(count for count, _ in network_inputs(protocol, size))


def resolve(protocol: Protocol, network: nn.Module) -> Protocol:
    """The protocol that really runs with this network, without any None that has a meaning: log and store this one."""
    return protocol.resolved(align_corners=bool(getattr(network, "align_corners", True)))


@torch.inference_mode()
def _network_views(
    network: nn.Module, image: Tensor, protocol: Protocol, normalization: Normalization, limits: Limits
) -> list[View]:
    """Run the network on every scale, window and flip of a resolved protocol.

    Returns:
        One view per scale, or for softmax_mean with flip two (the flipped one turned back). Elsewhere the flipped
        logits are already added to the others, at the network's stride: upsampling is linear and symmetric.
    """
    views = []
    black = by_channel(normalization.black, image.device).to(image.dtype)
    flips = (False, True) if protocol.flip else (False,)
    resize = ImageResizer(image, protocol.resample, bool(protocol.align_corners), normalization)
    with eval_mode(network):
        for scale in protocol.scales:
            size = protocol.scaled_size(scale, (image.shape[2], image.shape[3]))
            grid = window_grid(protocol, size)
            seen = [(window, flip) for flip in flips for window in grid.windows]
            most = limits.most_pixels
            if protocol.window is None and most is not None and size[0] * size[1] > most:
                logits = _forward_in_tiles(network, resize(size), flips, limits)
            else:
                logits = _forward(network, resize(size), grid.shape, seen, black, limits.max_pixels)
            half = len(grid.windows)
            if protocol.flip and protocol.fusion != "softmax_mean":
                logits = [a.float() + b.float() for a, b in zip(logits[:half], logits[half:], strict=True)]
            views += [View(grid, logits[i : i + half]) for i in range(0, len(logits), half)]
    return views


def _forward(
    network: nn.Module,
    image: Tensor,
    shape: tuple[int, int],
    seen: list[tuple[Window, bool]],
    black: Tensor,
    max_pixels: int,
) -> list[Tensor]:
    """Logits (B, K, h, w) of each (window, flip), turned back; as many in one forward as `max_pixels` allows."""
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


def _forward_in_tiles(network: nn.Module, image: Tensor, flips: tuple[bool, ...], limits: Limits) -> list[Tensor]:
    """Logits (B, K, h, w) of the whole of each image, flipped and turned back or not, seen tile by tile."""
    size = (image.shape[2], image.shape[3])
    tiles = plan_tiles(network, size, limits.most_pixels or 0, image.shape[1])
    tell(tiles, size, limits.memory or 0)
    return [_turn(tiled_logits(network, _turn(image, flip), tiles), flip) for flip in flips]


def _turn(tensor: Tensor, flip: bool) -> Tensor:
    return tensor.flip(-1) if flip else tensor


def _fusion(views: list[View], size: tuple[int, int], protocol: Protocol, strip_bytes: int | None) -> StripFusion:
    count = len(protocol.scales) * (2 if protocol.flip else 1)
    return StripFusion(views, size, protocol, count, strip_bytes or default_strip(views[0].logits[0].device))


def _is_plain(views: list[View], size: tuple[int, int], protocol: Protocol) -> bool:
    """One window, no resize after it: exp and softmax keep the order of the classes, so logits are enough."""
    one = len(views) == 1 and len(views[0].logits) == 1
    return one and (protocol.upsample_to == "output" or views[0].grid.image == size)


def _plain(views: list[View], size: tuple[int, int], protocol: Protocol) -> tuple[Tensor, tuple[int, int], bool]:
    """The logits of the one window, the size that they are upsampled to, and align_corners."""
    seen = size if protocol.upsample_to == "output" else views[0].grid.shape
    return views[0].logits[0], seen, bool(protocol.align_corners)


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
