"""The centre crops by which ImageNet scores are made: three conventions by name. All resize as Pillow does.

resnest:   a square of side short * s / (s + 32) in the centre, resized to s, bicubic (zhanghang1989/ResNeSt,
           scripts/torch/verify.py, with which the published numbers are made).
encoding:  the same square, bilinear (PyTorch-Encoding, and ResNeSt's resnest/torch/transforms, of the training).
timm:      the short side resized to s / crop_pct, then the centre (timm/data/transforms_factory.py); crop_pct and
           interpolation are each network's own.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import timm
from PIL import Image
from torchvision.transforms import functional

from segkit.errors import InputError, did_you_mean

Convention = Literal["resnest", "encoding", "timm"]
Interpolation = Literal["bilinear", "bicubic"]

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_MARGIN = 32  # pixels


@dataclass(frozen=True)
class CentreCrop:
    """How a test image becomes a square.

    Attributes:
        name: The convention.
        size: Pixels of the square; 0: the data's `crop_size`.
        crop_pct: For timm only: the square's side over the short side of the resized image; None: the network's own.
        interpolation: For timm only; None: the network's own.
    """

    name: Convention = "resnest"
    size: int = 0
    crop_pct: float | None = None
    interpolation: Interpolation | None = None

    def __post_init__(self) -> None:
        """Refuse values that the convention does not have."""
        if self.name not in get_args(Convention):
            hint = did_you_mean(str(self.name), get_args(Convention))
            raise InputError(f"protocol {self.name!r}: {hint}centre crops are {', '.join(get_args(Convention))}")
        if not self.size >= 0 or not 0 < (self.crop_pct or 1) <= 1:
            raise InputError(f"protocol: size {self.size}, crop_pct {self.crop_pct}; pixels, and a share up to 1")
        if self.interpolation not in (None, *get_args(Interpolation)):
            raise InputError(f"protocol: interpolation {self.interpolation!r}; {' or '.join(get_args(Interpolation))}")
        own = {"encoding": "bilinear", "resnest": "bicubic"}.get(self.name)
        if own is not None and (self.crop_pct is not None or self.interpolation not in (None, own)):
            raise InputError(f"protocol {self.name}: crop_pct and interpolation are timm's; leave them out")
        if own is not None:
            object.__setattr__(self, "interpolation", own)

    @classmethod
    def of(cls, value: "str | Mapping[str, Any] | CentreCrop") -> "CentreCrop":
        """A crop from its name with or without a size ("resnest@320"), from its fields, or the crop given itself."""
        if isinstance(value, CentreCrop):
            return value
        name, _, size = value.partition("@") if isinstance(value, str) else ("", "", "")
        fields: dict[str, Any] = {"name": name} if isinstance(value, str) else dict(value)
        if size:
            fields["size"] = int(size) if size.isdecimal() else -1
        try:
            return cls(**fields)
        except TypeError as error:
            raise InputError(
                f"protocol: {error}; a centre crop has name, size (pixels), crop_pct and interpolation"
            ) from error

    def resolved(self, size: int, model: str) -> "CentreCrop":
        """The crop with its open fields filled in.

        Args:
            size: Pixels of the square, if the crop has none.
            model: timm's name of the network, for its crop_pct and interpolation.
        """
        full = replace(self, size=self.size or size)
        if self.name != "timm" or (self.crop_pct and self.interpolation):
            return full
        config = timm.get_pretrained_cfg(model)
        if config is None:
            raise InputError(f"protocol timm: timm does not know {model!r}; give its crop_pct and interpolation")
        own: Any = {"crop_pct": config.crop_pct, "interpolation": config.interpolation}
        return replace(full, **{name: getattr(self, name) or value for name, value in own.items()})

    def __call__(self, image: Image.Image) -> Image.Image:
        """The square of an RGB image, of `size` pixels."""
        assert self.interpolation is not None
        mode = _RESAMPLING[self.interpolation]
        if self.name == "timm":
            assert self.crop_pct is not None
            short = math.floor(self.size / self.crop_pct)
            resized: Any = functional.resize(image, [short], functional.InterpolationMode(self.interpolation))
            cut: Image.Image = functional.center_crop(resized, [self.size, self.size])
            return cut
        side = self.size / (self.size + _MARGIN) * min(image.size)
        left, top = (round((length - side) / 2) for length in image.size)
        return image.crop((left, top, round(left + side), round(top + side))).resize((self.size, self.size), mode)

    def to_dict(self) -> dict[str, Any]:
        """The crop as plain data for a result file."""
        return asdict(self)
