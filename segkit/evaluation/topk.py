"""Top-1 and top-5 accuracy, counted exactly over several processes, with the interval of Wilson."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from segkit import __version__
from segkit.evaluation.results import command_line, now, versions
from segkit.evaluation.statistics import Interval
from segkit.text import aligned, percent

_Z = 1.959963984540054  # standard deviations within which 95 % of a normal distribution lie


@dataclass(frozen=True)
class Accuracy:
    """The number of images, of those whose class comes first, and of those whose class is among the first five."""

    images: int
    first: int
    among_five: int

    @property
    def top1(self) -> Interval:
        """Share of images whose class is first, 0..1, with its interval; NaN without images."""
        return wilson(self.first, self.images)

    @property
    def top5(self) -> Interval:
        """Share of images whose class is among the first five."""
        return wilson(self.among_five, self.images)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a result file, with the versions of the packages used."""
        scores = {"top1": self.top1.to_dict(), "top5": self.top5.to_dict(), "rule": "Wilson interval, 95 %"}
        made = {"segkit": __version__, "date": now(), "command": command_line(), "versions": versions()}
        return made | {"num_images": self.images, "scores": scores}

    def table(self) -> str:
        """Top-1 and top-5 in percent, each with its interval."""
        rows = [("", "%", "95 % interval")]
        for name, found in (("top-1", self.top1), ("top-5", self.top5)):
            rows.append((name, percent(found.value), f"{percent(found.low)} to {percent(found.high)}"))
        return aligned(rows)


class TopK:
    """Counts images; one a process, and one `all_reduce` at the end.

    Args:
        device: The device of the counts; that of the logits, so that `update` waits for nothing.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(3, dtype=torch.int64, device=device)  # images, first, among five

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Add images: logits `(B, K)`, classes int64 `(B,)`."""
        places = ranks(logits, label)
        self.counts += torch.stack([torch.ones_like(places), places < 1, places < 5]).sum(dim=1)

    def all_reduce(self) -> None:
        """Sum the counts over all processes."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.counts)

    def compute(self) -> Accuracy:
        """Return the counts so far as an `Accuracy`."""
        return Accuracy(*(int(count) for count in self.counts))


def ranks(logits: Tensor, label: Tensor) -> Tensor:
    """The number of classes that rank before the true one, int64 `(B,)`.

    Of equal logits the lower class ranks first, so that the device does not matter; a NaN ranks before everything.
    """
    true = logits.gather(1, label[:, None])  # (B, 1)
    classes = torch.arange(logits.shape[1], device=logits.device)
    before = ~(logits <= true) | ((logits == true) & (classes < label[:, None]))
    return before.sum(dim=1)


def wilson(successes: int, trials: int) -> Interval:
    """A share with its 95 % interval (Wilson 1927), which stays within 0..1 even if all or none succeed."""
    if not trials:
        return Interval(math.nan, math.nan, math.nan)
    share, z2 = successes / trials, _Z**2 / trials
    middle = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(share * (1 - share) * z2 + z2**2 / 4) / (1 + z2)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))
