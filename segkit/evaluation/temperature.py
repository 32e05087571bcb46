"""Temperature scaling: the number T for which softmax(logits / T) is as sure as it is right.

T minimises the negative log likelihood of the true classes (Guo et al., ICML 2017, arXiv 1706.04599, section 4.2). That
is convex in 1 / T, so its slopes at a few temperatures enclose the minimum, and a cubic between them finds it: one pass
over the images, in constant memory, with the same result in any order.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.interpolate import CubicHermiteSpline
from scipy.optimize import brentq
from torch import Tensor

from segkit.errors import InputError
from segkit.metadata.label_space import IGNORE_INDEX

TEMPERATURES = tuple(2 ** (i / 2) for i in range(-4, 9))  # 1/4 to 16

_UNIT = 2.0**-20  # sums are rounded to multiples of it, so that they are exact in any order


class TemperatureFit:
    """Sums the negative log likelihood of pixels at several temperatures, with its first two derivatives.

    Args:
        temperatures: In rising order.
    """

    def __init__(self, temperatures: Sequence[float] = TEMPERATURES) -> None:
        self.temperatures = tuple(temperatures)
        self.pixels = 0
        self._sums = [[0, 0, 0] for _ in temperatures]  # in units of _UNIT; derivatives are by 1 / T

    def update(self, mask: Tensor, logits: Tensor) -> None:
        """Add pixels: train ids (B, H, W), 255 = ignored; finite logits or log probabilities, float (B, K, H, W)."""
        counted = (mask != IGNORE_INDEX).flatten()
        z = logits.movedim(1, 0).flatten(1)[:, counted].float()  # (B, K, H, W) -> (K, N)
        z = z - z.amax(dim=0)
        true = z.gather(0, mask.flatten()[counted].long()[None])[0]  # (N,)
        self.pixels += len(true)
        for sums, temperature in zip(self._sums, self.temperatures, strict=True):
            weights = (z / temperature).exp_()
            total = weights.sum(dim=0)
            mean = weights.mul_(z).sum(dim=0) / total
            spread = weights.mul_(z).sum(dim=0) / total - mean**2
            values = total.log() - true / temperature, mean - true, spread
            for i, value in enumerate(values):
                sums[i] += round(float(value.sum(dtype=torch.float64)) / _UNIT)

    @property
    def losses(self) -> list[float]:
        """The mean negative log likelihood, in nats, at each temperature.

        Raises:
            InputError: No pixel was added.
        """
        if not self.pixels:
            raise InputError("calibrate: no pixel of these images has a class in the truth; give others")
        return [sums[0] * _UNIT / self.pixels for sums in self._sums]

    def best(self) -> float:
        """The temperature with the least loss; the first or last one if it lies beyond them.

        Raises:
            InputError: No pixel was added.
        """
        inverse = 1 / np.array(self.temperatures[::-1])
        _, first, second = np.array(self._sums[::-1], float).T
        x, slope, bend = np.log(inverse), first * inverse, first * inverse + second * inverse**2  # by x
        rises = np.flatnonzero(slope >= 0)
        if not self.losses or not len(rises) or rises[0] == 0:
            return self.temperatures[0 if not len(rises) else -1]
        ends = slice(rises[0] - 1, rises[0] + 1)
        return math.exp(-brentq(CubicHermiteSpline(x[ends], slope[ends], bend[ends]), *x[ends]))
