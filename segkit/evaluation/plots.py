"""Figures of an evaluation: confusion matrix, reliability diagram, comparison of two models.

They are made to be read at 100 %: text keeps its size and the figure grows with the number of classes. Colours are safe
for colour-blind readers: ColorBrewer's orange and blue scales, and blue, vermilion and grey of Okabe and Ito (2008).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.textpath import TextPath

from segkit.arrays import Int64Array
from segkit.errors import printable
from segkit.evaluation.calibration import Reliability
from segkit.evaluation.comparison import Comparison, p_value
from segkit.evaluation.results import check_matrix, true_shares
from segkit.evaluation.scores import ratio
from segkit.files import write_bytes
from segkit.text import percent, points, shorten

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#8C8C8C"

DPI = 150
_LEAST_SHARE = 1e-3  # share of a true class; smaller ones stay white
_GAMMA = 0.4  # of the errors' scale: 1 % has a sixth of the range, 10 % two fifths
_MANY = 40  # classes; from here on cells are small and carry no numbers
_CORNER = "predicted \u2192"
_ABSENT = ListedColormap(["#D9D9D9"])
_IMAGE: dict[str, Any] = {"interpolation": "nearest", "aspect": "auto"}


def confusion_figure(matrix: Int64Array, class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix, each row as shares of its true class.

    Rows are true classes, with their IoU at the right end. The diagonal is blue; errors are orange, on a scale that
    shows 1 % too, white below 0.1 %; rows without truth are grey. Up to 40 classes the cells hold percentages.

    Args:
        matrix: int64 (K, K).
        class_names: K names.

    Raises:
        InputError: The matrix is not (K, K) of K names.
    """
    check_matrix(matrix, class_names)
    names = [plain_label(name) for name in class_names]
    count, cell = len(names), 0.42 if len(names) <= _MANY else 0.14  # inches
    size = 9.0 if count <= _MANY else 7.0  # points
    longest = max(_text_width(name, size) for name in names)
    margin = 0.2 + max(longest, _text_width(_CORNER, size * 1.15))  # bold is wider
    right = 0.75 + (longest + 0.1 if count > _MANY else 0)
    head = max(longest + 0.2, 0.45)  # of the upright names, and of the two lines in the corner
    side, top, bar = cell * count, head + 0.35, min(5, max(2.2, cell * count))
    title = "confusion matrix, % of each true class"
    width = max(margin + side + right + 0.75, _text_width(title, 11) + 0.4)
    height = top + (side + head if count > _MANY else max(side, bar) + 0.2)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((margin / width, 1 - (top + side) / height, side / width, side / height))
    errors = _draw_cells(axes, matrix)
    _label_classes(axes, names, matrix, size)
    _colour_bar(figure, errors, margin + side + right, top, bar)
    figure.text(0.15 / width, 1 - 0.1 / height, title, va="top", size=11)
    return figure


def save_figure(figure: Figure, output: Path, dpi: int = DPI) -> None:
    """Write a PNG atomically, with `dpi` pixels per inch."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=dpi)
    write_bytes(output, png.getvalue())


def reliability_figure(reliability: Reliability) -> Figure:
    """Draw accuracy over confidence with the gap to the diagonal and, below it, the share of pixels in each bin."""
    figure = Figure(figsize=(5.6, 6.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins = len(reliability.pixels)
    middles, filled = (np.arange(bins) + 0.5) / bins, reliability.pixels > 0
    accuracy, confidence = reliability.accuracy[filled], reliability.confidence[filled]
    upper.bar(middles[filled], accuracy, 1 / bins, color=BLUE, edgecolor="white", label="accuracy")
    upper.bar(middles[filled], confidence - accuracy, 1 / bins, accuracy, color="none", edgecolor=VERMILION,
              hatch="////", label="gap to the mean confidence")  # fmt: skip
    upper.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="as sure as right")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of right pixels", title="reliability")
    errors = (reliability.expected_error, reliability.maximum_error)
    text = "expected calibration error {} %\nlargest gap of a bin {} %".format(*map(percent, errors))
    upper.text(0.97, 0.05, text, transform=upper.transAxes, ha="right", size=11, bbox={"color": "white", "alpha": 0.85})
    upper.legend(frameon=False, loc="upper left")
    share = reliability.pixels[filled] / max(1, reliability.pixels.sum())
    lower.bar(middles[filled], 100 * share, 1 / bins, color=GREY, edgecolor="white")
    lower.set(ylabel="% of pixels", xlabel="confidence of the predicted class", yscale="log")
    lower.yaxis.set_major_formatter("{x:g}")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def comparison_figure(comparison: Comparison, class_names: Sequence[str], a: str = "A", b: str = "B") -> Figure:
    """Draw B - A of each class with its interval, sorted, the mIoU on top; real differences (p < 0.05) are coloured.

    Args:
        comparison: The comparison of K classes; those without truth are left out.
        class_names: K names.
        a: Name of the first model.
        b: Name of the second.
    """
    a, b = plain_label(a), plain_label(b)
    kept = [i for i, d in enumerate(comparison.classes) if not np.isnan(d.difference.value)]
    kept.sort(key=lambda i: comparison.classes[i].difference.value)
    rows = [(plain_label(class_names[i]), comparison.classes[i]) for i in kept]
    rows.append((comparison.mean, comparison.miou))
    figure = Figure(figsize=(8, 0.2 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    for y, (name, row) in enumerate(rows):
        low, value, high = (100 * x for x in (row.difference.low, row.difference.value, row.difference.high))
        colour = {"A": VERMILION, "B": BLUE}.get(row.verdict, GREY)
        thick = 2.2 if name == comparison.mean else 1.4
        axes.plot([low, high], [y, y], color=colour, linewidth=thick, solid_capstyle="butt")
        axes.plot([value], [y], marker="D" if name == comparison.mean else "o", color=colour, markersize=3 + thick)
        text = f"{points(row.difference.value):>6}  {p_value(row.p)}"
        axes.text(1.01, y, text, transform=axes.get_yaxis_transform(), va="center", size=7, family="monospace")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axhline(len(rows) - 1.5, color=GREY, linewidth=0.6)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], size=8)
    axes.set(ylim=(-0.8, len(rows) - 0.2), xlabel=f"IoU of {b} - {a}, points, {100 * comparison.level:g} % interval")
    axes.set_title(comparison.sentence(a, b), size=8, loc="right")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def waterfall_figure(start: float, steps: Sequence[tuple[str, float]], claimed: float | None = None) -> Figure:
    """Draw how an mIoU changes step by step: bars from each value to the next, gains blue, losses orange.

    Args:
        start: The measured mIoU, 0..1.
        steps: What was changed, and the mIoU then.
        claimed: The mIoU to be explained, a dashed line.
    """
    names = ["measured", *(name for name, _ in steps)]
    values = 100 * np.array([start, *(miou for _, miou in steps)])
    before = np.concatenate([[0.0], values[:-1]])
    colours = [GREY, *(BLUE if step > 0 else VERMILION for step in np.diff(values))]
    figure = Figure(figsize=(8, 0.36 * len(names) + 1.1), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(names)), values - before, left=before, color=colours, height=0.6)
    for y, value in enumerate(values):
        axes.text(max(value, before[y]) + 0.8, y, f"{value:.2f}", va="center", size=8)
    if claimed is not None:
        axes.axvline(100 * claimed, color="black", linestyle="--", linewidth=1)
        axes.text(100 * claimed, -0.6, f"claimed {100 * claimed:.2f}", ha="center", size=8)
    axes.set_yticks(range(len(names)), [plain_label(name, 60) for name in names], size=8)
    axes.set(xlim=(0, max(*values, 100 * (claimed or 0)) + 8), xlabel="mIoU, %")
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def _draw_cells(axes: Axes, matrix: Int64Array) -> AxesImage:
    """Errors in orange, the diagonal in blue, rows without truth in grey; returns the errors, for their colour bar."""
    share, count = true_shares(matrix), len(matrix)
    diagonal, absent = np.eye(count, dtype=bool), matrix.sum(axis=1)[:, None].repeat(count, 1) == 0
    wrong = np.ma.masked_array(share, diagonal | (share < _LEAST_SHARE))
    errors = axes.imshow(wrong, cmap="YlOrBr", norm=PowerNorm(_GAMMA, 0, 1), **_IMAGE)
    axes.imshow(np.ma.masked_array(share, ~diagonal), cmap="Blues", vmin=0, vmax=1, **_IMAGE)
    axes.imshow(np.ma.masked_array(absent, ~absent), cmap=_ABSENT, **_IMAGE)
    lines = np.arange(0, count + 1, 1 if count <= _MANY else 10) - 0.5
    axes.hlines(lines, -0.5, count - 0.5, color="#BFBFBF", linewidth=0.5)
    axes.vlines(lines, -0.5, count - 0.5, color="#BFBFBF", linewidth=0.5)
    if count <= _MANY:
        for y, x in zip(*np.nonzero(share >= _LEAST_SHARE), strict=True):
            points = 100 * share[y, x]
            colour = "white" if points > (60 if x == y else 30) else "black"
            text = f"{points:.0f}" if points >= 9.95 else f"{points:.1f}"
            axes.text(x, y, text, ha="center", va="center", size=7, color=colour)
    return errors


def _label_classes(axes: Axes, names: Sequence[str], matrix: Int64Array, size: float) -> None:
    count = len(names)
    axes.set_xticks(range(count), names, rotation=90, size=size)
    axes.set_yticks(range(count), names, size=size)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=count > _MANY, pad=2)
    axes.spines[:].set_visible(False)
    true, predicted, right = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    iou = ratio(right, true + predicted - right)
    place = axes.get_yaxis_transform()
    style: dict[str, Any] = {"size": size, "va": "center"}
    for y, name in enumerate(names):
        text = percent(iou[y], 1)
        axes.text(1.0, y, f" {text:>5}", family="monospace", transform=place, **style)
        if count > _MANY:  # far from the names on the left
            axes.annotate(name, (1.0, y), (4.2 * size, 0), textcoords="offset points", xycoords=place, **style)
    note: dict[str, Any] = {"size": size, "weight": "bold", "xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate("   IoU", (1, 1), (0, 4), family="monospace", **note)
    axes.annotate(f"{_CORNER}\n\u2193 true", (0, 1), (-4, 4), ha="right", **note)


def _colour_bar(figure: Figure, errors: AxesImage, left: float, top: float, height: float) -> None:
    """Place the scale of the errors; all in inches from the upper left corner."""
    width, total = figure.get_size_inches()
    bar = figure.add_axes((left / width, 1 - (top + height) / total, 0.16 / width, height / total))
    figure.colorbar(errors, cax=bar, ticks=[0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    bar.set_yticklabels(["0", "0.1", "1", "5", "10", "25", "50", "100"], size=8)
    bar.set_title("errors,\n% of true", size=8)


def _text_width(text: str, size: float) -> float:
    """The width of a text in inches."""
    return float(TextPath((0, 0), text, size=size).get_extents().width) / 72


def plain_label(name: str, longest: int = 24) -> str:
    """A name for Matplotlib: shortened, and escaped so that it is no formula and has no control characters."""
    return shorten(printable(name), longest).replace("$", r"\$")
