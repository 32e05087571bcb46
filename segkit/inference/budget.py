"""The engine's own formula of memory, and what a budget leaves for one forward of the network.

Held during a call, in bytes, of B images of H x W with K classes:

    parameters + 18 B H W + 24 B (largest view that is no plain copy) + results
    + logits of all views, 4 K / stride^2 for each of their pixels, those of the largest twice

and besides, one after the other, one forward (`Footprint.per_pixel` for each pixel of its input) and the fusion, of
eight strips. The way of `upsample_argmax` takes the place of the strips where its `argmax_bytes` fit.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import nn

from segkit.errors import InputError
from segkit.inference.memory import Footprint, footprint, gave_up_filters
from segkit.inference.protocols import Protocol
from segkit.inference.windows import network_inputs
from segkit.machine import format_bytes
from segkit.ops.upsample_argmax import argmax_bytes

_IMAGE = 18  # bytes a pixel: its uint8 values twice, and float32
_RESIZED = 24  # bytes a pixel of a view: resized, and flipped
_STRIPS = 8  # tensors of `strip_bytes` at once
_SURELY = 10_000  # bytes a pixel: ten times what the networks of this package take
_RESULT = 6  # bytes a pixel: labels and confidence

LEAST_PIXELS = 64**2  # of one tile

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one call of the engine may do.

    Attributes:
        max_pixels: of several images or windows in one forward.
        strip_bytes: of the largest tensor of the fusion; None = the default.
        most_pixels: of one image in one forward; a larger one is seen in tiles. None = any.
        argmax_fits: whether whole images may take the way of `upsample_argmax`.
        memory: the budget, bytes; None = none.
    """

    max_pixels: int
    strip_bytes: int | None
    most_pixels: int | None = None
    argmax_fits: bool = True
    memory: int | None = None


def default_pixels(device: torch.device) -> int:
    """Pixels of one forward: one Cityscapes image, or nine windows of 480, fill a GPU; a CPU gains nothing by two."""
    return 2**19 if device.type == "cpu" else 2**21


def default_strip(device: torch.device) -> int:
    """Bytes of the largest tensor of a fusion: on CPUs what their caches hold."""
    return (16 if device.type == "cpu" else 256) * 2**20


def limited(
    asked: Limits,
    network: nn.Module,
    batch: torch.Size,
    protocol: Protocol,
    size: tuple[int, int],
    strip_bytes: int,
    all_classes: bool = False,
) -> Limits:
    """What a call may do so that it keeps its budget.

    A network that cannot be measured has no limits but the asked ones; the log says so. One that keeps transformed
    filters (`segkit.ops.winograd`) gives them up where an image does not fit beside them.

    Args:
        asked: without a budget it is returned as it is.
        network: see `footprint`.
        batch: (B, C, H, W) of the images.
        protocol: resolved.
        size: of the results.
        strip_bytes: of the fusion, where nothing else is asked.
        all_classes: whether the result has K floats a pixel.

    Raises:
        InputError: the budget is less than what is held, with the smallest fusion.
    """
    inputs = network_inputs(protocol, (batch[2], batch[3]))
    if asked.memory is None or (not all_classes and asked.memory > _surely_enough(network, batch, inputs, strip_bytes)):
        return asked
    try:
        measured = footprint(network, batch[1])
    except InputError as error:
        _log.warning("%s: the budget of %s is not kept", error, format_bytes(asked.memory))
        return replace(asked, memory=None)
    held = held_bytes(measured, batch, protocol, size, all_classes)
    room = asked.memory - held
    most_pixels = int(room / measured.per_pixel)
    sizes = [shape[0] * shape[1] for _, shape in inputs]
    too_large = f"an image of {batch[2]} x {batch[3]} does not fit into {format_bytes(asked.memory)}"
    if most_pixels < max(sizes) and gave_up_filters(network, too_large):
        return limited(asked, network, batch, protocol, size, strip_bytes, all_classes)
    least = min(sizes)
    if most_pixels < (least if protocol.window else 1):
        need = held + measured.per_pixel * (least if protocol.window else LEAST_PIXELS)
        raise InputError(
            f"memory: an image of {batch[2]} x {batch[3]} with the protocol {protocol.name!r} takes at least "
            f"{format_bytes(need)}, and {format_bytes(asked.memory)} are allowed: allow more, or give a smaller image"
        )
    return Limits(
        max_pixels=min(asked.max_pixels, most_pixels),
        strip_bytes=min(asked.strip_bytes or strip_bytes, max(1, room // _STRIPS)),
        most_pixels=most_pixels,
        argmax_fits=argmax_bytes(measured.num_classes, batch[0], size, asked.strip_bytes) <= room,
        memory=asked.memory,
    )


def _surely_enough(
    network: nn.Module, batch: torch.Size, inputs: list[tuple[int, tuple[int, int]]], strip_bytes: int
) -> int:
    """Bytes that are enough without a measurement, which loads PyTorch's compiler, and that takes seconds."""
    pixels = batch[0] * sum(count * shape[0] * shape[1] for count, shape in inputs)
    held = sum(tensor.nbytes for tensor in chain(network.parameters(), network.buffers()))
    return 2 * held + _SURELY * pixels + _STRIPS * strip_bytes


def held_bytes(
    measured: Footprint, batch: torch.Size, protocol: Protocol, size: tuple[int, int], all_classes: bool = False
) -> int:
    """Bytes that are there during the whole call; the arguments are those of `limited`."""
    image = (batch[2], batch[3])
    views = [protocol.scaled_size(scale, image) for scale in protocol.scales]
    resized = max((h * w for h, w in views if protocol.flip or (h, w) != image), default=0)
    logits = [count * shape[0] * shape[1] for count, shape in network_inputs(protocol, image)]
    result = 4 * measured.num_classes if all_classes else _RESULT
    one = (
        _IMAGE * image[0] * image[1]
        + _RESIZED * resized
        + result * size[0] * size[1]
        + measured.logits_per_pixel * (sum(logits) + max(logits))
    )
    return measured.parameters + int(batch[0] * one)
