"""The cost of a row's network, and the row of a recipe without weights, which has nothing but a cost."""

from typing import Any

import numpy as np
import torch
from torch import nn

from segkit.bars import Bar
from segkit.benchmark.cost import PeakMemory, Stopwatch, flops, flops_of, parameters, recorded_forwards
from segkit.benchmark.models.segkit_file import SegkitModel
from segkit.benchmark.plan import PlannedRow
from segkit.benchmark.progress import Settings, num_classes
from segkit.inference.protocols import Protocol
from segkit.inference.segmenter import Segmenter
from segkit.ops.normalize import IMAGENET

COST_SECONDS = 3.0  # of timing, for a network without data; one image at least


def cost_only(row: PlannedRow, settings: Settings) -> dict[str, Any]:
    """The row of a recipe's network with random weights on a random image: its cost without a score.

    Raises:
        InputError: The network cannot be built.
    """
    assert row.experiment is not None and isinstance(row.protocol, Protocol)
    image = np.random.default_rng(0).integers(0, 256, (*settings.size, 3), np.uint8)
    watch = Stopwatch(settings.device)
    with PeakMemory(settings.device) as memory:
        network = row.experiment.build(num_classes(row))
        segmenter = Segmenter(network, None, IMAGENET, row.protocol, torch.device(settings.device))
        model = SegkitModel(row.name, segmenter)
        prepared = model.prepare(image, "")
        with recorded_forwards(network) as forwards, watch.image():
            model.label(prepared, settings.size)
        with Bar(unit="image", desc=f"{row.short_title} (random weights)") as bar:
            while watch.seconds < COST_SECONDS and watch.images < 20:
                with watch.image():
                    model.label(prepared, settings.size)
                bar.update()
    return {
        "data": None,
        **network_cost(network, settings, dict(forwards)),
        "protocol fields": segmenter.protocol.to_dict(),
        "images": None,
        "partial": False,
        "images/s": rate(watch.images, watch.seconds),
        "peak MB": None if memory.bytes is None else memory.bytes / 1e6,
    }


def network_cost(
    network: nn.Module | None, settings: Settings, forwards: dict[tuple[int, int], int]
) -> dict[str, float | None]:
    """Parameters in millions, GFLOPs of one image of the stated size, and of the protocol; None where unknown.

    Args:
        network: The network; None where a model shows none.
        settings: What all rows share.
        forwards: What it saw of the first image, as of `recorded_forwards`.
    """
    if network is None:
        return {"M params": None, "GFLOPs": None, "GFLOPs/image": None}
    try:
        one: float | None = flops(network, settings.size) / 1e9
        all_views: float | None = flops_of(network, forwards) / 1e9
    except (RuntimeError, NotImplementedError):  # a network whose path depends on values, which shapes alone lack
        one = all_views = None
    return {"M params": parameters(network) / 1e6, "GFLOPs": one, "GFLOPs/image": all_views}


def rate(images: int, seconds: float) -> float | None:
    """Images per second; None before the first timed image."""
    return images / seconds if images and seconds else None
