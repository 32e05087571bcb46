"""Why a measured mIoU differs from a claimed one: settings changed one at a time, on the same images.

A score is a property of weights, split and protocol, and of how images become input, numbers become classes, and pixels
become a mean. Each of these is a field of `Setting`; a `Change` is one of them as another toolkit, or a mistake, has
it. `explain` looks for the change that brings the score closest to the claim, applies it, and looks again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from segkit.arrays import Float64Array
from segkit.benchmark.explain.judge import Judge
from segkit.benchmark.explain.setting import KINDS, Change, Setting, changes
from segkit.errors import InputError
from segkit.evaluation.results import number_or_null
from segkit.evaluation.statistics import Interval
from segkit.text import markdown, percent, points

MOST_STEPS = 5
REACHED = 5e-4  # of the mIoU: a claim has one digit after the point, in percent, or two
_OF_INPUT = {"normalization", "channels", "align_corners"}


@dataclass(frozen=True)
class Step:
    """A change and what it did.

    Attributes:
        what: The change, in words.
        miou: The mIoU after it, 0..1.
        difference: To the setting before it, with its interval over images.
    """

    what: str
    miou: float
    difference: Interval

    def to_dict(self) -> dict[str, Any]:
        """The change as plain data for JSON; an mIoU that is no number is null."""
        return {"change": self.what, "mIoU": number_or_null(self.miou), "difference": self.difference.to_dict()}


@dataclass(frozen=True)
class Explanation:
    """The way from a measured mIoU towards a claimed one.

    Attributes:
        measured: The mIoU as the model and the data say it is to be measured.
        claimed: The mIoU that somebody claims; None: the best that was found counts as such.
        steps: Changes, each on top of those before it.
        alone: Each single change of the first setting, largest effect first.
    """

    measured: float
    claimed: float | None
    steps: tuple[Step, ...]
    alone: tuple[Step, ...]

    @property
    def reached(self) -> float:
        """The mIoU after all steps."""
        return self.steps[-1].miou if self.steps else self.measured


def explain(judge: Judge, setting: Setting, claimed: float | None = None) -> Explanation:
    """Look for the changes that lead from the score of a setting to a claimed one.

    A change counts if its difference is more than chance over the images. A single one that arrives at the claim
    explains it, and else two that do together; of several the likelier mistake, by the order of `KINDS`. Otherwise the
    change that comes closest is made, and the search goes on from there. Without a claim it is the one that raises the
    score most.

    Args:
        judge: The model and the images.
        setting: How the model and the data say it is to be measured.
        claimed: The mIoU, 0..1.
    """
    base = judge.counts(setting), setting.metric
    measured = now = judge.miou(*base)
    steps: list[Step] = []
    alone: tuple[Step, ...] = ()
    while len(steps) < MOST_STEPS and not (claimed is not None and abs(now - claimed) < REACHED):
        singles = list(changes(judge.model, setting))
        tried = _try(judge, setting, base, [(change,) for change in singles])
        alone = alone or tuple(sorted((step for _, step in tried), key=lambda step: -abs(step.difference.value)))
        best = _arriving(tried, claimed)
        if best is None and claimed is not None:
            best = _arriving(_try(judge, setting, base, _pairs(singles), claimed), claimed)
        best = best or _closest(tried, now, claimed)
        if best is None:
            break
        for change in best:
            after = judge.counts(change(setting)), change(setting).metric
            steps.append(Step(change.what, judge.miou(*after), judge.difference(base, after)))
            setting, base, now = change(setting), after, steps[-1].miou
        judge.forget(setting)
    return Explanation(measured, claimed, tuple(steps), alone)


_Tried = list[tuple[tuple[Change, ...], Step]]


def _try(
    judge: Judge,
    setting: Setting,
    base: tuple[Float64Array, str],
    among: Iterable[tuple[Change, ...]],
    claimed: float | None = None,
) -> _Tried:
    """Changes, or several at once, that make a difference; with a claim, only those that arrive at it."""
    tried = []
    for several in among:
        changed = setting
        for change in several:
            changed = change(changed)
        try:
            after = judge.counts(changed), changed.metric
        except InputError:  # a model need not take what others would have shown it
            continue
        miou = judge.miou(*after)
        if miou != judge.miou(*base) and (claimed is None or abs(miou - claimed) < REACHED):
            what = ", and ".join(change.what for change in several)
            tried.append((several, Step(what, miou, judge.difference(base, after))))
    return tried


def _arriving(tried: _Tried, claimed: float | None) -> tuple[Change, ...] | None:
    """The likeliest that gives the claimed mIoU."""
    real = [c for c, step in tried if claimed is not None and abs(step.miou - claimed) < REACHED]
    return min(real, key=lambda several: sum(KINDS.index(change.kind) for change in several), default=None)


def _closest(tried: _Tried, now: float, claimed: float | None) -> tuple[Change, ...] | None:
    """The change that helps most, if one helps by more than chance."""

    def gain(step: Step) -> float:
        return step.difference.value if claimed is None else abs(now - claimed) - abs(step.miou - claimed)

    real = [(gain(step), change) for change, step in tried if gain(step) >= REACHED and _is_real(step.difference)]
    return max(real, key=lambda pair: pair[0], default=(0.0, None))[1]


def _is_real(difference: Interval) -> bool:
    return difference.low > 0 or difference.high < 0


def _pairs(singles: Sequence[Change]) -> Iterator[tuple[Change, Change]]:
    """Pairs that cost no forward of their own, or that are mistakes of the input."""
    for pair in combinations(singles, 2):
        if pair[0].fields.keys().isdisjoint(pair[1].fields):
            of_network = [change.kind for change in pair if not change.only_counts]
            if len(of_network) < 2 or set(of_network) <= _OF_INPUT:
                yield pair


def report(explanation: Explanation) -> str:
    """A Markdown table of the way from the measured to the claimed mIoU, and of each change alone."""
    rows = [("", "mIoU, %", "difference", "95 % interval"), ("measured", percent(explanation.measured), "", "")]
    rows += [_row(step) for step in explanation.steps]
    if explanation.claimed is not None:
        left = explanation.claimed - explanation.reached
        rows += [("not explained", "", points(left), ""), ("claimed", percent(explanation.claimed), "", "")]
    alone = [("each change alone", "mIoU, %", "difference", "95 % interval"), *map(_row, explanation.alone)]
    return f"{markdown(rows)}\n\n{markdown(alone)}"


def _row(step: Step) -> tuple[str, str, str, str]:
    low, high = (points(end) for end in (step.difference.low, step.difference.high))
    return step.what, percent(step.miou), points(step.difference.value), f"{low} to {high}"
