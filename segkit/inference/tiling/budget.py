"""The engine's formula for its memory, and the part of a budget that it leaves for one forward of the network.

Held during a call, in bytes, of B images of H x W with K classes:

    parameters + 18 B H W + 24 B (largest view that is no plain copy) + results
    + logits of all views, 4 K / stride^2 for each of their pixels, those of the largest twice

and, one after the other, one forward (`Footprint.per_pixel` for each pixel of its input) and the fusion of eight
strips. `upsample_argmax` takes the place of the strips if its `argmax_bytes` fit.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import nn

from segkit.errors import InputError
from segkit.inference.engine import Limits, Task, default_pixels, default_strip
from segkit.inference.tiling.footprint import Footprint, footprint
from segkit.inference.tiling.tiles import TiledNetwork
from segkit.inference.views import network_inputs, view_size
from segkit.machine import SHARE, format_bytes, free_memory
from segkit.ops.processor import free_bytes
from segkit.ops.upsample_argmax import argmax_bytes
from segkit.ops.winograd import gave_up_filters

_IMAGE = 18  # bytes a pixel of RGB: its uint8 values twice, and float32; of other bands three times float32
_RESIZED = 8  # bytes a value of a view: resized, and flipped
_STRIPS = 8  # tensors of `strip_bytes` at once
_SURELY = 10_000  # bytes a pixel: ten times those that the networks of this package take
_RESULT = 6  # bytes a pixel: labels and confidence

LEAST_PIXELS = 64**2  # pixels of one tile

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Budget(Limits):
    """Limits that keep a call within a number of bytes, including its arguments.

    Fewer windows share a forward, strips are smaller, and an image that does not fit is processed in tiles, which is
    logged. If the image fits, nothing changes. A network that cannot be measured runs without a budget, which is also
    logged; one with transformed filters (`segkit.ops.winograd`) drops them if an image does not fit beside them.

    Attributes:
        memory: The number of bytes.
    """

    memory: int

    def applied(self, network: nn.Module, task: Task) -> tuple[nn.Module, Limits]:
        """The network, in tiles if necessary, and the limits that keep the budget.

        Raises:
            InputError: The budget is less than what is held with the smallest fusion.
        """
        if self._is_surely_enough(network, task):
            return network, self
        try:
            measured = footprint(network, task.batch[1])
        except InputError as error:
            _log.warning("%s: the budget of %s is not kept", error, format_bytes(self.memory))
            return network, self
        held = held_bytes(measured, task)
        room = self.memory - held
        most_pixels = int(room / measured.per_pixel)
        sizes = [height * width for _, (height, width) in network_inputs(task.protocol, _image_size(task))]
        image = f"an image of {task.batch[2]} x {task.batch[3]}"
        too_large = f"{image} does not fit into {format_bytes(self.memory)}"
        if most_pixels < max(sizes) and gave_up_filters(network, too_large):
            return self.applied(network, task)
        least = min(sizes) if task.protocol.window else 1
        if most_pixels < least:
            need = held + measured.per_pixel * (least if task.protocol.window else LEAST_PIXELS)
            raise InputError(
                f"memory: {image} with the protocol {task.protocol.name!r} takes at least {format_bytes(need)}, but "
                f"{format_bytes(self.memory)} are allowed: allow more, or give a smaller image"
            )
        if most_pixels < max(sizes) and task.protocol.window is None:
            network = TiledNetwork(network, most_pixels, self.memory)
        return network, self._within(room, most_pixels, measured.num_classes, task)

    def _within(self, room: int, most_pixels: int, num_classes: int, task: Task) -> Limits:
        argmax_fits = argmax_bytes(num_classes, task.batch[0], task.size, self.strip_bytes) <= room
        return replace(
            self,
            max_pixels=min(self.max_pixels or default_pixels(task.device), most_pixels),
            strip_bytes=min(self.strip_bytes or default_strip(task.device), max(1, room // _STRIPS)),
            always_strips=self.always_strips or not argmax_fits,
        )

    def _is_surely_enough(self, network: nn.Module, task: Task) -> bool:
        """Whether the budget clearly suffices, without a measurement, which takes seconds to load the compiler."""
        num_classes = getattr(network, "num_classes", None) if task.all_classes else 0
        if num_classes is None:
            return False
        inputs = network_inputs(task.protocol, _image_size(task))
        pixels = task.batch[0] * sum(count * height * width for count, (height, width) in inputs)
        held = sum(tensor.nbytes for tensor in chain(network.parameters(), network.buffers()))
        strip_bytes = self.strip_bytes or default_strip(task.device)
        result = task.batch[0] * 4 * int(num_classes) * task.size[0] * task.size[1]
        return self.memory > 2 * held + _SURELY * pixels + _STRIPS * strip_bytes + result


def default_budget(device: torch.device) -> int:
    """`SHARE` of the bytes free now on the device or on the machine that reads its images, whichever is less."""
    return int(SHARE * min(free_bytes(device), free_memory()))


def held_bytes(measured: Footprint, task: Task) -> int:
    """Bytes that are held during the whole call."""
    image, channels = _image_size(task), task.batch[1]
    views = [view_size(task.protocol, scale, image) for scale in task.protocol.scales]
    resized = max((h * w for h, w in views if task.protocol.flip or (h, w) != image), default=0)
    logits = [count * height * width for count, (height, width) in network_inputs(task.protocol, image)]
    result = 4 * measured.num_classes if task.all_classes else _RESULT
    one = (
        (_IMAGE if channels == 3 else 12 * channels) * image[0] * image[1]
        + _RESIZED * channels * resized
        + result * task.size[0] * task.size[1]
        + measured.logits_per_pixel * (sum(logits) + max(logits))
    )
    return measured.parameters + int(task.batch[0] * one)


def _image_size(task: Task) -> tuple[int, int]:
    return task.batch[2], task.batch[3]
