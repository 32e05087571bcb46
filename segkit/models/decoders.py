"""smp's decoders over any encoder: segmentation-models-pytorch builds decoder and head, segkit everything else."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor, nn

from segkit.errors import InputError, did_you_mean, one_line
from segkit.models.encoders import build_encoder, padded_to
from segkit.models.norms import PooledNorm
from segkit.models.resnest import RESNEST_VARIANTS, DilationConvention
from segkit.models.segmentation import SegmentationModel
from segkit.models.signatures import check_arguments

Decoder = Literal[
    "unet",
    "unetplusplus",
    "manet",
    "linknet",
    "fpn",
    "pspnet",
    "pan",
    "deeplabv3",
    "deeplabv3plus",
    "upernet",
    "segformer",
    "dpt",
]  # the names of smp.create_model

# Output strides of the encoder that a decoder accepts, smp's own first; others need features that halve in size.
_STRIDES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "pspnet": (32, 16, 8),
        "pan": (16, 32),
        "deeplabv3": (8, 16),
        "deeplabv3plus": (16, 8),
        "upernet": (32, 16, 8),
        "segformer": (32, 16, 8),
    }
)
_OF_DECODERS = ("decoder_", "psp_", "encoder_depth")  # prefixes of smp's arguments that belong to the decoder
_WHERE = "model.network.init_args"


class EncoderDecoder(SegmentationModel):
    """A decoder of segmentation-models-pytorch (0.5 and later) over any encoder.

    It maps `(B, C, H, W)` to logits at the decoder's own stride, before smp's last upsampling, which is a separate
    step here; both together are smp's logits. An image whose sides are no multiples of the encoder's stride is padded
    at the right and bottom with zeros (the mean colour), and the logits are cropped to `ceil(side / stride)`.

    Args:
        encoder: The name of a ResNeSt or a timm model; "dpt" takes plain vision transformers of timm.
        num_classes: The number of classes, K.
        decoder: The name that `smp.create_model` takes: "unet", "fpn", ...
        output_stride: Output stride of the encoder; None means smp's for this decoder: 8 for deeplabv3, 16 for
            deeplabv3plus and pan, else 32.
        dilation_convention: How a ResNeSt is dilated; see `ResNeSt`.
        in_channels: Channels of the input.
        aux: Whether an auxiliary FCN head on the last feature but one helps the training.
        encoder_args: Arguments of `ResNeSt` that differ from the named variant's.
        decoder_args: The decoder's arguments of smp's class: `{"decoder_channels": [128, 64, 32, 16, 16]}`.
            `encoder_depth` leaves out the encoder's last stages, as pspnet does by default (3).
        pooled_norm: See `SegmentationModel`.

    Raises:
        InputError: An argument is unknown, of the wrong type or without effect, or the encoder cannot feed the decoder.
    """

    def __init__(
        self,
        encoder: str = "resnest50",
        num_classes: int = 150,
        decoder: Decoder = "unet",
        output_stride: int | None = None,
        dilation_convention: DilationConvention = "authors",
        in_channels: int = 3,
        aux: bool = False,
        encoder_args: dict[str, Any] | None = None,
        decoder_args: dict[str, Any] | None = None,
        pooled_norm: PooledNorm = "batch",
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        check_arguments(EncoderDecoder, arguments, _WHERE)
        _check(arguments)
        given = _arguments(decoder, decoder_args)
        if decoder == "dpt":
            built, head = _transformer(arguments, given)
        else:
            depth = given.get("encoder_depth", parameters(decoder)["encoder_depth"].default)
            stride = encoder_stride(arguments)
            built = build_encoder(encoder, stride, dilation_convention, in_channels, encoder_args, depth)
            head = _head(arguments, given, built)
        self._assemble(arguments, built, head, align_corners=True)
        # What a side must be a multiple of; a transformer's patches are joined two by two, and pan pools three times.
        self.multiple = 2 * self.output_stride if decoder == "dpt" else 32
        self.least = 8 * self.output_stride if decoder == "pan" else self.multiple

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return logits at the decoder's own stride."""
        height, width = x.shape[-2:]
        padded = padded_to(x, self.multiple, self.least)
        features = self.encoder(padded)
        outputs = {"out": self.head(features)}
        if self.training and self.aux_head is not None:
            outputs["aux"] = self.aux_head((features[0] if isinstance(features, tuple) else features)[-2])
        return {name: _cropped(logits, padded, height, width) for name, logits in outputs.items()}


class SMPHead(nn.Module):
    """smp's decoder and segmentation head, without the upsampling at its end."""

    def __init__(self, decoder: nn.Module, segmentation_head: nn.Module) -> None:
        super().__init__()
        self.decoder, self.segmentation_head = decoder, segmentation_head

    def forward(self, features: Any) -> Tensor:
        """Map an encoder's features (with a transformer's prefix tokens, if it is one) to logits."""
        decoded = self.decoder(*features) if isinstance(features, tuple) else self.decoder(features)
        logits: Tensor = self.segmentation_head(decoded)
        return logits


class _Channels(nn.Module):
    """A placeholder for the encoder while smp builds a decoder for its channels."""

    def __init__(self, channels: tuple[int, ...], depth: int, output_stride: int) -> None:
        super().__init__()
        self.out_channels, self.output_stride = list(channels), output_stride

    def set_in_channels(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the placeholder has no layers."""

    make_dilated = set_in_channels


def _cropped(logits: Tensor, padded: Tensor, height: int, width: int) -> Tensor:
    """Remove the cells that lie in the padding only."""
    # The cells' sides in pixels: whole numbers, which `torch.export` can follow.
    down, across = (side // cells for side, cells in zip(padded.shape[-2:], logits.shape[-2:], strict=True))
    return logits[..., : (height + down - 1) // down, : (width + across - 1) // across]


def _head(arguments: Mapping[str, Any], given: dict[str, Any], encoder: nn.Module) -> SMPHead:
    from segmentation_models_pytorch.encoders import encoders as registry

    fixed = {"encoder_output_stride": encoder_stride(arguments), "upsampling": 1}
    known = parameters(arguments["decoder"])
    registry["segkit"] = {"encoder": _Channels, "params": {"channels": encoder.channels}, "pretrained_settings": {}}
    try:
        taken = {name: value for name, value in fixed.items() if name in known}
        model = _build(arguments, encoder_name="segkit", **given, **taken)
    finally:
        del registry["segkit"]
    return SMPHead(model.decoder, model.segmentation_head)


def _transformer(arguments: Mapping[str, Any], given: dict[str, Any]) -> tuple[nn.Module, SMPHead]:
    """DPT's encoder, and its head."""
    from segkit.models.timm_encoder import PlainTransformer, check_plain_transformer

    name = arguments["encoder"].removeprefix("tu-")
    check_plain_transformer(name)
    channels = arguments["in_channels"]
    model = _build(arguments, encoder_name=f"tu-{name}", in_channels=channels, dynamic_img_size=True, **given)
    model.segmentation_head.upsampling_factor = 1.0
    return PlainTransformer(name, model.encoder, channels), SMPHead(model.decoder, model.segmentation_head)


def _build(arguments: Mapping[str, Any], **given: Any) -> Any:
    """Build smp's network.

    Raises:
        InputError: An argument is wrong; the message is smp's.
    """
    decoder, classes = arguments["decoder"], arguments["num_classes"]
    try:
        return smp_class(decoder)(encoder_weights=None, classes=classes, **given)
    except Exception as error:  # each of smp's decoders refuses in its own way
        raise InputError(
            f"{_WHERE}: {decoder} over {arguments['encoder']} with decoder_args {arguments['decoder_args'] or {}}: "
            f"{one_line(error, 200)}; correct decoder_args"
        ) from error


def _check(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that have no effect or contradict each other."""
    decoder, encoder, stride = arguments["decoder"], arguments["encoder"], encoder_stride(arguments)
    taken = _STRIDES.get(decoder, (32,))
    if arguments["num_classes"] < 1:
        raise InputError(f"{_WHERE}.num_classes is {arguments['num_classes']}; give 1 or more")
    if decoder != "dpt" and stride not in taken:
        raise InputError(
            f"{_WHERE}.output_stride={stride}: {decoder} takes an encoder of output stride "
            f"{' or '.join(map(str, sorted(taken)))}; leave it out for {taken[0]}"
        )
    if encoder not in RESNEST_VARIANTS and arguments["dilation_convention"] not in ("authors", "timm"):
        raise InputError(
            f"{_WHERE}.dilation_convention={arguments['dilation_convention']} has no effect: it applies to ResNeSts "
            f"only, and {encoder} is dilated as timm does; leave it out"
        )


def _arguments(decoder: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The decoder's arguments.

    Raises:
        InputError: There is an argument that it does not have.
    """
    known = [name for name in parameters(decoder) if name.startswith(_OF_DECODERS)]
    known = [name for name in known if decoder != "dpt" or name != "encoder_depth"]
    for name in given or {}:
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise InputError(
                f"{_WHERE}.decoder_args: {name!r} is no argument of {decoder}; {hint}allowed: {', '.join(known)}"
            )
    # smp annotates its rates as an iterable of certain numbers, but takes others, too
    typed = {name: value for name, value in (given or {}).items() if name != "decoder_atrous_rates"}
    check_arguments(smp_class(decoder), typed, f"{_WHERE}.decoder_args")
    return dict(given or {})


def encoder_stride(arguments: Mapping[str, Any]) -> int:
    """The encoder's output stride by a network's arguments, of which `null` means smp's own for the decoder.

    The config keeps the given value, by which a run is resumed.
    """
    return int(arguments.get("output_stride") or _STRIDES.get(arguments.get("decoder", ""), (32,))[0])


def parameters(decoder: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of smp's class of a decoder."""
    return inspect.signature(smp_class(decoder)).parameters


def smp_class(decoder: str) -> Any:
    """smp's class of a decoder."""
    import segmentation_models_pytorch as smp  # takes seconds, and FCN and DeepLabV3 do without

    return next(kind for name, kind in vars(smp).items() if name.lower() == decoder and inspect.isclass(kind))
