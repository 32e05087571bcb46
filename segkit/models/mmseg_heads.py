"""Heads of mmsegmentation's shapes, for its checkpoints and recipes: ASPPHead and FCNHead (mmseg 1.2.2,
models/decode_heads/{aspp_head,fcn_head,decode_head}.py, with the arguments of its DeepLabV3 and FCN configs).

They are wider than the authors' heads: ASPP has a quarter of the encoder's channels (512 of 2048) and a 3x3 projection,
the FCN head two convolutions and a third one over the encoder's features beside theirs. Names are segkit's;
`segkit.models.toolkits.formats` has mmseg's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segkit.models.heads import ASPP_RATES, conv_norm_relu


class MMSegASPPHead(nn.Module):
    """Global average, 1x1 and three dilated 3x3 convolutions side by side, joined by a 3x3 one: to logits.

    `(B, C, h, w)` to `(B, K, h, w)`. The global average comes first in the join, not last as in `ASPP`.
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
    """Two 3x3 convolutions, a third over their output beside the input, 1x1 classifier: to logits `(B, K, h, w)`."""

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

    In evaluation it equals `FCNHead`; training drops whole channels here and single values there.
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
    """Channel dropout 0.1 and the 1x1 classifier, which starts from a normal distribution of deviation 0.01."""
    classifier = nn.Conv2d(in_channels, num_classes, 1)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.Dropout2d(0.1), classifier)
