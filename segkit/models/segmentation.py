"""Segmentation networks: an encoder, a head and an optional auxiliary head. The architecture is the choice of head."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from segkit.errors import InputError
from segkit.models.encoders import build_encoder
from segkit.models.heads import ASPP_RATES, DeepLabV3Head, FCNHead
from segkit.models.mmseg_heads import MMSegASPPHead, MMSegAuxHead, MMSegFCNHead
from segkit.models.norms import PooledNorm, set_pooled_norm
from segkit.models.resnest import RESNEST_VARIANTS, DilationConvention
from segkit.signatures import check_arguments

IMAGE_CHANNELS = 3  # of the images that are read: RGB


class SegmentationModel(nn.Module):
    """Encoder + head + optional auxiliary head on stage 3.

    `(B, C, H, W)` normalised float, any H and W, to `{"out": (B, K, h, w)}` logits at the network's own stride, with
    `"aux": (B, K, h, w)` beside it only while training. Upsampling is a separate step (`segkit.ops.upsample`).

    Attributes:
        num_classes: K.
        output_stride: Pixels per cell of the logits.
        align_corners: How these logits are to be upsampled: True in PyTorch-Encoding and smp, False in torchvision and
            mmsegmentation.
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
        pooled_norm: PooledNorm = "batch",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.aux_head = aux_head
        self.num_classes = num_classes
        self.output_stride: int = encoder.output_stride  # type: ignore[assignment]
        self.align_corners = align_corners
        self.config = dict(config)
        if pooled_norm != "batch":
            set_pooled_norm(self, pooled_norm)

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
        in_channels: Channels of the input; training and inference read RGB images, 3 channels.
        aux: Whether an auxiliary FCN head on stage 3 helps the training (it costs nothing at test time).
        encoder_args: Arguments of `ResNeSt` that differ from the named variant's.
        align_corners: How the logits are upsampled, in training and at test time.
        pooled_norm: The norms on 1x1 maps, which batch norms cannot train with one image a process: "batch",
            "frozen" (running statistics only) or "group"; see `norms.py`.

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
        align_corners: bool = True,
        pooled_norm: PooledNorm = "batch",
    ) -> None:
        config = _config(FCN, locals())
        built = build_encoder(encoder, output_stride, dilation_convention, in_channels, encoder_args)
        head = FCNHead(_channels(built)[-1], num_classes)
        aux_head = FCNHead(_channels(built)[-2], num_classes) if aux else None
        super().__init__(built, head, aux_head, num_classes, config, align_corners, pooled_norm)


class DeepLabV3(SegmentationModel):
    """A DeepLabV3 head on a dilated encoder (PyTorch-Encoding, encoding/models/sseg/deeplab.py); see `FCN`.

    `aspp_rates` are the three dilation rates of the head; None takes those of the output stride (`ASPP_RATES`).
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
        align_corners: bool = True,
        aspp_rates: Sequence[int] | None = None,
        pooled_norm: PooledNorm = "batch",
    ) -> None:
        config = _config(DeepLabV3, locals())
        if aspp_rates is not None and (len(aspp_rates) != 3 or min(aspp_rates) < 1):
            raise InputError(f"model.network.init_args.aspp_rates={list(aspp_rates)} must be three numbers, 1 or more")
        built = build_encoder(encoder, output_stride, dilation_convention, in_channels, encoder_args)
        head = DeepLabV3Head(_channels(built)[-1], num_classes, aspp_rates or ASPP_RATES[output_stride])
        aux_head = FCNHead(_channels(built)[-2], num_classes) if aux else None
        super().__init__(built, head, aux_head, num_classes, config, align_corners, pooled_norm)


class MMSegFCN(SegmentationModel):
    """mmsegmentation's FCN (1.2.2, configs/_base_/models/fcn_r50-d8.py) on a dilated encoder; see `FCN`."""

    def __init__(
        self,
        encoder: str = "resnest101",
        num_classes: int = 150,
        output_stride: int = 8,
        dilation_convention: DilationConvention = "mmseg",
        in_channels: int = 3,
        aux: bool = True,
        encoder_args: dict[str, Any] | None = None,
        align_corners: bool = False,
        pooled_norm: PooledNorm = "batch",
    ) -> None:
        config = _config(MMSegFCN, locals())
        built = build_encoder(encoder, output_stride, dilation_convention, in_channels, encoder_args)
        head = MMSegFCNHead(_channels(built)[-1], num_classes)
        aux_head = MMSegAuxHead(_channels(built)[-2], num_classes) if aux else None
        super().__init__(built, head, aux_head, num_classes, config, align_corners, pooled_norm)


class MMSegDeepLabV3(SegmentationModel):
    """mmsegmentation's DeepLabV3 (1.2.2, configs/_base_/models/deeplabv3_r50-d8.py) on a dilated encoder; see `FCN`."""

    def __init__(
        self,
        encoder: str = "resnest101",
        num_classes: int = 150,
        output_stride: int = 8,
        dilation_convention: DilationConvention = "mmseg",
        in_channels: int = 3,
        aux: bool = True,
        encoder_args: dict[str, Any] | None = None,
        align_corners: bool = False,
        pooled_norm: PooledNorm = "batch",
    ) -> None:
        config = _config(MMSegDeepLabV3, locals())
        built = build_encoder(encoder, output_stride, dilation_convention, in_channels, encoder_args)
        head = MMSegASPPHead(_channels(built)[-1], num_classes, ASPP_RATES[output_stride])
        aux_head = MMSegAuxHead(_channels(built)[-2], num_classes) if aux else None
        super().__init__(built, head, aux_head, num_classes, config, align_corners, pooled_norm)


NETWORKS: dict[str, type[SegmentationModel]] = {
    f"{cls.__module__}.{cls.__name__}": cls for cls in (FCN, DeepLabV3, MMSegFCN, MMSegDeepLabV3)
}


def build_network(config: Mapping[str, Any]) -> SegmentationModel:
    """Rebuild a network from its `config`; only the classes of this file, so that a checkpoint cannot name any other.

    Raises:
        InputError: The class or an argument is not known.
    """
    class_path = config.get("class_path")
    if not isinstance(class_path, str) or class_path not in NETWORKS:
        raise InputError(f"network class {class_path!r} is not one of {', '.join(NETWORKS)}")
    try:
        return NETWORKS[class_path](**config.get("init_args", {}))
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # PyTorch's, of sizes that are none
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"network {class_path}: {reason}; was it written by another version of segkit?") from error


def require_rgb(arguments: Mapping[str, Any]) -> None:
    """Refuse a network of other images than segkit reads.

    Args:
        arguments: The `init_args` of its `config`.

    Raises:
        InputError: Its input has not three channels.
    """
    channels = arguments.get("in_channels", IMAGE_CHANNELS)
    if channels != IMAGE_CHANNELS:
        raise InputError(
            f"model.network.init_args.in_channels is {channels}: images are read as RGB, {IMAGE_CHANNELS} channels; "
            "leave it out"
        )


def _config(cls: type[SegmentationModel], constructor_locals: Mapping[str, Any]) -> dict[str, Any]:
    """What rebuilds the network, of the arguments of its constructor, which are checked."""
    arguments = {name: value for name, value in constructor_locals.items() if name not in ("self", "__class__")}
    check_arguments(cls, arguments, "model.network.init_args")
    _check_convention(cls, arguments["encoder"], arguments["dilation_convention"])
    if arguments["num_classes"] < 1:
        raise InputError(f"model.network.init_args.num_classes is {arguments['num_classes']}; give 1 or more")
    return {"class_path": f"{cls.__module__}.{cls.__name__}", "init_args": arguments}


def _check_convention(cls: type[SegmentationModel], encoder: str, convention: str) -> None:
    default = inspect.signature(cls).parameters["dilation_convention"].default
    if encoder not in RESNEST_VARIANTS and convention not in (default, "timm"):
        raise InputError(
            f"model.network.init_args.dilation_convention={convention} has no effect: it is a choice for ResNeSts, and "
            f"{encoder} is dilated as timm does; leave it out"
        )


def _channels(encoder: nn.Module) -> tuple[int, ...]:
    channels: tuple[int, ...] = encoder.channels  # type: ignore[assignment]
    return channels
