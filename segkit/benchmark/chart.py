"""The image beside the table of `segkit benchmark`: mIoU against the work that an image takes, one point a row."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Bbox

from segkit.evaluation.plots import save_figure

X, Y = "GFLOPs/image", "mIoU"

DPI = 120

# right, up (points), alignment: where a name may stand beside its point, the best place first
SIDES = (
    (8,  0,  "left",   "center"),
    (-8, 0,  "right",  "center"),
    (0,  9,  "center", "bottom"),
    (0,  -9, "center", "top"),
)  # fmt: skip


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the rows that have both numbers into a PNG, replaced in one step; a colour for each data set.

    A ring is the published number, joined to the point by a line.
    """
    rows = [row for row in rows if row.get(X) and row.get(Y) is not None]
    figure = Figure(figsize=(8, 5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    sets = list(dict.fromkeys(str(row["data"]) for row in rows))
    for row in rows:
        _point(axes, row, f"C{sets.index(str(row['data']))}")
    for i, data in enumerate(sets):
        axes.scatter([], [], color=f"C{i}", label=data)
    if any(row.get("published mIoU") is not None for row in rows):
        axes.scatter([], [], facecolors="none", edgecolors="grey", label="published")
    _scale(axes, [float(row[X]) for row in rows])
    axes.set(xlabel="GFLOPs per image (all forwards of the protocol)", ylabel="mIoU (%)")
    axes.margins(x=0.25, y=0.14)
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside upper center", ncols=len(sets) + 1)
    _label(figure, axes, rows)
    save_figure(figure, path, DPI)


def short_names(models: Sequence[str]) -> list[str]:
    """The fewest last parts of each path that still tell different paths apart."""
    parts = [PurePath(model).parts for model in models]
    for length in range(1, max((len(p) for p in parts), default=1) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(set(models)):
            break
    return names


def _point(axes: Axes, row: Mapping[str, Any], colour: str) -> None:
    x, y = float(row[X]), 100 * float(row[Y])
    axes.scatter([x], [y], color=colour, zorder=3)
    if row.get("published mIoU") is not None:
        published = 100 * float(row["published mIoU"])
        axes.plot([x, x], [y, published], color=colour, linewidth=0.8, alpha=0.6)
        axes.scatter([x], [published], facecolors="white", edgecolors=colour, zorder=3)


def _label(figure: Figure, axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Name each point, on the first of its sides where the name covers no point and no other name."""
    figure.draw_without_rendering()  # fixes where everything lies, in pixels
    points = [(row[X], row[Y]) for row in rows]
    points += [(row[X], row["published mIoU"]) for row in rows if row.get("published mIoU") is not None]
    spots = [axes.transData.transform((float(x), 100 * float(y))) for x, y in points]
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in spots]
    for name, row in zip(short_names([str(row["model"]) for row in rows]), rows, strict=True):
        text = f"{name}, {row['protocol']}" + (" (partial)" if row["partial"] else "")
        tried = [_annotate(axes, row, text, side) for side in SIDES]
        boxes = [label.get_window_extent() for label in tried]
        covered = [box.count_overlaps(taken) + (not _inside(box, axes)) for box in boxes]
        best = covered.index(min(covered))
        taken.append(boxes[best])
        for label in tried[:best] + tried[best + 1 :]:
            label.remove()


def _annotate(axes: Axes, row: Mapping[str, Any], text: str, side: tuple[int, int, str, str]) -> Annotation:
    right, up, horizontal, vertical = side
    return axes.annotate(
        text,
        (float(row[X]), 100 * float(row[Y])),
        xytext=(right, up),
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        fontsize=8,
    )


def _inside(box: Bbox, axes: Axes) -> bool:
    frame = axes.get_window_extent()
    return bool(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Protocols differ by factors, not by sums."""
    if values and max(values) > 5 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
