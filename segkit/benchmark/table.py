"""The table of `segkit benchmark`: read back, and written as JSON (everything), CSV, Markdown and an image."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from segkit.benchmark.cost import FLOPS_RULE
from segkit.errors import InputError, printable
from segkit.evaluation.conventions import convention
from segkit.evaluation.plots import save_figure
from segkit.files import parse_json, write_json, write_text
from segkit.text import markdown, percent, points

Values = Mapping[str, Any]


def _text(value: Any) -> str:
    return str(value)


def _number(value: float) -> str:
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def _size(value: Sequence[int]) -> str:
    return "x".join(map(str, value))


def _range(value: Sequence[float | None]) -> str:
    return f"{percent(value[0])} to {percent(value[1])}"


# column            how a value is shown; JSON and CSV keep it as it is
COLUMNS: dict[str, Callable[[Any], str]] = {
    "model":          _text,
    "data":           _text,
    "protocol":       _text,
    "metric":         _text,
    "without":        ", ".join,
    "mIoU":           percent,
    "pixel accuracy": percent,
    "mean accuracy":  percent,
    "top-1":          percent,
    "top-5":          percent,
    "interval":       _range,
    "published mIoU": percent,
    "published top-1": percent,
    "difference":     points,
    "M params":       _number,
    "GFLOPs":         _number,
    "size":           _size,
    "GFLOPs/image": _number,
    "images":       _text,
    "images/s":     _number,
    "peak MB":        _number,
    "device":         _text,
}  # fmt: skip

_WORDS = ("model", "data", "protocol", "metric", "without", "device")  # aligned left; numbers right

_RULES = (
    "mIoU and accuracies in percent, differences in points; (partial): not of the whole split. Interval: 95 %, "
    "of mIoU by resampling images, of top-1 Wilson's.",
    "M params: without the auxiliary head, which does not run at test time.",
    f"{FLOPS_RULE}. GFLOPs: one whole image of height x width as in the column size; "
    "GFLOPs/image: all forwards of the protocol on the first image.",
    "images/s: from an image in memory to its labels, one at a time; reading, counting, the first image, and a "
    "model's own preprocessing where it can be told apart are left out. peak MB: the highest use of memory above that "
    "before the model was loaded (CUDA: tensors on the GPU; "
    "CPU: resident memory of the process, in its first row with some 30 MB that PyTorch loads once).",
)


class Table:
    """The rows of a folder, its earlier ones first.

    Args:
        folder: Where benchmark.json, .csv, .md and .png lie or are written.

    Attributes:
        rows: Rows as plain data, with at least "key" and "asked".
        failed: Messages about the rows that failed in this run.

    Raises:
        InputError: The file benchmark.json is something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = _read(folder)
        self.failed: list[str] = []

    def has(self, key: Values, name: str, metric: str, asked: Values) -> bool:
        """Whether the table holds exactly this row."""
        place = self._place(key, name, metric, asked.get("without"))
        return place is not None and self.rows[place].get("asked") == asked

    def put(self, row: dict[str, Any]) -> None:
        """Add a row, or put it in the place of the one of its key, name, metric and classes, and write all files."""
        place = self._place(row["key"], row["model"], row["metric"], row["asked"].get("without"))
        if place is None:
            self.rows.append(row)
        else:
            self.rows[place] = row
        self.write()

    def write(self) -> None:
        """Write all files, each in one step."""
        write_json(self.folder / "benchmark.json", {"rows": self.rows, "failed": self.failed})
        write_text(self.folder / "benchmark.csv", self._csv())
        write_text(self.folder / "benchmark.md", self.markdown() + "\n")
        if len([row for row in self.rows if row.get("mIoU") is not None]) >= 2:
            draw_chart(self.rows, self.folder / "benchmark.png")

    def markdown(self) -> str:
        """The table, aligned, and below it what its numbers mean. Columns in which no row has a value are left out."""
        columns = [column for column in COLUMNS if any(_value(row, column) is not None for row in self.rows)]
        cells = [columns, *([_cell(row, column) for column in columns] for row in self.rows)]
        table = markdown(cells, left=[i for i, column in enumerate(columns) if column in _WORDS])
        metrics = dict.fromkeys(row["metric"] for row in self.rows if "mIoU" in row)
        rules = [f"metric {name}: {convention(name).rule}." for name in metrics]
        truths = {f"{row['data']}: in the truth {row['note']}." for row in self.rows if row.get("note")}
        notes = [
            *_published_notes(self.rows),
            *_model_notes(self.rows),
            *sorted(truths),
            *rules,
            *_RULES,
            *(f"failed: {printable(message)}" for message in self.failed),
        ]
        return "\n".join([table, "", *(f"- {note}" for note in notes)])

    def _place(self, key: Values, name: str, metric: str, without: Sequence[str] | None) -> int | None:
        wanted = (key, name, metric, without)
        found = ((row["key"], row["model"], row["metric"], row["asked"].get("without")) for row in self.rows)
        return next((i for i, row in enumerate(found) if row == wanted), None)

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow([*COLUMNS, "partial"])
        for row in self.rows:
            shown = [_size(row[c]) if c == "size" else _value(row, c) for c in COLUMNS]
            writer.writerow([*shown, row["partial"]])
        return text.getvalue()


def draw_chart(rows: Sequence[Values], path: Path) -> None:
    """Draw mIoU against the work that an image takes, a point for each row that has both, named in the legend.

    A ring is the published number, joined to the point by a line.
    """
    rows = [row for row in rows if row.get("GFLOPs/image") and row.get("mIoU") is not None]
    figure = Figure(figsize=(8, 5 + 0.2 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for i, (name, row) in enumerate(zip(short_names([str(row["model"]) for row in rows]), rows, strict=True)):
        label = f"{name}, {row['protocol']}, {row['data']}" + (" (partial)" if row["partial"] else "")
        _point(axes, row, f"C{i % 10}", "os^Dv"[i // 10 % 5], label)
    if any(row.get("published mIoU") is not None for row in rows):
        axes.scatter([], [], facecolors="none", edgecolors="grey", label="published")
    _scale(axes, [float(row["GFLOPs/image"]) for row in rows])
    axes.set(xlabel="GFLOPs per image (all forwards of the protocol)", ylabel="mIoU (%)")
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside lower center", fontsize=8)
    save_figure(figure, path)


def preprocessing_words(plain: Mapping[str, Any]) -> str:
    """A row's preprocessing in one line."""
    if list(plain) == ["words"]:
        return f"preprocessing: {plain['words']}"
    between = {"range": "..", "size": " x "}
    texts = {k: between.get(k, " ").join(map(_part, v)) if isinstance(v, list) else str(v) for k, v in plain.items()}
    return f"preprocessing: {', '.join(f'{name} {text}' for name, text in texts.items())}"


def short_names(models: Sequence[str]) -> list[str]:
    """The fewest last parts of each path that still tell different paths apart."""
    parts = [PurePath(model).parts for model in models]
    for length in range(1, max((len(p) for p in parts), default=1) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(set(models)):
            break
    return names


def _point(axes: Axes, row: Values, colour: str, marker: str, label: str) -> None:
    x, y = float(row["GFLOPs/image"]), 100 * float(row["mIoU"])
    axes.scatter([x], [y], color=colour, marker=marker, label=label.replace("$", r"\$"), zorder=3)
    if row.get("published mIoU") is not None:
        published = 100 * float(row["published mIoU"])
        axes.plot([x, x], [y, published], color=colour, linewidth=0.8, alpha=0.6)
        axes.scatter([x], [published], facecolors="white", edgecolors=colour, marker=marker, zorder=3)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic scale, because protocols differ by factors."""
    if values and max(values) > 5 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")


def _read(folder: Path) -> list[dict[str, Any]]:
    path = folder / "benchmark.json"
    if not path.is_file():
        return []
    try:
        rows = parse_json(path.read_text(encoding="utf-8"))["rows"]
        if not all(row["key"] and row["model"] and row["metric"] and len(row["size"]) == 2 for row in rows):
            raise ValueError("a row without a key, model, metric or size")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a table of this version of segkit; give another --output") from error
    return list(rows)


def _value(row: Values, column: str) -> Any:
    """A row that scores nothing has no metric."""
    return None if column == "metric" and "mIoU" not in row else row.get(column)


def _cell(row: Values, column: str) -> str:
    value = _value(row, column)
    if value is None:
        return "-"
    return COLUMNS[column](value) + (" (partial)" if column == "images" and row["partial"] else "")


def _part(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _model_notes(rows: Sequence[Values]) -> list[str]:
    """Notes on each model's preprocessing, and on how its classes were matched."""
    notes = []
    for row in rows:
        said = [preprocessing_words(row["preprocessing"])] if row.get("preprocessing") else []
        said += [str(row[key]) for key in ("classes", "warning") if row.get(key)]
        if said:
            notes.append(printable(f"{row['model']}, {row['protocol']}: {'; '.join(said)}."))
    return list(dict.fromkeys(notes))


def _published_notes(rows: Sequence[Values]) -> list[str]:
    """Notes on the source of each published number, or why it is not in the table."""
    notes = []
    for row in rows:
        published = row.get("published")
        if published is None:
            continue
        numbers = f"mIoU {percent(published['miou'])}" if published["miou"] else f"top-1 {percent(published['top1'])}"
        if published["pixel_accuracy"] is not None:
            numbers += f", pixel accuracy {percent(published['pixel_accuracy'])}"
        reason = row.get("not comparable")
        note = f"{row['model']}, {row['protocol']}: published {numbers} ({published['source']})"
        notes.append(note + (f"; not compared: {reason}" if reason else ""))
    return list(dict.fromkeys(notes))
