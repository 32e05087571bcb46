"""Segmentation heads: FCN (Long et al. 2015) and DeepLabV3 (Chen et al. 2017, arXiv 1706.05587).

Widths, biases and dropouts are those of the ResNeSt authors (zhanghang1989/PyTorch-Encoding, encoding/models/sseg/
{fcn,deeplab}.py); parameter names follow torchvision's heads. Every width is a fraction of the encoder's: 2048
channels give the published 512 (FCN) and 256 (DeepLabV3).

The heads whose names begin with MMSeg have mmsegmentation's shapes, for its checkpoints and recipes (1.2.2,
models/decode_heads/{aspp_head,fcn_head,decode_head}.py, with the arguments of its DeepLabV3 and FCN configs). ASPP has
a quarter of the encoder's channels (512 of 2048) and a 3x3 projection; the FCN head has two convolutions and a third
over their output and the encoder's features. Names are segkit's; `segkit.models.toolkits.formats` maps mmseg's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Dilation rates of ASPP's 3x3 convolutions by output stride, with the same field of view in the image.
ASPP_RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}


class FCNHead(nn.Sequential):
    """3x3 convolution to a quarter of the channels, norm, ReLU, dropout 0.1, 1x1 classifier.

    Maps `(B, C, h, w)` to logits `(B, K, h, w)`. It is also the auxiliary head on stage 3.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        inter = in_channels // 4
        super().__init__(
            *conv_norm_relu(in_channels, inter, kernel=3),
            nn.Dropout(0.1),
            nn.Conv2d(inter, num_classes, 1),
        )


class DeepLabV3Head(nn.Module):
    """ASPP, then 3x3 convolution, norm, ReLU, dropout 0.1, 1x1 classifier: `(B, C, h, w)` to logits `(B, K, h, w)`."""

    def __init__(self, in_channels: int, num_classes: int, rates: Sequence[int] = ASPP_RATES[8]) -> None:
        super().__init__()
        inter = in_channels // 8
        self.aspp = ASPP(in_channels, inter, rates)
        self.block = nn.Sequential(
            *conv_norm_relu(inter, inter, kernel=3),
            nn.Dropout(0.1),
            nn.Conv2d(inter, num_classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(B, K, h, w)`."""
        logits: Tensor = self.block(self.aspp(x))
        return logits


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: `(B, C, h, w)` to `(B, out_channels, h, w)`.

    A 1x1 convolution, three dilated 3x3 convolutions and a global average run in parallel and are joined by a 1x1
    convolution with channel dropout 0.5.
    """

    def __init__(self, in_channels: int, out_channels: int, rates: Sequence[int]) -> None:
        super().__init__()
        branches = [conv_norm_relu(in_channels, out_channels, kernel=1)]
        branches += [conv_norm_relu(in_channels, out_channels, kernel=3, dilation=rate) for rate in rates]
        branches += [nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm_relu(in_channels, out_channels, kernel=1))]
        self.convs = nn.ModuleList(branches)
        self.project = nn.Sequential(
            *conv_norm_relu(len(branches) * out_channels, out_channels, kernel=1),
            nn.Dropout2d(0.5),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the joined pyramid `(B, out_channels, h, w)`."""
        outputs = [conv(x) for conv in self.convs]
        # Upsampling one cell to h x w is a copy in every interpolation mode.
        outputs[-1] = outputs[-1].expand_as(outputs[0])
        joined: Tensor = self.project(torch.cat(outputs, dim=1))
        return joined


def conv_norm_relu(in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """Convolution that keeps h and w (no bias: the norm has one), batch norm, ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class MMSegASPPHead(nn.Module):
    """Global average, 1x1 and three dilated 3x3 convolutions in parallel, joined by a 3x3 one, 1x1 classifier.

    Maps `(B, C, h, w)` to logits `(B, K, h, w)`. The global average is joined first, not last as in `ASPP`.
    """

    def __init__(self, in_channels: int, num_classes: int, rates: Sequence[int] = ASPP_RATES[8]) -> None:
        super().__init__()
        inter = in_channels // 4
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm_relu(in_channels, inter, kernel=1))
        branches = [conv_norm_relu(in_channels, inter, kernel=1)]
        branches += [conv_norm_relu(in_channels, inter, kernel=3, dilation=rate) for rate in rates]
        self.branches = nn.ModuleList(branches)
        self.project = conv_norm_relu((1 + len(branches)) * inter, inter, kernel=3)
        self.classify = _classify(inter, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(B, K, h, w)`."""
        outputs = [branch(x) for branch in self.branches]
        # Upsampling one cell to h x w is a copy in every interpolation mode.
        pooled = self.pool(x).expand_as(outputs[0])
        logits: Tensor = self.classify(self.project(torch.cat([pooled, *outputs], dim=1)))
        return logits


class MMSegFCNHead(nn.Module):
    """Two 3x3 convolutions, a third over the input and their output, 1x1 classifier: to logits `(B, K, h, w)`."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        inter = in_channels // 4
        self.convs = nn.Sequential(
            conv_norm_relu(in_channels, inter, kernel=3),
            conv_norm_relu(inter, inter, kernel=3),
        )
        self.join = conv_norm_relu(in_channels + inter, inter, kernel=3)
        self.classify = _classify(inter, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(B, K, h, w)`."""
        logits: Tensor = self.classify(self.join(torch.cat([x, self.convs(x)], dim=1)))
        return logits


class MMSegAuxHead(nn.Module):
    """The auxiliary head on stage 3: one 3x3 convolution, 1x1 classifier, to logits `(B, K, h, w)`.

    In evaluation it equals `FCNHead`; in training it drops whole channels, where `FCNHead` drops single values.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(conv_norm_relu(in_channels, in_channels // 4, kernel=3))
        self.classify = _classify(in_channels // 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(B, K, h, w)`."""
        logits: Tensor = self.classify(self.convs(x))
        return logits


def _classify(in_channels: int, num_classes: int) -> nn.Sequential:
    """Channel dropout 0.1 and the 1x1 classifier, drawn from a normal distribution of standard deviation 0.01."""
    classifier = nn.Conv2d(in_channels, num_classes, 1)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.Dropout2d(0.1), classifier)
