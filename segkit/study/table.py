"""The table of a study: the mIoU of each variant over its seeds, and what differs from the baseline.

A difference is paired: that of two runs of one seed, which draw the same images, crops and colours in the same order.
Its interval is Student's t over these differences, n - 1 degrees of freedom. It tells what other seeds would leave of
the difference; that the test images are a sample, too, is not in it (`segkit benchmark compare` is for that), nor is it
corrected for the number of variants.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.special import stdtrit

from segkit.errors import InputError
from segkit.evaluation.plots import BLUE, GREY, VERMILION
from segkit.evaluation.results import number_or_null
from segkit.evaluation.statistics import Interval
from segkit.files import parse_json
from segkit.study.plan import RESULT, Study
from segkit.text import markdown, percent, points

LEVEL = 0.95
RULE = f"difference: paired over seeds, Student's t at {100 * LEVEL:g} %, not corrected for the number of variants"


@dataclass(frozen=True)
class Row:
    """A variant: its mIoU, 0..1, by seed, and what it is above the baseline (NaN: unknown)."""

    name: str
    scores: Mapping[int, float]
    difference: Interval

    @property
    def shown(self) -> str:
        """`better` or `worse` where the interval is all on one side of 0, else `nothing`; empty without one."""
        if np.isnan(self.difference.low):
            return ""
        return "better" if self.difference.low > 0 else "worse" if self.difference.high < 0 else "nothing"

    def summary(self) -> tuple[float, float, float]:
        """The mean, minimum and maximum of the scores."""
        values = list(self.scores.values()) or [float("nan")]
        return float(np.mean(values)), min(values), max(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; NaN is None."""
        summary = dict(zip(("mean", "min", "max"), map(number_or_null, self.summary()), strict=True))
        return {"scores": dict(self.scores), **summary, "difference": self.difference.to_dict(), "shown": self.shown}


def gather(study: Study, output: Path) -> list[Row]:
    """A row for each variant, from the result files of the runs that are finished.

    Raises:
        InputError: One is not the result file of a segmentation test.
    """
    scores: dict[str, dict[int, float]] = {name: {} for name in study.variants}
    for path, run in ((run.folder(output) / RESULT, run) for run in study.runs):
        try:
            if path.is_file():
                scores[run.variant][run.seed] = float(parse_json(path.read_text(encoding="utf-8"))["scores"]["mIoU"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: no mIoU of `segkit test`; remove it, and run the study again") from error
    base = scores[study.baseline]
    paired = {name: [ours[seed] - base[seed] for seed in ours if seed in base] for name, ours in scores.items()}
    return [Row(name, ours, paired_difference(paired[name])) for name, ours in scores.items()]


def paired_difference(differences: Sequence[float]) -> Interval:
    """Mean of n paired differences with Student's t interval of n - 1 degrees of freedom; NaN where n is too small."""
    n = len(differences)
    mean = float(np.mean(differences)) if n else float("nan")
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2) * np.std(differences, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return Interval(mean, mean - half, mean + half)


def table(study: Study, rows: Sequence[Row]) -> str:
    """Markdown, with what must be known beside it."""
    cells: list[tuple[str, ...]] = [("variant", "mIoU, %", "range", "n", "difference", "interval", "shown")]
    for row in rows:
        (mean, low, high), d = map(percent, row.summary()), row.difference
        known = "-" if np.isnan(d.low) else f"{points(d.low)} to {points(d.high)}"
        differs = ("baseline", "", "") if row.name == study.baseline else (points(d.value), known, row.shown)
        cells.append((row.name, mean, f"{low} to {high}", str(len(row.scores)), *differs))
    done = sum(len(row.scores) for row in rows)
    return f"{markdown(cells, left=(0, 6))}\n\n{done} of {len(study.runs)} runs; {RULE}\n"


def figure(study: Study, rows: Sequence[Row]) -> Figure:
    """Draw all scores with mean and range on the left, and the differences with their intervals on the right."""
    drawn = Figure(figsize=(8, 0.42 * len(rows) + 1.0), layout="constrained")
    left, right = drawn.subplots(1, 2, sharey=True)
    for y, row in enumerate(rows):
        mean, low, high = (100 * x for x in row.summary())
        left.plot([low, high], [y, y], color=GREY)
        left.plot([100 * score for score in row.scores.values()], [y] * len(row.scores), "o", color=GREY, markersize=4)
        left.plot([mean], [y], "D", color=BLUE, markersize=6)
        if row.name != study.baseline:
            colour, d = {"better": BLUE, "worse": VERMILION}.get(row.shown, GREY), row.difference
            right.plot([100 * d.low, 100 * d.high], [y, y], color=colour, solid_capstyle="butt")
            right.plot([100 * d.value], [y], "o", color=colour)
    left.set_yticks(range(len(rows)), [row.name for row in rows])
    left.set(ylim=(len(rows) - 0.5, -0.5), xlabel="mIoU, %: each seed, mean, range")
    right.set(xlabel=f"points above {study.baseline}, {100 * LEVEL:g} % interval over seeds")
    right.axvline(0, color="black", linewidth=0.8)
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return drawn
