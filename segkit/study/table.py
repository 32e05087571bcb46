"""The table of a study: the score of each variant over its seeds, and what differs from the baseline.

The score is the mIoU, or the top-1 accuracy of classifiers.

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
    """A variant: its scores, 0..1, by seed, and what they are above the baseline (NaN: unknown)."""

    name: str
    metric: str
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
        return {
            "metric": self.metric,
            "scores": dict(self.scores),
            **summary,
            "difference": self.difference.to_dict(),
            "shown": self.shown,
        }


def gather(study: Study, output: Path) -> list[Row]:
    """A row for each variant, from the result files of the runs that are finished.

    Raises:
        InputError: One is not the result file of a test, or one of another metric than the others.
    """
    scores: dict[str, dict[int, float]] = {name: {} for name in study.variants}
    metrics: dict[str, Path] = {}
    for path, run in ((run.folder(output) / RESULT, run) for run in study.runs):
        if path.is_file():
            metric, scores[run.variant][run.seed] = _score(path)
            metrics.setdefault(metric, path)
    if len(metrics) > 1:
        found = " and ".join(f"{metric} ({path})" for metric, path in metrics.items())
        raise InputError(f"{output}: its runs are scored by {found}; compare those of one task in a study")
    metric = next(iter(metrics), "score")
    base = scores[study.baseline]
    paired = {name: [ours[seed] - base[seed] for seed in ours if seed in base] for name, ours in scores.items()}
    return [Row(name, metric, ours, paired_difference(paired[name])) for name, ours in scores.items()]


def _score(path: Path) -> tuple[str, float]:
    """The metric of a result file, and the score, 0..1."""
    try:
        scores = parse_json(path.read_text(encoding="utf-8"))["scores"]
        return ("mIoU", float(scores["mIoU"])) if "mIoU" in scores else ("top-1", float(scores["top1"]["value"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no mIoU or top-1 of `segkit test`; remove it, and run the study again") from error


def paired_difference(differences: Sequence[float]) -> Interval:
    """Mean of n paired differences with Student's t interval of n - 1 degrees of freedom; NaN where n is too small."""
    n = len(differences)
    mean = float(np.mean(differences)) if n else float("nan")
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2) * np.std(differences, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return Interval(mean, mean - half, mean + half)


def table(study: Study, rows: Sequence[Row]) -> str:
    """Markdown, with what must be known beside it."""
    cells: list[tuple[str, ...]] = [
        ("variant", f"{rows[0].metric}, %", "range", "n", "difference", "interval", "shown")
    ]
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
    left.set(ylim=(len(rows) - 0.5, -0.5), xlabel=f"{rows[0].metric}, %: each seed, mean, range")
    right.set(xlabel=f"points above {study.baseline}, {100 * LEVEL:g} % interval over seeds")
    right.axvline(0, color="black", linewidth=0.8)
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return drawn
