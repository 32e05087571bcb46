"""Any timm encoder, dilated, through smp's wrapper: the paper's comparators (ResNet, SENet, SKNet) and others."""

import difflib
from typing import Any

import timm
import torch
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from segkit.errors import InputError, one_line
from segkit.models import comparators as comparators  # registers them at timm
from segkit.models.encoders import padded_to
from segkit.ops.meta import ShapesOnly

_CURE = "use output_stride: 32, or EncoderDecoder with a decoder for stride 32, such as upernet"


class TimmEncoder(nn.Module):
    """A timm encoder without weights: `(B, in_channels, H, W)` to six features, at strides 1, 2, 4, 8, 16, 32.

    Strides are capped at `output_stride`. If the network cuts images into patches (ConvNeXt), an image of unsuitable
    size is padded at the right and bottom with zeros (the mean colour), and its features are cropped to
    `ceil(H / stride) x ceil(W / stride)` cells, so that every height and width works.

    Raises:
        InputError: The name is unknown to timm, or the network cannot be dilated.
    """

    def __init__(self, name: str, output_stride: int = 8, in_channels: int = 3, depth: int = 5) -> None:
        super().__init__()
        check_name(name)
        self.name = name
        self.encoder = encoder = _build(name, output_stride, in_channels, depth)
        if depth < 5:
            _freeze_unreached(encoder, in_channels)
        self.output_stride = min(output_stride, 2**depth)
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
        padded = self.encoder(padded_to(x, 32))
        strides = [min(2**i, self.output_stride) for i in range(len(padded))]
        return [f[..., : -(-height // s), : -(-width // s)] for f, s in zip(padded, strides, strict=True)]


class PlainTransformer(nn.Module):
    """A plain vision transformer as smp's DPT needs it: features of one stride, with the prefix tokens of each.

    Args:
        name: timm's name.
        encoder: smp's wrapper of it.
        in_channels: Channels of the input.
    """

    def __init__(self, name: str, encoder: Any, in_channels: int) -> None:
        super().__init__()
        self.name, self.encoder = name, encoder
        self.channels = tuple(int(c) for c in encoder.out_channels)
        self.output_stride = int(encoder.output_stride)
        _freeze_unreached(encoder, in_channels)

    whole_names = TimmEncoder.whole_names

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return the features `(B, C, h, w)`, and the prefix tokens `(B, N, C)` or None of each."""
        features: tuple[list[Tensor], list[Tensor | None]] = self.encoder(x)
        return features


def check_name(name: str) -> None:
    """Refuse a name that timm does not know, with those that are like it."""
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise InputError(f"encoder {name!r} is neither a ResNeSt of segkit nor a timm model{hint}")


def check_plain_transformer(name: str) -> None:
    """Refuse an encoder that is no plain vision transformer.

    Raises:
        InputError: timm does not know it, or its features halve in size.
    """
    if "resnest" not in name:
        check_name(name)
        strides = _strides(name)
        if len(set(strides)) == 1:
            return
    raise InputError(
        f"encoder {name!r}: dpt takes a plain vision transformer of timm, whose features have one stride, such as "
        "vit_small_patch16_224; for this one choose another decoder, such as unet"
    )


def _build(name: str, output_stride: int, in_channels: int, depth: int) -> Any:
    cannot = f"encoder {name!r} cannot be dilated to output stride {output_stride}"
    options = {"strict_img_size": False} if "swin" in name else {}
    try:
        encoder = get_encoder(
            f"tu-{name}", in_channels, depth=depth, weights=None, output_stride=output_stride, **options
        )
    except Exception as error:  # each of timm's architectures refuses in its own way
        text, strides = one_line(error, 160), _strides(name)
        if len(strides) > 1 and len(set(strides)) == 1:
            raise InputError(
                f"encoder {name!r} is a plain transformer: all of its features have stride {strides[0]}; "
                "class_path: EncoderDecoder with decoder: dpt takes it"
            ) from error
        if output_stride == 32:
            raise InputError(f"encoder {name!r} gives no features at strides 4 to 32 ({text}); use another") from error
        raise InputError(f"{cannot}: {text}; {_CURE}") from error
    reached, expected = encoder.model.feature_info.reduction()[-1], min(2**depth, output_stride)
    if reached != expected:
        raise InputError(f"{cannot}: its last feature has stride {reached}; {_CURE}")
    return encoder


def _freeze_unreached(encoder: Any, in_channels: int) -> None:
    """Freeze the parameters on which no feature depends: several processes would wait for their gradients."""
    side = 8 * int(encoder.output_stride)
    like = next(encoder.parameters())
    features = encoder(torch.zeros(2, in_channels, side, side, device=like.device))
    features = features[0] if isinstance(features, tuple) else features
    sum(feature.sum() for feature in features if feature.requires_grad).backward()
    for parameter in encoder.parameters():
        parameter.requires_grad_(parameter.grad is not None).grad = None


def _strides(name: str) -> list[int]:
    """Strides of a network's features; none if timm does not give them."""
    try:
        with ShapesOnly():
            network: Any = timm.create_model(name, features_only=True)
            return [int(stride) for stride in network.feature_info.reduction()]
    except Exception:  # each of timm's architectures refuses in its own way; `_build` says what is wrong
        return []


def _cuts_patches(encoder: nn.Module) -> bool:
    """Whether a strided convolution has no padding, so that pixels at the border would be lost."""
    strided = [
        m for m in encoder.modules() if isinstance(m, nn.Conv2d) and max(m.stride) > 1 and max(m.kernel_size) > 1
    ]
    return any(max(m.padding) == 0 for m in strided if not isinstance(m.padding, str))
