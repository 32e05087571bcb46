"""Small protocols of every way of fusing views, and a network that takes no time."""

from dataclasses import replace

import torch
from torch import nn

from segkit.inference.protocols import Protocol, get

AUTHORS = replace(get("encoding-ms"), base_size=40, window=36, scales=(0.5, 1.0, 1.75))


class TinyNetwork(nn.Module):
    """Two convolutions to stride 8 and five classes."""

    align_corners = True

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU(), nn.Conv2d(8, 5, 3, 2, 1))
        for i, parameter in enumerate(self.parameters()):
            spread = 1.5 / parameter[0].numel() ** 0.5
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) * spread

    def forward(self, x):
        return {"out": self.layers(x)}


PROTOCOLS = {
    "authors": AUTHORS,
    "authors, no flip": replace(AUTHORS, flip=False),
    "ms-flip": replace(get("ms-flip"), scales=(0.5, 1.0, 1.3)),
    "window": replace(get("window"), window=32),
    "logit mean": Protocol("l", scales=(0.8, 1.2), flip=True, fusion="logit_mean", window=31),
    "whole": get("whole"),
    "whole, logits, flip": Protocol("f", flip=True, fusion="logit_mean"),
    "whole, exp, flip": Protocol("e", flip=True, fusion="exp_sum"),
    "csail": replace(get("csail-ms"), base_size=60, long_limit=100),
    "mmseg-ms": replace(get("mmseg-ms"), scales=(0.5, 1.0)),
}
