"""ResNeSt, the split-attention network of Zhang et al. 2020 (arXiv 2004.08955), as a segmentation encoder.

Wiring, parameter names and initialisation are those of the authors' release (zhanghang1989/ResNeSt,
resnest/torch/{resnet,splat}.py), so their weight files load unchanged and features are bit-identical. Changed here:
the network returns its stage features, its classifier is optional, its widths are arguments, and how it is dilated is a
named convention.

Shapes: B batch, C channels, R radix, G cardinality, H W pixels, h w feature cells.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from segkit.errors import InputError
from segkit.models.signatures import check_arguments
from segkit.ops.split_attention import split_attention, split_pool

DilationConvention = Literal["authors", "timm", "mmseg"]

EXPANSION = 4  # a bottleneck's output channels / planes

_MOST_BLOCKS, _WIDEST = 1000, 65536  # far above every published network; anything larger is a typing error


def _variant(
    layers: Sequence[int], radix: int, cardinality: int, width: int, stem_width: int, **others: Any
) -> dict[str, Any]:
    named = {"layers": layers, "radix": radix, "cardinality": cardinality, "width": width, "stem_width": stem_width}
    return named | others


# fmt: off
RESNEST_VARIANTS: dict[str, dict[str, Any]] = {
    # name                             layers        radix cardinality width stem_width
    "resnest14":              _variant((1,  1,  1, 1), 2, 1, 64, 32),
    "resnest26":              _variant((2,  2,  2, 2), 2, 1, 64, 32),
    "resnest50":              _variant((3,  4,  6, 3), 2, 1, 64, 32),
    "resnest101":             _variant((3,  4, 23, 3), 2, 1, 64, 64),
    "resnest200":             _variant((3, 24, 36, 3), 2, 1, 64, 64, final_drop=0.2),
    "resnest269":             _variant((3, 30, 48, 8), 2, 1, 64, 64, final_drop=0.2),
    "resnest50_fast_1s1x64d": _variant((3,  4,  6, 3), 1, 1, 64, 32, avd_first=True),
    "resnest50_fast_2s1x64d": _variant((3,  4,  6, 3), 2, 1, 64, 32, avd_first=True),
    "resnest50_fast_4s1x64d": _variant((3,  4,  6, 3), 4, 1, 64, 32, avd_first=True),
    "resnest50_fast_1s2x40d": _variant((3,  4,  6, 3), 1, 2, 40, 32, avd_first=True),
    "resnest50_fast_2s2x40d": _variant((3,  4,  6, 3), 2, 2, 40, 32, avd_first=True),
    "resnest50_fast_4s2x40d": _variant((3,  4,  6, 3), 4, 2, 40, 32, avd_first=True),
    "resnest50_fast_1s4x24d": _variant((3,  4,  6, 3), 1, 4, 24, 32, avd_first=True),
    # Not in the paper: the smallest member of the family, for tests, the demo and first trials on a CPU.
    "resnest14_tiny":         _variant((1,  1,  1, 1), 2, 1, 64,  8, planes=(12, 24, 48, 96)),
}
# fmt: on


class ResNeSt(nn.Module):
    """ResNeSt encoder: `(B, in_channels, H, W)` normalised float to a list of six features.

    Features, in order: the input, the stem at stride 2, and stages 1 to 4 at strides 4, 8, 16, 32 capped at the output
    stride; each is `(B, channels[i], ceil(H / stride), ceil(W / stride))`. This is the list that smp's decoders take.

    Args:
        layers: Blocks in each of the four stages.
        radix: Splits R of the split attention; 0 builds the plain 3x3 convolution of ResNet-D.
        cardinality: Groups G of the bottleneck.
        width: Bottleneck width; a block of P planes has `int(P * width / 64) * cardinality` inner channels.
        stem_width: Channels of the first stem convolutions; the stem ends with twice as many.
        avd: Downsample by a 3x3 average pool instead of the strided 3x3 convolution (paper section 4.1).
        avd_first: Put that pool before the 3x3 convolution (the "fast" variants).
        output_stride: 8, 16 or 32; stages past it keep their resolution and are dilated instead.
        dilation_convention: Whether the first block of a dilated stage is wired as by the authors, timm or mmseg. All
            three have the same parameters, but different features (except at stride 32).
        in_channels: Channels of the input.
        planes: Planes of the four stages; a stage ends with four times as many channels.
        num_classes: Classes of the ImageNet classifier; 0 builds none.
        dropblock_prob: DropBlock probability in stages 3 and 4, block size 3 (Ghiasi et al. 2018).
        final_drop: Dropout before the classifier.
        zero_init_last_gamma: Start every residual branch at zero (ImageNet training only).

    Raises:
        InputError: An argument is outside the values above.
    """

    def __init__(
        self,
        layers: Sequence[int],
        radix: int = 2,
        cardinality: int = 1,
        width: float = 64,
        stem_width: int = 32,
        avd: bool = True,
        avd_first: bool = False,
        output_stride: int = 8,
        dilation_convention: DilationConvention = "authors",
        in_channels: int = 3,
        planes: Sequence[int] = (64, 128, 256, 512),
        num_classes: int = 0,
        dropblock_prob: float = 0.0,
        final_drop: float = 0.0,
        zero_init_last_gamma: bool = False,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        check_arguments(ResNeSt, given, "ResNeSt")
        _check_sizes(layers, planes, radix, output_stride)
        _check_widths(planes, cardinality, width, stem_width)
        self.output_stride = output_stride
        self.dilation_convention = dilation_convention
        self.channels: tuple[int, ...] = (in_channels, 2 * stem_width, *(EXPANSION * p for p in planes))
        self.conv1 = _deep_stem(in_channels, stem_width)
        self.bn1 = nn.BatchNorm2d(2 * stem_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        stages = [
            _stage(
                in_channels=self.channels[i + 1],
                planes=planes[i],
                blocks=layers[i],
                stride=stride,
                dilation=dilation,
                convention=dilation_convention,
                avd=avd,
                radix=radix,
                cardinality=cardinality,
                width=width,
                avd_first=avd_first,
                dropblock_prob=dropblock_prob if i >= 2 else 0.0,
            )
            for i, (stride, dilation) in enumerate(_strides_and_dilations(output_stride))
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.drop = nn.Dropout(final_drop)
        self.fc = nn.Linear(self.channels[-1], num_classes) if num_classes else None
        self._initialise(zero_init_last_gamma)
        # An ImageNet file must load into an encoder without a classifier.
        self.register_load_state_dict_pre_hook(_drop_classifier)  # type: ignore[no-untyped-call]

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the six features, under the name that smp's decoders use."""
        return self.channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the six features described above."""
        features = [x]
        x = self.relu(self.bn1(self.conv1(x)))  # (B, 2*stem_width, ceil(H/2), ceil(W/2))
        features.append(x)
        x = self.maxpool(x)
        # Those that an encoder of less depth leaves out have no channels.
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4)[: len(self.channels) - 2]:
            x = stage(x)
            features.append(x)
        return features

    def classify(self, x: Tensor) -> Tensor:
        """Return ImageNet logits `(B, num_classes)`.

        Raises:
            InputError: The network was built without a classifier.
        """
        if self.fc is None:
            raise InputError("ResNeSt.classify: this network has no classifier; build it with num_classes=1000")
        pooled = F.adaptive_avg_pool2d(self(x)[-1], 1).flatten(1)  # (B, C)
        logits: Tensor = self.fc(self.drop(pooled))
        return logits

    def _initialise(self, zero_init_last_gamma: bool) -> None:
        """Draw convolutions from a normal with variance 2 / fan-out, as the release; norms default to 1 and 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            elif isinstance(module, Bottleneck) and zero_init_last_gamma:
                nn.init.zeros_(module.bn3.weight)


class Bottleneck(nn.Module):
    """1x1 - split-attention 3x3 - 1x1 with a shortcut (paper figure 2): `(B, C, h, w)` to `(B, 4*planes, h', w')`.

    No norm and no ReLU follow the split attention; `pool` is the average pool that takes over its stride.
    """

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        radix: int,
        cardinality: int,
        width: float,
        stride: int = 1,
        dilation: int = 1,
        pool: bool = False,
        avd_first: bool = False,
        shortcut: nn.Module | None = None,
        dropblock_prob: float = 0.0,
    ) -> None:
        super().__init__()
        inner = int(planes * (width / 64.0)) * cardinality
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.dropblock1 = _drop_block(dropblock_prob)
        self.pool_before = nn.AvgPool2d(3, stride, padding=1) if pool and avd_first else nn.Identity()
        conv_stride = 1 if pool else stride
        self.conv2: nn.Module
        if radix == 0:
            self.conv2 = nn.Conv2d(inner, inner, 3, conv_stride, dilation, dilation, groups=cardinality, bias=False)
            self.bn2 = nn.BatchNorm2d(inner)
            self.dropblock2 = _drop_block(dropblock_prob)
        else:
            self.conv2 = SplitAttention(inner, radix, cardinality, conv_stride, dilation, dropblock_prob)
        self.pool_after = nn.AvgPool2d(3, stride, padding=1) if pool and not avd_first else nn.Identity()
        self.conv3 = nn.Conv2d(inner, EXPANSION * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(EXPANSION * planes)
        self.dropblock3 = _drop_block(dropblock_prob)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut
        self.radix = radix

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, `(B, 4*planes, h', w')`."""
        out = self.relu(self.dropblock1(self.bn1(self.conv1(x))))
        out = self.conv2(self.pool_before(out))
        if self.radix == 0:
            out = self.relu(self.dropblock2(self.bn2(out)))
        out = self.dropblock3(self.bn3(self.conv3(self.pool_after(out))))
        out += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out)
        return result


class SplitAttention(nn.Module):
    """Split-attention 3x3 convolution (paper section 3.1; the layout is the release's).

    It maps `(B, C, h, w)` to `(B, C, h', w')`. A grouped convolution makes R splits of C channels; attention computed
    from their pooled sum, a softmax over the radix (a sigmoid if R is 1), weights them; the weighted splits are added.
    """

    def __init__(
        self,
        channels: int,
        radix: int,
        cardinality: int = 1,
        stride: int = 1,
        dilation: int = 1,
        dropblock_prob: float = 0.0,
    ) -> None:
        super().__init__()
        self.channels, self.radix, self.cardinality = channels, radix, cardinality
        inter = max(channels * radix // 4, 32)
        groups = cardinality * radix
        if channels % groups or inter % cardinality:
            raise InputError(
                f"ResNeSt: blocks of {channels} channels cannot be divided into radix {radix} x cardinality "
                f"{cardinality} groups; change planes, width, radix or cardinality"
            )
        self.conv = nn.Conv2d(channels, channels * radix, 3, stride, dilation, dilation, groups=groups, bias=False)
        self.bn0 = nn.BatchNorm2d(channels * radix)
        self.dropblock = _drop_block(dropblock_prob)
        self.relu = nn.ReLU(inplace=True)
        self.fc1 = nn.Conv2d(channels, inter, 1, groups=cardinality)
        self.bn1 = nn.BatchNorm2d(inter)
        self.fc2 = nn.Conv2d(inter, channels * radix, 1, groups=cardinality)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended features `(B, C, h', w')`."""
        x = self.relu(self.dropblock(self.bn0(self.conv(x))))  # (B, R*C, h', w')
        pooled = split_pool(x, self.radix)  # (B, C, 1, 1)
        attention = self.fc2(self.relu(self.bn1(self.fc1(pooled))))  # (B, G*R*C/G, 1, 1)
        return split_attention(x, attention, self.radix, self.cardinality)


def _drop_block(probability: float) -> nn.Module:
    """DropBlock of 3x3 cells; torchvision is imported here because that takes a second and inference needs none."""
    if probability <= 0:
        return nn.Identity()
    from torchvision.ops import DropBlock2d

    drop_block: nn.Module = DropBlock2d(probability, 3)
    return drop_block


def _deep_stem(in_channels: int, width: int) -> nn.Sequential:
    """Three 3x3 convolutions in place of the 7x7 one (ResNet-C, He et al. 2019): stride 2, 2*width channels."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
    )


def _strides_and_dilations(output_stride: int) -> list[tuple[int, int]]:
    """(stride, dilation) of the four stages: past the output stride a stage dilates instead of striding."""
    plan, reached, dilation = [], 4, 1
    for stride in (1, 2, 2, 2):
        if reached * stride > output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        plan.append((stride, dilation))
    return plan


def _stage(
    *,
    in_channels: int,
    planes: int,
    blocks: int,
    stride: int,
    dilation: int,
    convention: DilationConvention,
    avd: bool,
    **block: Any,
) -> nn.Sequential:
    """Build a stage. Its first block downsamples or, in a dilated stage, does what the convention says.

    The authors keep the first block's average pool in a dilated stage (stride 1); timm and mmseg drop it, and timm
    average-pools the shortcut with a 2x2 window instead. In all three, the first block dilates as the previous stage.
    """
    dilated = dilation > 1
    out_channels = EXPANSION * planes
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(
            _shortcut_pool(stride, dilated and convention == "timm"),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
    first = Bottleneck(
        in_channels,
        planes,
        stride=stride,
        dilation=max(dilation // 2, 1),
        pool=avd and (stride > 1 or (dilated and convention == "authors")),
        shortcut=shortcut,
        **block,
    )
    rest = [Bottleneck(out_channels, planes, dilation=dilation, **block) for _ in range(1, blocks)]
    return nn.Sequential(first, *rest)


def _shortcut_pool(stride: int, same_pool: bool) -> nn.Module:
    if same_pool:
        # timm's stride-1 "same" pool: one zero row and column at the bottom and right, counted in the average.
        return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 1))
    if stride == 1:
        return nn.Identity()
    return nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)


def _check_sizes(layers: Sequence[int], planes: Sequence[int], radix: int, output_stride: int) -> None:
    if len(layers) != 4 or not 1 <= min(layers) <= max(layers) <= _MOST_BLOCKS:
        raise InputError(
            f"ResNeSt: layers={tuple(layers[:5])} must be four positive block counts up to {_MOST_BLOCKS}, such as "
            "(3, 4, 6, 3)"
        )
    if len(planes) != 4 or not 1 <= min(planes) <= max(planes) <= _WIDEST:
        raise InputError(
            f"ResNeSt: planes={tuple(planes[:5])} must be four positive numbers up to {_WIDEST}, such as "
            "(64, 128, 256, 512)"
        )
    if not 0 <= radix <= _WIDEST:
        raise InputError(f"ResNeSt: radix={radix} must be 0 (no attention), 1, 2 or more")
    if output_stride not in (8, 16, 32):
        raise InputError(f"ResNeSt: output_stride={output_stride} is not 8, 16 or 32")


def _check_widths(planes: Sequence[int], cardinality: int, width: float, stem_width: int) -> None:
    for name, value in (("cardinality", cardinality), ("stem_width", stem_width)):
        if not 1 <= value <= _WIDEST:
            raise InputError(f"ResNeSt: {name}={value} must be 1 to {_WIDEST}")
    if not 64 <= min(planes) * width <= max(planes) * width <= 64 * _WIDEST:
        raise InputError(f"ResNeSt: width={width} gives blocks of {min(planes)} planes no channels, or too many")


def _drop_classifier(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Drop the file's classifier if the network has none; torch hands the hook a copy of the dict."""
    if module.fc is None:
        for name in ("fc.weight", "fc.bias"):
            state_dict.pop(prefix + name, None)
