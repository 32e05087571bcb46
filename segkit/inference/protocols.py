"""Test protocols: what is done with a picture at test time, as data, and the named ones.

A score is a property of (weights, split, protocol). The four toolkits of the field fuse their views in four ways;
here the way is a field, so that each one's number can be reproduced by naming it. Sources: PyTorch-Encoding
(encoding/models/sseg/base.py) for `encoding-ms`; mmsegmentation (models/segmentors/encoder_decoder.py, seg_tta.py)
for `window`, `ms-flip` and the rule shift_back.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from segkit.errors import InputError

Fusion = Literal["exp_sum", "softmax_mean", "logit_mean"]
ResizeTo = Literal["picture", "long_side", "short_side"]
WindowRule = Literal["truncate", "shift_back"]


@dataclass(frozen=True)
class Protocol:
    """What happens to one picture, exactly. A view is the picture at one scale, flipped or not.

    For each view:

    1. The normalised picture is resized (bilinear, no antialias) to the view's size. `resize_to="picture"`:
       each side is int(side * scale + 0.5). `"long_side"` and `"short_side"`: that side is
       ceil(base_size * scale) and the other int(other * new / old + 0.5). Nothing is done where the size is the same.
    2. The network sees all of it, or square windows of side `window`, every `stride` pixels,
       ceil((size - window) / stride) + 1 of them along each side. Rule `"truncate"` (the authors'): the last window
       stays on the grid, is cut at the border and filled with black to the window's size, and a side shorter than
       the window is filled with black, right or bottom. Rule `"shift_back"` (mmseg's): the last window is moved
       back inside, and a side shorter than the window gives a window of that shorter side.
    3. Logits are upsampled to the window's size, filled parts are cut off, and windows are averaged pixel by pixel:
       as raw logits (`"softmax_mean"`, `"logit_mean"`), or as exp(logits + logits of the flipped window)
       (`"exp_sum"`; without `flip`, exp(logits)).
    4. The average is resized to the output size, and then turned into softmax for `"softmax_mean"` only.

    Views are averaged over scales and flips (`"softmax_mean"`, `"logit_mean"`: a flip is a view like any other) or
    summed over scales (`"exp_sum"`, where the flip is already inside). The label is the argmax, the lowest of equals.

    Attributes:
        name: for logs and result files.
        scales: factors on the picture's sides or on `base_size`.
        flip: also look at each view mirrored left to right.
        fusion: how views become one score.
        resize_to: what the scales multiply.
        base_size: pixels of that side at scale 1; for long_side and short_side only.
        window: side in pixels of the square the network sees; None = the whole picture.
        stride: pixels from one window to the next; None = int(window * 2 / 3).
        window_rule: what happens at the right and bottom border.
        align_corners: of every resize; None = as the network was trained (its attribute `align_corners`).

    Raises:
        InputError: a value that is not allowed, or fields that contradict each other.
    """

    name: str
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fusion: Fusion = "softmax_mean"
    resize_to: ResizeTo = "picture"
    base_size: int | None = None
    window: int | None = None
    stride: int | None = None
    window_rule: WindowRule = "shift_back"
    align_corners: bool | None = None

    def __post_init__(self) -> None:
        """Turn a list of scales (as read from a file) into a tuple of floats and check every field."""
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        self._check_scales()
        self._check_windows()
        for field, kind in (("fusion", Fusion), ("resize_to", ResizeTo), ("window_rule", WindowRule)):
            if getattr(self, field) not in get_args(kind):
                self._fail(f"{field} is {getattr(self, field)!r}; use one of {', '.join(get_args(kind))}")

    def scaled_size(self, scale: float, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a picture of `size` (height, width) at one scale, each at least 1 pixel."""
        height, width = size
        if self.base_size is None:
            return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
        side = math.ceil(self.base_size * scale)
        height_is_side = height > width if self.resize_to == "long_side" else height <= width
        old, other = (height, width) if height_is_side else (width, height)
        # Halves go up, as the authors round; Python's round() would send them to the even number.
        other = max(1, int(1.0 * other * side / old + 0.5))
        return (side, other) if height_is_side else (other, side)

    def resolved(self, align_corners: bool) -> Protocol:
        """The protocol that really runs, every None with a meaning filled in; for logs and result files.

        Args:
            align_corners: the network's, which holds where this protocol has none of its own.
        """
        stride = self.stride
        if self.window is not None and stride is None:
            stride = int(self.window * 2 / 3)
        keep = align_corners if self.align_corners is None else self.align_corners
        return replace(self, stride=stride, align_corners=keep)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a result file; `Protocol(**values)` reads it back."""
        return asdict(self) | {"scales": list(self.scales)}

    def _check_scales(self) -> None:
        if not self.name:
            self._fail("name is empty; give it one for logs and result files")
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            self._fail(f"scales are {list(self.scales)}; give at least one number greater than 0")
        if self.resize_to == "picture" and self.base_size is not None:
            self._fail("base_size goes with resize_to long_side or short_side; leave one of the two out")
        if self.resize_to != "picture" and (self.base_size is None or self.base_size < 1):
            self._fail(f"base_size is {self.base_size}; {self.resize_to} needs that side in pixels, 1 or more")

    def _check_windows(self) -> None:
        if self.window is None:
            if self.stride is not None:
                self._fail(f"stride is {self.stride} without a window; set window or leave stride out")
            return
        if self.window < 2:
            self._fail(f"window is {self.window}; give a side of 2 pixels or more, or None for the whole picture")
        if self.stride is not None and not 1 <= self.stride <= self.window:
            self._fail(f"stride is {self.stride}; windows of {self.window} pixels need 1 to {self.window}")

    def _fail(self, message: str) -> None:
        raise InputError(f"protocol {self.name!r}: {message}")


_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

_ENCODING = Protocol(
    name="encoding-ms",
    scales=_SCALES,
    flip=True,
    fusion="exp_sum",
    resize_to="long_side",
    base_size=520,
    window=480,
    window_rule="truncate",
    align_corners=True,
)

NAMED: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(name="whole"),
        Protocol(name="ms-flip", scales=_SCALES, flip=True),
        Protocol(name="window", window=512),
        _ENCODING,
        replace(
            _ENCODING,
            name="encoding-ms-cityscapes",
            scales=(0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25),
            base_size=2048,
            window=768,
        ),
    )
}


def get(name: str) -> Protocol:
    """The protocol of that name (whole, ms-flip, window, encoding-ms, encoding-ms-cityscapes), or in that YAML file.

    Raises:
        InputError: no protocol has that name (the message lists those that exist), or the file is no protocol.
    """
    if name in NAMED:
        return NAMED[name]
    if name.endswith((".yaml", ".yml")):
        return read(Path(name))
    raise InputError(f"protocol: {name!r} is not known; use one of {', '.join(NAMED)}, or a .yaml file of your own")


def read(path: Path) -> Protocol:
    """A protocol of one's own: a YAML file with the fields of `Protocol`; its name is the file's unless it has one.

    Raises:
        InputError: the file is absent, not YAML, or has other fields.
    """
    if not path.is_file():
        raise InputError(f"protocol: {path}: no such file; the named ones are {', '.join(NAMED)}")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Protocol(**({"name": path.stem} | fields))
    except (yaml.YAMLError, TypeError, UnicodeDecodeError) as error:
        allowed = ", ".join(field.name for field in dataclass_fields(Protocol))
        raise InputError(f"protocol: {path}: not a protocol; its fields are {allowed}") from error
