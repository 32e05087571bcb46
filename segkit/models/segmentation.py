"""Segmentation networks: an encoder, a head and an optional auxiliary head. The architecture is the choice of head."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from segkit.errors import InputError
from segkit.models.encoders import build_encoder
from segkit.models.heads import ASPP_RATES, DeepLabV3Head, FCNHead
from segkit.models.resnest import DilationConvention


class SegmentationModel(nn.Module):
    """Encoder + head + optional auxiliary head on stage 3.

    `(B, C, H, W)` normalised float, any H and W, to `{"out": (B, K, h, w)}` logits at the network's own stride, with
    `"aux": (B, K, h, w)` beside it only while training. Upsampling is a separate step (`segkit.ops.upsample`).

    Attributes:
        num_classes: K.
        output_stride: Pixels per cell of the logits.
        align_corners: How these logits are to be upsampled (True in PyTorch-Encoding and smp).
        config: Plain data, `{"class_path": ..., "init_args": {...}}`, that rebuilds this network.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        aux_head: nn.Module | None,
        num_classes: int,
        config: Mapping[str, Any],
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.aux_head = aux_head
        self.num_classes = num_classes
        self.output_stride: int = encoder.output_stride  # type: ignore[assignment]
        self.align_corners = align_corners
        self.config = dict(config)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return logits at the network's own stride."""
        features = self.encoder(x)
        outputs = {"out": self.head(features[-1])}
        if self.training and self.aux_head is not None:
            outputs["aux"] = self.aux_head(features[-2])
        return outputs


class FCN(SegmentationModel):
    """An FCN head on a dilated encoder, as the ResNeSt authors have it (PyTorch-Encoding, encoding/models/sseg/fcn.py).

    Args:
        encoder: Name: a ResNeSt ("resnest50", ...) or a timm model ("resnet50", ...).
        num_classes: K.
        output_stride: 8, 16 or 32.
        dilation_convention: "authors", "timm" or "mmseg"; see `ResNeSt`.
        in_channels: Channels of the input.
        aux: Whether an auxiliary FCN head on stage 3 helps the training (it costs nothing at test time).
        encoder_args: Arguments of `ResNeSt` that differ from the named variant's.

    Raises:
        InputError: An unknown encoder or argument.
    """

    def __init__(
        self,
        encoder: str = "resnest50",
        num_classes: int = 150,
        output_stride: int = 8,
        dilation_convention: DilationConvention = "authors",
        in_channels: int = 3,
        aux: bool = True,
        encoder_args: dict[str, Any] | None = None,
    ) -> None:
        config = _config(FCN, locals())
        built = build_encoder(encoder, output_stride, dilation_convention, in_channels, encoder_args)
        head = FCNHead(_channels(built)[-1], num_classes)
        super().__init__(built, head, _aux_head(built, num_classes, aux), num_classes, config)


class DeepLabV3(SegmentationModel):
    """A DeepLabV3 head on a dilated encoder (PyTorch-Encoding, encoding/models/sseg/deeplab.py); see `FCN`."""

    def __init__(
        self,
        encoder: str = "resnest50",
        num_classes: int = 150,
        output_stride: int = 8,
        dilation_convention: DilationConvention = "authors",
        in_channels: int = 3,
        aux: bool = True,
        encoder_args: dict[str, Any] | None = None,
    ) -> None:
        config = _config(DeepLabV3, locals())
        built = build_encoder(encoder, output_stride, dilation_convention, in_channels, encoder_args)
        head = DeepLabV3Head(_channels(built)[-1], num_classes, ASPP_RATES[output_stride])
        super().__init__(built, head, _aux_head(built, num_classes, aux), num_classes, config)


NETWORKS: dict[str, type[SegmentationModel]] = {f"{cls.__module__}.{cls.__name__}": cls for cls in (FCN, DeepLabV3)}


def build_network(config: Mapping[str, Any]) -> SegmentationModel:
    """Rebuild a network from its `config`; only the classes of this file, so that a checkpoint cannot name any other.

    Raises:
        InputError: The class or an argument is not known.
    """
    class_path = config.get("class_path")
    if class_path not in NETWORKS:
        raise InputError(f"network class {class_path!r} is not one of {', '.join(NETWORKS)}")
    try:
        return NETWORKS[class_path](**config.get("init_args", {}))
    except TypeError as error:
        raise InputError(f"network {class_path}: {error}; was it written by another version of segkit?") from error


def _config(cls: type[SegmentationModel], constructor_locals: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {name: value for name, value in constructor_locals.items() if name not in ("self", "__class__")}
    return {"class_path": f"{cls.__module__}.{cls.__name__}", "init_args": arguments}


def _channels(encoder: nn.Module) -> tuple[int, ...]:
    channels: tuple[int, ...] = encoder.channels  # type: ignore[assignment]
    return channels


def _aux_head(encoder: nn.Module, num_classes: int, wanted: bool) -> FCNHead | None:
    return FCNHead(_channels(encoder)[-2], num_classes) if wanted else None
