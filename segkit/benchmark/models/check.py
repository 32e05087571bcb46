"""Whether a model's preprocessing may be wrong: its input looked at, and other ones tried on a few labelled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkit.benchmark.models.base import JudgedModel
from segkit.data.dataset import Item
from segkit.errors import InputError
from segkit.evaluation.confusion import confusion_counts
from segkit.evaluation.conventions import convention_scores
from segkit.text import percent

IMAGES = 3  # that the other ones are tried on
BETTER = 0.02  # of mIoU, by which another one must win to be named

_ABSURD = 30.0  # standard deviations from the mean: 8-bit values, 0..255, lie there where those of 0..1 are expected
_FLAT = 0.02  # deviation of the input of an image that is not flat


def spread(count: int) -> list[int]:
    """Indices of the images to look at, evenly among the first `count`."""
    return sorted({i * count // IMAGES for i in range(IMAGES)})


def suspicion(prepared: Any, image: np.ndarray) -> str | None:
    """What the input of a network looks like, where it is no normalised image.

    Args:
        prepared: What a model made of an image; judged if it is an array or tensor of floating point numbers.
        image: The image, uint8.
    """
    values = prepared.cpu().numpy() if isinstance(prepared, Tensor) else prepared
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or not values.size:
        return None
    if not np.isfinite(values).all():
        return "the network's input is NaN or infinite"
    if np.abs(values).max() > _ABSURD:
        return (
            f"the network's input is {values.min():.4g}..{values.max():.4g}: looks like 0..255 where 0..1 is expected"
        )
    if image.std() > 8 and values.std() < _FLAT:
        return f"the network's input is {values.min():.4g}..{values.max():.4g}: looks like divided by 255 twice"
    return None


def try_others(
    model: JudgedModel, items: Sequence[Item], num_classes: int, to_data: Callable[[JudgedModel, Item], Tensor]
) -> dict[str, float]:
    """mIoU of a model on some images as it is, and with each other preprocessing it may need; {} where it has none.

    Args:
        model: The model.
        items: Labelled images.
        num_classes: Of the data.
        to_data: Gives the data's train ids (1, H, W) for an item by a model.
    """
    others = model.variants()
    found = {}
    for name, one in ({AS_IT_IS: model} | dict(others)).items() if others else ():
        try:
            labels = [to_data(one, item).cpu() for item in items]
        except InputError:  # another model than asked for may refuse what it is given
            if one is model:
                raise
            continue
        pairs = zip(items, labels, strict=True)
        counts = [confusion_counts(torch.as_tensor(item["mask"])[None], ids, num_classes) for item, ids in pairs]
        miou = convention_scores(reduce(add, counts)).miou
        found[name] = 0.0 if np.isnan(miou) else float(miou)
    return found


def better(tried: dict[str, float], images: int) -> str | None:
    """The sentence about another preprocessing that is clearly better; None where none is."""
    best = max(tried, key=lambda name: tried[name], default=AS_IT_IS)
    if best == AS_IT_IS or tried[best] < tried[AS_IT_IS] + BETTER:
        return None
    return (
        f"looks like {best}: on {images} images {percent(tried[best])} mIoU so, and {percent(tried[AS_IT_IS])} "
        f"{AS_IT_IS}, which is what is scored"
    )


AS_IT_IS = "as it is"
