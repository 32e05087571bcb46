"""Builds encoders by name: the ResNeSt family of this package, or any timm encoder through smp."""

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segkit.errors import InputError
from segkit.models.resnest import RESNEST_VARIANTS, DilationConvention, ResNeSt
from segkit.ops.normalize import IMAGENET, Normalization

# Arguments of ResNeSt that a network sets itself, and those of the ImageNet classifier, which networks lack.
_OF_THE_NETWORK = {
    **dict.fromkeys(("in_channels", "output_stride", "dilation_convention"), "an argument of the network itself"),
    **dict.fromkeys(("num_classes", "final_drop"), "of the ImageNet classifier, which no segmentation network has"),
}


class Encoder(Protocol):
    """The interface of an encoder on which heads rely.

    Called with `(B, in_channels, H, W)`, it returns features, the last four at strides 4, 8, 16, 32 capped at
    `output_stride`. Feature i has `channels[i]` channels.
    """

    channels: tuple[int, ...]
    output_stride: int

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Return the features of an image `(B, in_channels, H, W)`."""
        ...


def build_encoder(
    name: str,
    output_stride: int = 8,
    dilation_convention: DilationConvention = "authors",
    in_channels: int = 3,
    overrides: Mapping[str, Any] | None = None,
    depth: int = 5,
) -> nn.Module:
    """Build an encoder with random weights; no file is read and nothing is downloaded.

    Args:
        name: One of `RESNEST_VARIANTS` ("resnest50", ...), or a timm model name ("resnet50", "seresnet50", ...), with
            or without smp's "tu-" prefix.
        output_stride: 8, 16 or 32.
        dilation_convention: How a ResNeSt is dilated; other encoders are always dilated as timm does.
        in_channels: Channels of the input.
        overrides: Arguments of `ResNeSt` that differ from the named variant's ("planes", "dropblock_prob", ...).
        depth: Features after the input, 3 to 5: stages after them are left out.

    Raises:
        InputError: A name or argument is unknown, or the encoder cannot be dilated to `output_stride`.
    """
    if name in RESNEST_VARIANTS:
        resnest = _build_resnest(name, output_stride, dilation_convention, in_channels, overrides or {})
        return resnest if depth == 5 else _shortened(resnest, depth)
    if "resnest" in name:
        raise InputError(_not_ours(name))
    if overrides:
        raise InputError(f"encoder {name!r}: encoder_args apply to ResNeSt only; leave them out for a timm encoder")
    # smp and timm take seconds to import, and a ResNeSt needs neither.
    from segkit.models.timm_encoder import TimmEncoder

    return TimmEncoder(name.removeprefix("tu-"), output_stride, in_channels, depth)


def padded_to(x: Tensor, multiple: int, least: int = 0) -> Tensor:
    """An image `(B, C, H, W)` with zeros, the mean colour, at the right and bottom, so that both sides are multiples.

    Args:
        x: The image.
        multiple: Each side becomes a multiple of this.
        least: Minimum side, itself such a multiple.
    """
    below, beside = (multiple * ((side + multiple - 1) // multiple) - side for side in x.shape[-2:])
    if least > multiple:
        below, beside = (max(more, least - side) for more, side in zip((below, beside), x.shape[-2:], strict=True))
    # A traced program pads by nothing where it need not, as it has no branches.
    return F.pad(x, (0, beside, 0, below)) if torch.compiler.is_exporting() or below or beside else x


def encoder_normalization(name: str) -> Normalization:
    """Mean and standard deviation with which an encoder's published weights were trained; ImageNet's for a ResNeSt."""
    if name in RESNEST_VARIANTS or not name:
        return IMAGENET
    import timm  # takes seconds

    known = timm.get_pretrained_cfg(name.removeprefix("tu-"))
    if known is None or not known.mean or not known.std:
        return IMAGENET
    return Normalization(tuple(known.mean), tuple(known.std))


def timm_network(name: str, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """timm's whole network, on the meta device if built in `ShapesOnly`.

    Args:
        name: timm's name.
        shapes: Tensor shapes of a file, which determine the number of classes and input channels.

    Raises:
        InputError: timm does not know the name.
    """
    import timm  # takes seconds

    from segkit.models.timm_encoder import check_name

    check_name(name)
    config: Any = timm.get_pretrained_cfg(name, allow_unregistered=True)
    classes = shapes.get(f"{config.classifier if config else 'fc'}.weight", (0,))[0]
    channels = shapes.get(f"{config.first_conv if config else 'conv1'}.weight", (0, 3))
    network: nn.Module = timm.create_model(name, num_classes=classes, in_chans=channels[1])
    return network


def _build_resnest(
    name: str, output_stride: int, convention: DilationConvention, in_channels: int, overrides: Mapping[str, Any]
) -> ResNeSt:
    arguments = {**RESNEST_VARIANTS[name], **overrides}
    _check_overrides(name, overrides, arguments)
    arguments.update(output_stride=output_stride, dilation_convention=convention, in_channels=in_channels)
    return ResNeSt(**arguments)


def _shortened(resnest: ResNeSt, depth: int) -> ResNeSt:
    """Leave out the stages after the feature `depth`."""
    for i in range(depth, 5):
        setattr(resnest, f"layer{i}", nn.Identity())
    resnest.channels = resnest.channels[: depth + 1]
    resnest.output_stride = min(resnest.output_stride, 2**depth)
    return resnest


def _check_overrides(name: str, overrides: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that ResNeSt does not have or that would have no effect.

    Raises:
        InputError: There is such an argument; the message names it and says why it is refused.
    """
    settable = inspect.signature(ResNeSt).parameters.keys() - _OF_THE_NETWORK.keys()
    for key in sorted(overrides.keys() - settable, key=str):
        why = _OF_THE_NETWORK.get(key, "no argument of ResNeSt")
        raise InputError(f"encoder_args of {name!r}: {key!r} is {why}; allowed: {', '.join(sorted(settable))}")
    if overrides.get("avd_first") and not arguments.get("avd", True):
        raise InputError(f"encoder_args of {name!r}: avd_first has no effect without avd; leave one of them out")


def _not_ours(name: str) -> str:
    """Name both wirings: dilated, a ResNeSt under timm's name would silently be wired differently."""
    known = ", ".join(RESNEST_VARIANTS)
    return (
        f"encoder {name!r} is not known: timm's ResNeSt differs from the paper's when dilated; use one of {known} "
        "(with dilation_convention: timm for timm's wiring)"
    )
