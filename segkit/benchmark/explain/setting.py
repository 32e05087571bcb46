"""The settings that a score depends on, and the ways in which they differ between toolkits or go wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from segkit.benchmark.models.base import JudgedModel
from segkit.evaluation.conventions import CONVENTIONS, DEFAULT
from segkit.inference.protocols import Protocol
from segkit.ops.normalize import IMAGENET, Normalization

_NORMALIZATIONS = {
    "ImageNet's mean and std": IMAGENET,
    "mean and std 0.5": Normalization((0.5,) * 3, (0.5,) * 3),
    "0..1, no mean or std": Normalization((0.0,) * 3, (1.0,) * 3),
    "0..255, no mean or std": Normalization((0.0,) * 3, (1 / 255,) * 3),
}
# From the mistake that is made most easily to the difference that matters least.
KINDS = ("label table", "normalization", "channels", "align_corners", "masks", "flip", "scales", "input size", "window",
         "resize rule", "precision", "ignore rule", "metric")  # fmt: skip
_SIX = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclass(frozen=True)
class Setting:
    """All that a score depends on besides weights and images.

    Attributes:
        protocol: How the network sees an image; None: in the model's own way.
        normalization: In place of the model's own.
        reverse: Whether the network gets the channels in reverse order, BGR.
        optimized: Whether the network runs in its inference form, in place of exactly as trained.
        shift: Added to the model's class numbers.
        mask_scale: Masks, and labels with them, are resized by it (nearest neighbour) before they are compared.
        metric: A convention of `segkit.evaluation.conventions`.
    """

    protocol: Protocol | None = None
    normalization: Normalization | None = None
    reverse: bool = False
    optimized: bool = False
    shift: int = 0
    mask_scale: float = 1.0
    metric: str = DEFAULT

    @property
    def forward(self) -> tuple[Any, ...]:
        """What the labels depend on; the rest only counts them."""
        return self.protocol, self.normalization, self.reverse, self.optimized


@dataclass(frozen=True)
class Change:
    """One difference between two ways to measure.

    Attributes:
        what: Kind and new value, in words.
        fields: The fields of `Setting` that it sets.
    """

    what: str
    fields: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """What it changes: one of `KINDS`, with which `what` begins."""
        return self.what.split(":")[0]

    @property
    def only_counts(self) -> bool:
        """Whether the labels stay what they are."""
        return self(Setting()).forward == Setting().forward

    def __call__(self, setting: Setting) -> Setting:
        """The setting with this change."""
        return replace(setting, **self.fields)


def changes(model: JudgedModel, setting: Setting) -> Iterator[Change]:
    """Each way in which a score may have been measured otherwise."""
    if model.segmenter is not None and setting.protocol is not None:
        yield from _of_protocol(setting.protocol)
        if len(model.segmenter.normalization.mean) == 3 and model.segmenter.normalization.bands is None:
            own = setting.normalization or model.segmenter.normalization
            for name, other in _NORMALIZATIONS.items():
                if not np.allclose([*own.mean, *own.std], [*other.mean, *other.std]):
                    yield Change(f"normalization: {name}", {"normalization": other})
        if not setting.optimized:
            yield Change("precision: the inference form", {"optimized": True})
    yield Change(f"channels: {'RGB' if setting.reverse else 'BGR'}", {"reverse": not setting.reverse})
    for shift in (-1, 1):
        yield Change(f"label table: the model's numbers {shift:+d}", {"shift": setting.shift + shift})
    if setting.mask_scale == 1:
        yield Change("masks: resized to half", {"mask_scale": 0.5})
    for name in CONVENTIONS:
        if name != setting.metric:
            rule = "ignore rule" if name == "void-class" else "metric"
            yield Change(f"{rule}: {name}", {"metric": name})


def _of_protocol(protocol: Protocol) -> Iterator[Change]:
    set_to = partial(replace, protocol)
    align = not protocol.align_corners
    yield Change(f"align_corners: {align}", {"protocol": set_to(align_corners=align)})
    yield Change(f"flip: {not protocol.flip}", {"protocol": set_to(flip=not protocol.flip)})
    scales = (1.0,) if len(protocol.scales) > 1 else _SIX
    yield Change(f"scales: {', '.join(f'{s:g}' for s in scales)}", {"protocol": set_to(scales=scales)})
    if protocol.window is None:
        yield Change("window: 512 pixels", {"protocol": set_to(window=512, stride=None)})
    else:
        yield Change("window: none, the whole image", {"protocol": set_to(window=None, stride=None)})
    if protocol.resize_to == "image":
        yield Change("input size: short side 512", {"protocol": set_to(resize_to="short_side", base_size=512)})
        yield Change("input size: half", {"protocol": set_to(scales=tuple(s / 2 for s in protocol.scales))})
    else:
        for resample in ("tensor", "opencv", "pillow"):
            if resample != protocol.resample:
                yield Change(f"resize rule: {resample}", {"protocol": set_to(resample=resample)})
        yield Change(
            "input size: the image's own",
            {"protocol": set_to(resize_to="image", base_size=None, long_limit=None)},
        )
