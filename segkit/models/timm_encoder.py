"""Any timm encoder, dilated, through smp's wrapper: the paper's comparators (ResNet, SENet, SKNet) and others."""

import difflib
from typing import Any

import timm
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn
from torch.nn import functional as F

from segkit.errors import InputError
from segkit.ops.meta import ShapesOnly


class TimmEncoder(nn.Module):
    """A timm encoder without weights: `(B, in_channels, H, W)` to six features, the last four at strides 4, 8, 16, 32.

    Strides are capped at `output_stride`. If the network cuts images into patches (ConvNeXt), an image of unsuitable
    size is padded at the right and bottom with zeros (the mean colour), and its features are cropped to
    `ceil(H / stride) x ceil(W / stride)` cells, so that every height and width works.

    Raises:
        InputError: The name is unknown to timm, or the network cannot be dilated.
    """

    def __init__(self, name: str, output_stride: int = 8, in_channels: int = 3) -> None:
        super().__init__()
        if not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise InputError(f"encoder {name!r} is neither a ResNeSt of segkit nor a timm model{hint}")
        self.name = name
        self.encoder = encoder = _build(name, output_stride, in_channels)
        self.output_stride = output_stride
        self.channels = tuple(int(c) for c in encoder.out_channels)
        self.pads = _cuts_patches(self.encoder)

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the six features, under the name that smp's decoders use."""
        return self.channels

    def whole_names(self) -> set[str]:
        """timm's names of all parameters and buffers of its whole network, including those after the last feature."""
        with ShapesOnly():
            return set(timm.create_model(self.name).state_dict())

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the six features; a network without a stride-2 stage has an empty one in its place."""
        if not self.pads:
            features: list[Tensor] = self.encoder(x)
            return features
        height, width = x.shape[-2:]
        padded = self.encoder(F.pad(x, (0, -width % 32, 0, -height % 32)))
        strides = [min(2**i, self.output_stride) for i in range(len(padded))]
        return [f[..., : -(-height // s), : -(-width // s)] for f, s in zip(padded, strides, strict=True)]


def _build(name: str, output_stride: int, in_channels: int) -> Any:
    cannot = f"encoder {name!r} cannot be dilated to output stride {output_stride}"
    try:
        encoder = get_encoder(f"tu-{name}", in_channels=in_channels, depth=5, weights=None, output_stride=output_stride)
    except Exception as error:  # each of timm's architectures refuses in its own way
        raise InputError(
            f"{cannot}: {' '.join(str(error).split())[:160]}; use output_stride: 32 or another encoder"
        ) from error
    reached = encoder.model.feature_info.reduction()[-1]
    if reached != output_stride:
        raise InputError(f"{cannot}: its last feature has stride {reached}; use output_stride: {reached}")
    return encoder


def _cuts_patches(encoder: nn.Module) -> bool:
    """Whether a strided convolution has no padding, so that pixels at the border would be lost."""
    strided = [
        m for m in encoder.modules() if isinstance(m, nn.Conv2d) and max(m.stride) > 1 and max(m.kernel_size) > 1
    ]
    return any(max(m.padding) == 0 for m in strided if not isinstance(m.padding, str))
