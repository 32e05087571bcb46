"""Segmentation networks: an encoder, a head and an optional auxiliary head. The architecture is the choice of head."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from segkit.errors import InputError, one_line
from segkit.models.encoders import build_encoder
from segkit.models.heads import (
    ASPP_RATES,
    DeepLabV3Head,
    FCNHead,
    MMSegASPPHead,
    MMSegAuxHead,
    MMSegFCNHead,
)
from segkit.models.norms import PooledNorm, set_pooled_norm
from segkit.models.resnest import RESNEST_VARIANTS, DilationConvention
from segkit.models.signatures import check_arguments, with_defaults


def class_path(cls: type["SegmentationModel"]) -> str:
    """The dotted path by which configs and checkpoints name a network."""
    return f"{cls.__module__}.{cls.__name__}"


NETWORKS: dict[str, type["SegmentationModel"]] = {}  # by class path: all networks that have been imported


class _NetworkType(type):
    """Lets a config name any module as a network: jsonargparse asks whether its class is a subclass."""

    def __subclasscheck__(cls, subclass: type) -> bool:
        """Whether a class is a network, or a module that `segkit.models.own` can wrap."""
        own = cls.__dict__.get("takes_any_module", False) and nn.Module in getattr(subclass, "__mro__", ())
        return own or super().__subclasscheck__(subclass)

    def __instancecheck__(cls, instance: object) -> bool:
        """Whether an object is a network."""
        return cls in type(instance).__mro__


class SegmentationModel(nn.Module, metaclass=_NetworkType):
    """Encoder + head + optional auxiliary head on stage 3: the one constructor of all networks.

    It maps `(B, C, H, W)` normalised float, any H and W, to `{"out": (B, K, h, w)}` logits at the network's own
    stride, plus `"aux": (B, K, h, w)` while training. Upsampling is a separate step (`segkit.ops.upsample`).

    A network is a subclass that names its heads and gives defaults that differ as keywords of the class:
    `class Mine(SegmentationModel, output_stride=16)`. A head is constructed with `(in_channels, num_classes)`, and
    with `rates` if its constructor has them.

    Args:
        encoder: The name of a ResNeSt ("resnest50", ...) or a timm model ("resnet50", ...).
        num_classes: The number of classes, K.
        output_stride: 8, 16 or 32.
        dilation_convention: "authors", "timm" or "mmseg"; see `ResNeSt`.
        in_channels: Channels of the input; the command line takes them from the data.
        aux: Whether an auxiliary head on stage 3 helps the training (it costs nothing at test time).
        encoder_args: Arguments of `ResNeSt` that differ from the named variant's.
        align_corners: How the logits are upsampled, in training and at test time: True in PyTorch-Encoding and smp,
            False in torchvision and mmsegmentation.
        aspp_rates: The three dilation rates of a head with ASPP; None means those of the output stride (`ASPP_RATES`).
        pooled_norm: The kind of the norms on 1x1 maps, where batch norms cannot train with one image per process:
            "batch", "frozen" (running statistics only) or "group"; see `norms.py`.

    Attributes:
        config: Plain data, `{"class_path": ..., "init_args": {...}}`, that rebuilds this network.

    Raises:
        InputError: The encoder or an argument is unknown, or an argument has no effect.
    """

    takes_any_module: ClassVar[bool] = True  # true of this class only, not of its subclasses
    head_class: ClassVar[type[nn.Module]]
    aux_head_class: ClassVar[type[nn.Module]] = FCNHead

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
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        _check(type(self), arguments)
        if not has_rates(type(self)):
            del arguments["aspp_rates"]
        built: Any = build_encoder(encoder, output_stride, dilation_convention, in_channels, encoder_args)
        rates = {"rates": aspp_rates or ASPP_RATES[output_stride]} if has_rates(type(self)) else {}
        head = _head(self.head_class, built.channels[-1], num_classes, **rates)
        self._assemble(arguments, built, head, align_corners)

    def _assemble(self, arguments: dict[str, Any], encoder: nn.Module, head: nn.Module, align_corners: bool) -> None:
        """Set the common attributes, and draw the auxiliary head's weights; `arguments` are the constructor's."""
        super().__init__()
        self.config: dict[str, Any] = {"class_path": class_path(type(self)), "init_args": arguments}
        self.num_classes: int = arguments["num_classes"]
        self.output_stride: int = encoder.output_stride  # type: ignore[assignment]
        self.align_corners = align_corners
        self.encoder, self.head = encoder, head
        beside: int = encoder.channels[-2]  # type: ignore[index, assignment]
        self.aux_head = _head(self.aux_head_class, beside, self.num_classes) if arguments["aux"] else None
        if arguments["pooled_norm"] != "batch":
            set_pooled_norm(self, arguments["pooled_norm"])

    def __init_subclass__(cls, **defaults: Any) -> None:
        """Register the class and give its constructor these defaults, which the help text shows, too."""
        super().__init_subclass__()
        NETWORKS[class_path(cls)] = cls
        if defaults:
            cls.__init__ = with_defaults(cls.__init__, defaults)  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return logits at the network's own stride."""
        features = self.encoder(x)
        outputs = {"out": self.head(features[-1])}
        if self.training and self.aux_head is not None:
            outputs["aux"] = self.aux_head(features[-2])
        return outputs


class FCN(SegmentationModel):
    """The ResNeSt authors' FCN head on a dilated encoder (PyTorch-Encoding, encoding/models/sseg/fcn.py).

    The arguments are those of `SegmentationModel`.
    """

    head_class = FCNHead


class DeepLabV3(SegmentationModel):
    """The authors' DeepLabV3 head on a dilated encoder (PyTorch-Encoding, encoding/models/sseg/deeplab.py)."""

    head_class = DeepLabV3Head


class MMSegFCN(SegmentationModel, encoder="resnest101", dilation_convention="mmseg", align_corners=False):
    """mmsegmentation's FCN (1.2.2, configs/_base_/models/fcn_r50-d8.py) on a dilated encoder."""

    head_class, aux_head_class = MMSegFCNHead, MMSegAuxHead


class MMSegDeepLabV3(SegmentationModel, encoder="resnest101", dilation_convention="mmseg", align_corners=False):
    """mmsegmentation's DeepLabV3 (1.2.2, configs/_base_/models/deeplabv3_r50-d8.py) on a dilated encoder."""

    head_class, aux_head_class = MMSegASPPHead, MMSegAuxHead


def has_rates(cls: type[SegmentationModel]) -> bool:
    """Whether a network's head has dilation rates."""
    return "rates" in inspect.signature(cls.head_class).parameters


def build_network(config: Mapping[str, Any]) -> SegmentationModel:
    """Rebuild a network from its `config`. Its class must already be imported: a checkpoint cannot import one.

    Raises:
        InputError: The class or an argument is unknown.
    """
    path = config.get("class_path")
    if not isinstance(path, str) or path not in NETWORKS:
        raise InputError(unknown_network(path))
    try:
        return NETWORKS[path](**config.get("init_args", {}))
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # raised by PyTorch for impossible sizes
        raise InputError(
            f"network {path}: {one_line(error, 160)}; was it written by another version of segkit?"
        ) from error


def unknown_network(path: object) -> str:
    """The message for a class path in a file that is no imported network."""
    return (
        f"network class {path!r:.60} is not one of {', '.join(NETWORKS)}; if it is a class of your own, name it, as a "
        f"file of weights imports nothing: --network {path!s:.60}, or load(..., network=...)"
    )


def _head(head_class: type[nn.Module], in_channels: int, num_classes: int, **rates: Any) -> nn.Module:
    try:
        inspect.signature(head_class).bind(in_channels, num_classes, **rates)
    except TypeError as error:
        raise InputError(
            f"{head_class.__name__}: {error}; a head is constructed with (in_channels, num_classes)"
        ) from None
    return head_class(in_channels, num_classes, **rates)


def _check(cls: type[SegmentationModel], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of the wrong type, out of range or without effect."""
    where = "model.network.init_args"
    if cls is SegmentationModel:
        raise InputError(f"model.network: SegmentationModel has no head; name one of {', '.join(NETWORKS)}")
    check_arguments(cls, arguments, where)
    encoder, convention, rates = (arguments[name] for name in ("encoder", "dilation_convention", "aspp_rates"))
    default = inspect.signature(cls).parameters["dilation_convention"].default
    if encoder not in RESNEST_VARIANTS and convention not in (default, "timm"):
        raise InputError(
            f"{where}.dilation_convention={convention} has no effect: it applies to ResNeSts only, and {encoder} is "
            "dilated as timm does; leave it out"
        )
    if arguments["num_classes"] < 1:
        raise InputError(f"{where}.num_classes is {arguments['num_classes']}; give 1 or more")
    if rates is not None and not has_rates(cls):
        raise InputError(f"{where}.aspp_rates has no effect: {cls.__name__} has no ASPP; leave it out")
    if rates is not None and (len(rates) != 3 or min(rates) < 1):
        raise InputError(f"{where}.aspp_rates={list(rates)} must be three numbers, each 1 or more")
