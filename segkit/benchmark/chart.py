"""The figure beside the table of `segkit benchmark`: mIoU against the work that an image takes, one point a row."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from segkit.evaluation.plots import save_figure

X, Y, PUBLISHED = "GFLOPs/image", "mIoU", "published mIoU"


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the rows that have both numbers into a PNG, replaced in one step, each named in the legend.

    A ring is the published number, joined to the point by a line.
    """
    rows = [row for row in rows if row.get(X) and row.get(Y) is not None]
    figure = Figure(figsize=(8, 5 + 0.2 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for i, (name, row) in enumerate(zip(short_names([str(row["model"]) for row in rows]), rows, strict=True)):
        label = f"{name}, {row['protocol']}, {row['data']}" + (" (partial)" if row["partial"] else "")
        _point(axes, row, f"C{i % 10}", "os^Dv"[i // 10 % 5], label)
    if any(row.get(PUBLISHED) is not None for row in rows):
        axes.scatter([], [], facecolors="none", edgecolors="grey", label="published")
    _scale(axes, [float(row[X]) for row in rows])
    axes.set(xlabel="GFLOPs per image (all forwards of the protocol)", ylabel="mIoU (%)")
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside lower center", fontsize=8)
    save_figure(figure, path)


def short_names(models: Sequence[str]) -> list[str]:
    """The fewest last parts of each path that still tell different paths apart."""
    parts = [PurePath(model).parts for model in models]
    for length in range(1, max((len(p) for p in parts), default=1) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(set(models)):
            break
    return names


def _point(axes: Axes, row: Mapping[str, Any], colour: str, marker: str, label: str) -> None:
    x, y = float(row[X]), 100 * float(row[Y])
    axes.scatter([x], [y], color=colour, marker=marker, label=label.replace("$", r"\$"), zorder=3)
    if row.get(PUBLISHED) is not None:
        published = 100 * float(row[PUBLISHED])
        axes.plot([x, x], [y, published], color=colour, linewidth=0.8, alpha=0.6)
        axes.scatter([x], [published], facecolors="white", edgecolors=colour, marker=marker, zorder=3)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Protocols differ by factors, not by sums."""
    if values and max(values) > 5 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
