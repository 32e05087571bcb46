"""Two figures of a training run, from its `metrics.csv`: its curves over the steps, and the IoU of each class.

Lightning's CSVLogger writes one row for each logging event, with a `step` column and empty cells for values that were
not logged then. A resumed run may log a step again: the last value counts.
"""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger

from segkit.errors import InputError
from segkit.evaluation.plots import save_figure
from segkit.evaluation.report.content import CLASS_IOU, is_loss, is_rate
from segkit.text import percent, shorten
from segkit.training.run_folder import METRICS

Curve = tuple[list[float], list[float]]  # steps, values

# title, which columns belong in it, noisy from step to step: the drawing order of the figure
_PANELS: tuple[tuple[str, Callable[[str], bool], bool], ...] = (
    ("loss",             is_loss,                                                                              True),
    ("learning rate",    is_rate,                                                                              False),
    ("validation score", lambda name: name.startswith("val/") and name.lower().endswith(("miou", "accuracy")), False),
)  # fmt: skip

_DPI = 120
_BLOCK = 60  # classes in one column; more are drawn in several blocks
_TICKS = 8  # labels below a block, at most
_LONGEST = 28  # characters of a class name


class CurvePlotter(Callback):
    """Draws `curves.png` and `class_iou.png` beside `metrics.csv` after every validation and at the end of `fit`."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Redraw both figures, so that a run in progress can be followed."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._draw(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw both figures of the whole run."""
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        logger = next((lg for lg in trainer.loggers if isinstance(lg, CSVLogger)), None)
        if logger is None or not trainer.is_global_zero:
            return
        logger.save()
        metrics = Path(logger.log_dir) / METRICS
        if metrics.is_file():
            for plot, name in ((plot_curves, "curves.png"), (plot_class_iou, "class_iou.png")):
                with suppress(InputError):  # nothing to draw before the first loss or score is logged
                    plot(metrics, metrics.with_name(name))


def plot_curves(metrics_csv: Path, output: Path) -> None:
    """Draw the curves of a run into one PNG, side by side; columns that are absent are left out.

    Args:
        metrics_csv: Written by Lightning's CSVLogger.
        output: The PNG file; replaced in one step, so that a reader never sees half of it.

    Raises:
        InputError: The file is absent, or has no loss, learning rate or score in it.
    """
    curves = {name: curve for name, curve in read_curves(metrics_csv).items() if not name.startswith(CLASS_IOU)}
    chosen = [(title, {k: v for k, v in curves.items() if belongs(k)}, noisy) for title, belongs, noisy in _PANELS]
    chosen = [panel for panel in chosen if panel[1]]
    if not chosen:
        raise InputError(f"{metrics_csv}: no loss, lr or val/ score was logged in it, so there is nothing to draw")
    figure = Figure(figsize=(5.2 * len(chosen), 3.6), layout="constrained")
    for axes, (title, shown, noisy) in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        _draw(axes, title, shown, noisy)
    save_figure(figure, output, _DPI)


def plot_class_iou(metrics_csv: Path, output: Path) -> None:
    """Draw `read_class_iou` as a heat map into one PNG: a row for each class, a column for each validation.

    Args:
        metrics_csv: Written by Lightning's CSVLogger.
        output: The PNG file; replaced in one step.

    Raises:
        InputError: The file is absent, or has no IoU of a class in it.
    """
    scores = read_class_iou(metrics_csv)
    count, validations = scores.iou.shape
    blocks = -(-count // _BLOCK)
    rows = -(-count // blocks)
    inches = blocks * (2.8 + min(4.0, max(1.2, 0.3 * validations))) + 0.8, 1.2 + 0.19 * rows
    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.subplots(1, blocks, squeeze=False)[0]
    for i, ax in enumerate(axes):
        image = _draw_heat_map(ax, scores, slice(i * rows, (i + 1) * rows), rows)
    figure.suptitle("IoU of each class in %, the best of the last validation first", fontsize=11)
    bar = figure.colorbar(image, ax=list(axes), fraction=0.02, pad=0.01)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("grey: absent", fontsize=8)
    save_figure(figure, output, _DPI)


def read_curves(metrics_csv: Path) -> dict[str, Curve]:
    """Read every numeric column of a metrics file as (steps, values); cells that are empty or not finite are skipped.

    Raises:
        InputError: The file is absent or has no `step` column.
    """
    rows = _rows(metrics_csv)
    names = [name for name in rows[0] if name not in ("step", "epoch")]
    curves = {name: _column(rows, name) for name in names}
    return {name: curve for name, curve in curves.items() if curve[0]}


@dataclass(frozen=True)
class ClassIoU:
    """IoU of K classes in V validations of a run.

    Attributes:
        class_names: K names, in descending order of IoU in the last validation, classes absent from it last.
        iou: Float64 (K, V), 0..1; NaN where a class was absent.
        at: V epochs or steps, ascending.
        unit: Whether `at` counts epochs or, where an epoch had several validations, steps.
    """

    class_names: tuple[str, ...]
    iou: npt.NDArray[np.float64]
    at: tuple[int, ...]
    unit: Literal["epoch", "step"]


def read_class_iou(metrics_csv: Path) -> ClassIoU:
    """Read the columns `val/IoU/<class name>` of a metrics file.

    Raises:
        InputError: The file is absent, has no `step` column, or no IoU of a class in it.
    """
    rows = _rows(metrics_csv)
    names = [name for name in rows[0] if name.startswith(CLASS_IOU)]
    by_step = {_number(row["step"]): row for row in rows if any(row[name] for name in names)}
    steps = sorted(step for step in by_step if math.isfinite(step))
    if not steps:
        raise InputError(f"{metrics_csv}: no {CLASS_IOU}<class> was logged in it, so there is nothing to draw")
    epochs = [_number(by_step[step].get("epoch")) for step in steps]
    has_epochs = all(map(math.isfinite, epochs)) and len(set(epochs)) == len(epochs)
    iou = np.array([[_number(by_step[step][name]) for step in steps] for name in names])  # (K, V)
    order = np.argsort(-iou[:, -1], kind="stable")  # NaN comes last
    return ClassIoU(
        tuple(names[i].removeprefix(CLASS_IOU) for i in order),
        iou[order],
        tuple(int(x) for x in (epochs if has_epochs else steps)),
        "epoch" if has_epochs else "step",
    )


def _rows(metrics_csv: Path) -> list[dict[str, str]]:
    if not metrics_csv.is_file():
        raise InputError(f"{metrics_csv}: no such file; it is written by a run with the CSVLogger")
    with metrics_csv.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "step" not in rows[0]:
        raise InputError(f"{metrics_csv}: no rows with a 'step' column; is it the metrics.csv of a run?")
    return rows


def _column(rows: Sequence[Mapping[str, str]], name: str) -> Curve:
    points = {_number(row["step"]): _number(row[name]) for row in rows if row[name]}
    kept = sorted((step, value) for step, value in points.items() if math.isfinite(step) and math.isfinite(value))
    return [step for step, _ in kept], [value for _, value in kept]


def _number(cell: str | None) -> float:
    """The number in a cell, or NaN if it is empty: the last row of a killed run may be cut short."""
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


def _draw_heat_map(axes: Axes, scores: ClassIoU, block: slice, rows: int) -> AxesImage:
    """Draw the classes of `block` from the top of `rows` rows downwards, the last value of each beside its row."""
    iou, names = 100 * scores.iou[block], scores.class_names[block]
    colours = colormaps["viridis"].with_extremes(bad="lightgrey")
    image = axes.imshow(np.ma.masked_invalid(iou), colours, aspect="auto", interpolation="nearest", vmin=0, vmax=100)
    axes.set_yticks(range(len(names)), [shorten(name, _LONGEST) for name in names], fontsize=8, parse_math=False)
    columns = range(0, len(scores.at), -(-len(scores.at) // _TICKS))
    axes.set_xticks(columns, [str(scores.at[i]) for i in columns], fontsize=8)
    axes.set_xlabel(scores.unit, fontsize=8)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for i, last in enumerate(scores.iou[block, -1]):
        axes.annotate(percent(last, 1), (1, i), (30, 0), ("axes fraction", "data"), "offset points", ha="right",
                      va="center", fontsize=8, annotation_clip=False)  # fmt: skip
    return image


def _smooth(values: Sequence[float], radius: int) -> list[float]:
    """Mean over a centred window, cut off at both ends."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    spans = [(max(0, i - radius), min(len(values), i + radius + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in spans]
