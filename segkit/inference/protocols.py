"""Test protocols: plain data that says what is done with an image at test time, and the named protocols.

A score is a property of (weights, split, protocol). The field's toolkits differ in the sizes of their views, in how
they resize the image, and in how they fuse views; here each of these is a field, so that the numbers of each toolkit
can be reproduced by naming its protocol. `NAMED` is the table, with the source of each row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import Any, Literal, get_args

from segkit.errors import InputError, did_you_mean
from segkit.plain_data import read_yaml
from segkit.recipes import find_recipe, is_recipe

Fusion = Literal["exp_sum", "softmax_mean", "logit_mean"]
ResizeTo = Literal["image", "long_side", "short_side", "mmcv_image", "mmcv_limits", "csail"]
Resample = Literal["tensor", "opencv", "pillow"]
WindowRule = Literal["truncate", "shift_back"]
UpsampleTo = Literal["view", "output"]


@dataclass(frozen=True)
class Protocol:
    """What happens to one image, exactly. A view is the image at one scale, flipped or not.

    For each view:

    1. The image is resized to the view's size, by the rule `resize_to` (`segkit.inference.views` says how each
       rounds) and the library `resample`. Nothing is done where the size is the same.
    2. The network sees all of it, or square windows of side `window`, every `stride` pixels,
       ceil((size - window) / stride) + 1 of them along each side. Rule `"truncate"` (the authors'): the last window
       stays on the grid, is cut at the border and filled with black to the window's size, and a side shorter than
       the window is filled with black, right or bottom. Rule `"shift_back"` (mmseg's): the last window is moved
       back inside, and a side shorter than the window gives a window of that shorter side.
    3. Logits are upsampled to the window's size, filled parts are cut off, and windows are averaged pixel by pixel:
       as raw logits (`"softmax_mean"`, `"logit_mean"`), or as exp(logits + logits of the flipped window)
       (`"exp_sum"`; without `flip`, exp(logits)).
    4. The average is resized to the output size, and then turned into softmax for `"softmax_mean"` only.
       With `upsample_to="output"` steps 3 and 4 are one resize, from the network's stride to the output size.

    Views are averaged over scales and flips (`"softmax_mean"`, `"logit_mean"`: a flip is a view like any other) or
    summed over scales (`"exp_sum"`, where the flip is already inside). The label is the argmax, the lowest of equals.

    Attributes:
        name: The name in logs and result files.
        scales: Factors on the size that `resize_to` names.
        flip: Whether each view is also seen mirrored left to right.
        fusion: How views become one score.
        resize_to: What the scales multiply. `"image"` and `"mmcv_image"`: its sides. `"long_side"`,
            `"short_side"` and `"csail"` (its short side, in multiples of 8): `base_size`. `"mmcv_limits"`: both
            `long_limit` and `base_size`, between which the image is fitted.
        base_size: Pixels of that side at scale 1; not for image and mmcv_image.
        window: Side in pixels of the square the network sees; None means the whole image.
        stride: Pixels from one window to the next; None means int(window * 2 / 3).
        window_rule: What happens at the right and bottom border.
        align_corners: How every resize except OpenCV's and Pillow's is aligned; None means as the network was trained
            (its attribute `align_corners`).
        long_limit: Largest long side in pixels, only for mmcv_limits (times the scale) and csail (unscaled).
        resample: The library that resizes the image; see `segkit.inference.views.ImageResizer`.
        upsample_to: The size to which the network's logits are upsampled first.

    Raises:
        InputError: A value is not allowed, or fields contradict each other.
    """

    name: str
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fusion: Fusion = "softmax_mean"
    resize_to: ResizeTo = "image"
    base_size: int | None = None
    window: int | None = None
    stride: int | None = None
    window_rule: WindowRule = "shift_back"
    align_corners: bool | None = None
    long_limit: int | None = None
    resample: Resample = "tensor"
    upsample_to: UpsampleTo = "view"

    def __post_init__(self) -> None:
        """Turn a list of scales (as read from a file) into a tuple of floats and check every field."""
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        for field, kind in _CHOICES.items():
            if getattr(self, field) not in get_args(kind):
                self._fail(f"{field} is {getattr(self, field)!r}; use one of {', '.join(get_args(kind))}")
        self._check_scales()
        self._check_base()
        self._check_windows()

    def resolved(self, align_corners: bool) -> Protocol:
        """The protocol that really runs, with every None replaced, for logs and result files.

        Args:
            align_corners: The network's setting, used if this protocol has none.
        """
        stride = self.stride
        if self.window is not None and stride is None:
            stride = int(self.window * 2 / 3)
        keep = align_corners if self.align_corners is None else self.align_corners
        return replace(self, stride=stride, align_corners=keep)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a result file; `Protocol(**values)` reads it back."""
        return asdict(self) | {"scales": list(self.scales)}

    def _check_scales(self) -> None:
        if not self.name or not isinstance(self.name, str):
            self._fail("name is no text; give it one for logs and result files")
        if not isinstance(self.flip, bool):
            self._fail(f"flip is {self.flip!r}; allowed are true and false")
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            self._fail(f"scales are {list(self.scales)}; give at least one number greater than 0")

    def _check_base(self) -> None:
        rule, base, limit = self.resize_to, self.base_size, self.long_limit
        if rule in ("image", "mmcv_image"):
            if base is not None:
                self._fail(f"base_size does not go with resize_to {rule}, whose scales multiply the image's own sides")
        elif base is None or base < 1:
            self._fail(f"base_size is {base}; {rule} needs that side in pixels, 1 or more")
        if rule in ("mmcv_limits", "csail"):
            if limit is None or limit < (base or 0):
                self._fail(f"long_limit is {limit}; {rule} needs the largest long side in pixels, at least {base}")
        elif limit is not None:
            self._fail(f"long_limit goes with resize_to mmcv_limits or csail only, not with {rule}; leave it out")

    def _check_windows(self) -> None:
        if self.window is None:
            if self.stride is not None:
                self._fail(f"stride is {self.stride} without a window; set window or leave stride out")
            return
        if self.window < 2:
            self._fail(f"window is {self.window}; give a side of 2 pixels or more, or None for the whole image")
        if self.stride is not None and not 1 <= self.stride <= self.window:
            self._fail(f"stride is {self.stride}; windows of {self.window} pixels need 1 to {self.window}")
        if self.upsample_to == "output":
            self._fail("upsample_to output goes with whole images only; leave window out, or upsample_to")

    def _fail(self, message: str) -> None:
        raise InputError(f"protocol {self.name!r}: {message}")


_CHOICES = {"fusion": Fusion, "resize_to": ResizeTo, "window_rule": WindowRule}
_CHOICES |= {"resample": Resample, "upsample_to": UpsampleTo}

_SIX = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
_SEVEN = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25)

# PyTorch-Encoding, encoding/models/sseg/base.py `MultiEvalModule`: base_size and crop_size are 520 and 480 by default.
_ENCODING = Protocol(
    name="encoding-ms",
    scales=_SIX,
    flip=True,
    fusion="exp_sum",
    resize_to="long_side",
    base_size=520,
    window=480,
    window_rule="truncate",
    align_corners=True,
)

# mmsegmentation 1.2.2, configs/_base_/datasets and models/segmentors; corners as its head, that is the network, has it.
_MMSEG = Protocol(
    "mmseg-ss", fusion="logit_mean", resize_to="mmcv_limits", base_size=512, long_limit=2048, resample="opencv"
)
# mmsegmentation 0.x, `tools/test.py --aug-test` and MultiScaleFlipAug: the rule behind its zoo's "ms+flip" numbers.
_MMSEG_0X = replace(_MMSEG, name="mmseg-0x-ms", scales=_SIX, flip=True, fusion="softmax_mean")

NAMED: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("whole"),
        Protocol("ms-flip", _SIX, flip=True),
        Protocol("window", window=512),
        _ENCODING,
        replace(_ENCODING, name="encoding-ms-cityscapes", scales=_SEVEN, base_size=2048, window=768),
        _MMSEG,
        replace(_MMSEG, name="mmseg-ss-cityscapes", base_size=1024),
        # 1.x `--tta` (segmentors/seg_tta.py): there the ratios multiply the image itself.
        Protocol("mmseg-ms", _SIX, flip=True, resize_to="mmcv_image", resample="opencv"),
        _MMSEG_0X,
        replace(_MMSEG_0X, name="mmseg-0x-ms-cityscapes", base_size=1024),
        # The Cityscapes configs of crop 769: `encoder_decoder.py slide_inference`.
        replace(_MMSEG, name="mmseg-slide", base_size=1025, long_limit=2049, window=769, stride=513),
        # CSAIL, mit_semseg/dataset.py `ValDataset` and eval.py: short sides 300, 375, 450, 525 and 600.
        Protocol(
            name="csail-ms",
            scales=(0.5, 0.625, 0.75, 0.875, 1.0),
            resize_to="csail",
            base_size=600,
            long_limit=1000,
            align_corners=False,
            resample="pillow",
            upsample_to="output",
        ),
        # PaddleSeg since its pull request 2933, paddleseg/core/infer.py `aug_inference`; scales of its docs/evaluation.
        Protocol("paddleseg-ms", (0.75, 1.0, 1.25), flip=True, fusion="logit_mean", align_corners=False),
    )
}


def get(name: str) -> Protocol:
    """The protocol of that name (see `NAMED`: whole, ms-flip, encoding-ms, mmseg-ms, ...), or in that YAML file.

    Args:
        name: A protocol, a file with the fields of `Protocol`, or a recipe (`protocols/half-ms-flip`).

    Raises:
        InputError: No protocol has that name (the message lists those that exist), or the file is not a protocol.
    """
    if name in NAMED:
        return NAMED[name]
    if not is_recipe(name):
        raise InputError(f"protocol: {name!r} is not known; use one of {', '.join(NAMED)}, or a .yaml file of your own")
    path = find_recipe(name)
    return from_fields(read_yaml(path), path.stem, f"protocol: {path}")  # it has the file's name unless it has its own


def from_fields(values: Any, name: str = "own", where: str = "protocol") -> Protocol:
    """Make a protocol from its fields.

    Args:
        values: Names and values from a file or a recipe.
        name: The protocol's name, if the values give none.
        where: The place of the values, with which error messages begin.

    Raises:
        InputError: A name is unknown, or a value has the wrong type.
    """
    allowed = [field.name for field in dataclass_fields(Protocol)]
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: {values!r} is not a protocol; its fields are {', '.join(allowed)}")
    unknown = [str(key) for key in values if key not in allowed]
    if unknown:
        names = f"{did_you_mean(unknown[0], allowed)}its fields are {', '.join(allowed)}"
        raise InputError(f"{where}: {unknown[0]!r} is no field of a protocol; {names}")
    try:
        return Protocol(**({"name": name} | dict(values)))
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: a value is of another type than its field ({error})") from error
