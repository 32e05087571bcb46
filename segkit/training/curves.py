"""One picture of a training run: loss, learning rate and validation scores over the steps, from the log's CSV file.

The file is the `metrics.csv` of Lightning's CSVLogger: one row a logging event, a `step` column, and empty cells for
what was not logged then.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from segkit.errors import InputError
from segkit.files import write_bytes

Curve = tuple[list[float], list[float]]  # steps, values

# title, which columns belong in it, noisy from step to step: the drawing order of the figure
_PANELS: tuple[tuple[str, Callable[[str], bool], bool], ...] = (
    ("loss",             lambda name: "loss" in name.lower(),                                               True),
    ("learning rate",    lambda name: name.split("/")[0].lower().startswith("lr"),                          False),
    ("validation score", lambda name: name.startswith("val/") and name.lower().endswith(("miou", "accuracy")), False),
)  # fmt: skip


def plot_curves(metrics_csv: Path, output: Path) -> None:
    """Draw the curves of a run into one PNG, side by side; columns that are absent are left out.

    Args:
        metrics_csv: written by Lightning's CSVLogger.
        output: the PNG file; replaced in one step, so that a reader never sees half of it.

    Raises:
        InputError: the file is absent, or has no loss, learning rate or score in it.
    """
    curves = read_curves(metrics_csv)
    chosen = [(title, {k: v for k, v in curves.items() if belongs(k)}, noisy) for title, belongs, noisy in _PANELS]
    chosen = [panel for panel in chosen if panel[1]]
    if not chosen:
        raise InputError(f"{metrics_csv}: no loss, lr or val/ score was logged in it, so there is nothing to draw")
    figure = Figure(figsize=(5.2 * len(chosen), 3.6), layout="constrained")
    for axes, (title, shown, noisy) in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        _draw(axes, title, shown, noisy)
    _save(figure, output)


def read_curves(metrics_csv: Path) -> dict[str, Curve]:
    """Read every numeric column of a metrics file as (steps, values); cells that are empty or not finite are skipped.

    Raises:
        InputError: the file is absent or has no `step` column.
    """
    if not metrics_csv.is_file():
        raise InputError(f"{metrics_csv}: no such file; it is written by a run with the CSVLogger")
    with metrics_csv.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "step" not in rows[0]:
        raise InputError(f"{metrics_csv}: no rows with a 'step' column; is it the metrics.csv of a run?")
    names = [name for name in rows[0] if name not in ("step", "epoch")]
    curves = {name: _column(rows, name) for name in names}
    return {name: curve for name, curve in curves.items() if curve[0]}


def _column(rows: Sequence[Mapping[str, str]], name: str) -> Curve:
    points = [(_number(row["step"]), _number(row[name])) for row in rows]
    kept = [(step, value) for step, value in points if math.isfinite(step) and math.isfinite(value)]
    return [step for step, _ in kept], [value for _, value in kept]


def _number(cell: str | None) -> float:
    """NaN for what is no number: the last row of a killed run may be cut short."""
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def _draw(axes: Axes, title: str, curves: Mapping[str, Curve], noisy: bool) -> None:
    for i, (name, (steps, values)) in enumerate(curves.items()):
        marker = "" if len(values) > 30 else "."
        smoothed = noisy and len(values) > 100
        if smoothed:
            axes.plot(steps, values, color=f"C{i}", alpha=0.25)
        axes.plot(steps, _smooth(values, len(values) // 50) if smoothed else values, marker=marker, color=f"C{i}",
                  label=f"{name} (smoothed)" if smoothed else name)  # fmt: skip
    axes.set(title=title, xlabel="step")
    if all(min(values) >= 0 for _, values in curves.values()):
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _smooth(values: Sequence[float], radius: int) -> list[float]:
    """Mean over a centred window, cut off at both ends."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    spans = [(max(0, i - radius), min(len(values), i + radius + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def _save(figure: Figure, output: Path) -> None:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    write_bytes(output, png.getvalue())
