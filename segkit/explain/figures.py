"""Figures of what a network attends to, to be read at 100 %: text keeps its size, and the figure grows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from segkit.arrays import Float64Array, UInt8Array
from segkit.evaluation.plots import VERMILION, plain_label
from segkit.explain.attention import Reading
from segkit.explain.effective_field import ENERGY, EffectiveField
from segkit.metadata.label_space import LabelSpace
from segkit.visualization import occurring

_PANEL, _ROW, _CELL, _CHARACTER = 3.2, 0.21, 0.42, 0.08  # inches: an image's width, a block, a class, a letter
_MANY = 40  # classes; from here on cells are narrow and carry no numbers
_LEGEND = 12  # classes
_SORTED = 256  # columns for the channels of a split, however many they are
_LEAST = 0.05  # of a scale around no preference, so that rounding is not drawn in full colours
_DIVERGING, _GROWING = "PuOr", "viridis"


class Panel(NamedTuple):
    """An image with its title and, over it in grey, a map (H, W) in colours."""

    title: str
    image: UInt8Array
    heat: Any = None


class Scale(NamedTuple):
    """How maps are drawn: what they show, Matplotlib's name of the colours, and the values at their ends."""

    label: str
    colours: str = _GROWING
    low: float = 0
    high: float = 1


Legend = Sequence[tuple[str, Sequence[int]]]  # names and colours


def panels_figure(
    panels: Sequence[Panel], columns: int, title: str, scale: Scale | None = None, legend: Legend = ()
) -> Figure:
    """Draw panels row by row, with one scale for all maps, and below them classes with their colours."""
    height, width = panels[0].image.shape[:2]
    wide = _PANEL * min(1, max(0.4, width / height))
    tall, rows = wide * min(2.5, max(0.2, height / width)), -(-len(panels) // columns)
    across = max(5.0, columns * wide + (1.0 if scale else 0.1))
    per_row = int(across / 1.6)
    lines = 1.5 + title.count("\n") + -(-len(legend) // per_row)
    figure = Figure(figsize=(across, rows * (tall + 0.3) + 0.22 * lines), layout="constrained")
    grid, drawn = figure.subplots(rows, columns, squeeze=False).ravel().tolist(), None
    for axes, panel in zip(grid, panels, strict=False):
        axes.set_title(plain_label(panel.title, 60), size=8)
        axes.imshow(panel.image if panel.heat is None else panel.image.mean(2), cmap="gray", vmin=0, vmax=255)
        if panel.heat is not None and scale is not None:
            drawn = axes.imshow(panel.heat, cmap=scale.colours, vmin=scale.low, vmax=scale.high, alpha=0.6)
    for axes in grid:
        axes.set_axis_off()
    if drawn is not None and scale is not None:
        _bar(figure, drawn, grid, scale.label)
    handles = [Patch(color="#{:02x}{:02x}{:02x}".format(*colour), label=plain_label(name)) for name, colour in legend]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=per_row, fontsize=8, frameon=False)
    figure.suptitle(title, size=10)
    return figure


def legend_of(labels: UInt8Array, space: LabelSpace) -> Legend:
    """Names and colours of the largest classes of a label map, the last entry counting the others."""
    ids = [i for i in occurring(labels) if i < space.num_classes]
    more = [(f"+ {len(ids) - _LEGEND} more", (255, 255, 255))] if len(ids) > _LEGEND else []
    return [*((space.class_names[i], space.palette[i]) for i in ids[:_LEGEND]), *more]


def channels_figure(attention: Mapping[str, Reading], title: str) -> Figure:
    """Draw the attention of an image: for each block the channels of each split, sorted, with mean and deviation."""
    weights = [read.weights[0].cpu().numpy() for read in attention.values()]
    radix = max(map(len, weights))
    values, texts = np.full((len(weights), radix * _SORTED), np.nan), []
    for y, block in enumerate(weights):
        for r, channels in enumerate(np.sort(block)[:, ::-1]):
            columns = slice(r * _SORTED, (r + 1) * _SORTED)
            values[y, columns] = channels[np.arange(_SORTED) * len(channels) // _SORTED] - _neutral(len(block))
            texts.append(((r + 0.5) * _SORTED, y, f"{channels.mean():.2f} \u00b1 {channels.std():.2f}"))
    heads = ["gate"] if radix == 1 else [f"split {r}" for r in range(radix)]
    width = max(3.0, 9 / radix)
    figure, axes = _blocks_figure(values, short_names(attention), radix * width, 0.3)
    middles = (np.arange(radix) + 0.5) * _SORTED
    axes.set_xticks(middles, [f"{head}: most to least attended channel" for head in heads], size=8)
    axes.vlines(np.arange(1, radix) * _SORTED - 0.5, -0.5, len(weights) - 0.5, color="black", linewidth=1)
    _numbers(axes, values, texts)
    figure.suptitle(title, size=10)
    _bar(figure, axes.images[0], [axes], f"weight - {'1/R' if radix > 1 else '1/2'}")
    return figure


def classes_figure(shares: Mapping[str, Float64Array], class_names: Sequence[str], title: str) -> Figure:
    """Draw what each class prefers: blocks as rows, classes as columns.

    The colour is the share of split 0 (or the mean gate) above 1/2; of more than two splits that of the preferred one
    above 1/R, and the number in the cell says which.

    Args:
        shares: (K, R) of each block; NaN of classes to be left out.
        class_names: K names.
        title: Of the figure.
    """
    blocks = list(shares.values())
    radix = max(block.shape[1] for block in blocks)
    kept = np.flatnonzero(~np.isnan(blocks[0][:, 0])).tolist()
    names = [plain_label(class_names[k]) for k in kept]
    chosen = [(block.max(1) if block.shape[1] > 2 else block[:, 0])[kept] for block in blocks]
    values = np.stack([row - _neutral(block.shape[1]) for row, block in zip(chosen, blocks, strict=True)])
    cell = _CELL if len(kept) <= _MANY else _CELL / 3
    figure, axes = _blocks_figure(values, short_names(shares), max(3.0, cell * len(kept)), max(map(len, names)) * 0.08)
    axes.set_xticks(range(len(kept)), names, rotation=90, size=8)
    if len(kept) <= _MANY:
        cells = np.stack([(b.argmax(1) if b.shape[1] > 2 else 100 * b[:, 0])[kept] for b in blocks])
        _numbers(axes, values, [(x, y, f"{cells[y, x]:.0f}") for y, x in np.ndindex(*cells.shape)])
    _bar(figure, axes.images[0], [axes], _MEANINGS[min(radix, 3)])
    figure.suptitle(title, size=10)
    return figure


_MEANINGS = {
    1: "mean gate - 1/2\n(numbers: gate, %)",
    2: "share of split 0 - 1/2\n(numbers: share, %)",
    3: "share of the preferred split - 1/R\n(numbers: which)",
}


def fields_figure(fields: Sequence[EffectiveField], count: int) -> Figure:
    """Draw effective receptive fields, means of `count` crops, side by side on one scale, with the squares of 95 %."""
    figure = Figure(figsize=(max(5.6, 4.4 * len(fields) + 1), 5), layout="constrained")
    high = max(float(field.gradient.max()) for field in fields)
    grid = figure.subplots(1, len(fields), squeeze=False).ravel().tolist()
    for axes, field in zip(grid, fields, strict=True):
        half = len(field.gradient) / 2
        shown, extent = np.maximum(field.gradient, high * 1e-5), (-half, half, half, -half)
        drawn = axes.imshow(shown, cmap=_GROWING, norm=LogNorm(high * 1e-5, high), extent=extent)
        for side, colour in ((field.side, "white"), (field.bound or 0, VERMILION)):
            if side <= 2 * half:
                corner = (-side / 2, -side / 2)
                axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, linestyle="--"))
        lines = [f"{100 * ENERGY:.0f} % of the energy in {field.side}\u00b2 = {field.side**2:,} pixels (white)"]
        if field.bound is not None:
            beyond = f"{100 * field.beyond:.0f} % of |gradient| from beyond, by global pools"
            lines.append(f"bound {field.bound}\u00b2 (orange); {beyond}")
        axes.set_title("\n".join([plain_label(field.name), *lines]), size=8)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("pixels from the centre", size=8)
    _bar(figure, drawn, grid, "mean |gradient|, share of a pixel")
    figure.suptitle(f"effective receptive field of the encoder, mean of {count} crops", size=10)
    return figure


def shares_scale(shares: Sequence[Any], radix: int) -> Scale:
    """The scale of maps of shares, symmetric around no preference."""
    spread, neutral = _spread([share - _neutral(radix) for share in shares]), _neutral(radix)
    label = {1: "gate", 2: "share of split 0"}.get(radix, "share of the split")
    return Scale(label, _DIVERGING, neutral - spread, neutral + spread)


def short_names(names: Mapping[str, Any]) -> list[str]:
    """Names of modules without what all of them begin and end with: `layer1.0`."""
    parts = [name.split(".") for name in names]
    pairs = zip(min(parts), max(parts), strict=False)
    start = next((i for i, (a, b) in enumerate(pairs) if a != b), len(parts[0]) - 1)
    same_end = all(p[-1] == parts[0][-1] and len(p) > start + 1 for p in parts)
    return [".".join(p[start : -1 if same_end else None]) for p in parts]


def last_of_stages(names: Mapping[str, Any]) -> dict[str, str]:
    """Name and short name of the last block of each stage, which a short name begins with."""
    shorts = zip(short_names(names), names, strict=True)
    return {name: short for short, name in {short.split(".")[0]: (short, name) for short, name in shorts}.values()}


def _blocks_figure(values: Any, blocks: Sequence[str], width: float, head: float) -> tuple[Figure, Axes]:
    """A heat map with a row for each block; `head` inches above it are for what its columns are called."""
    size = (width + _CHARACTER * max(map(len, blocks)) + 1.6, max(3.0, _ROW * len(blocks) + head + 0.7))
    figure = Figure(figsize=size, layout="constrained")
    axes, spread = figure.subplots(), _spread([values])
    axes.imshow(values, cmap=_DIVERGING, vmin=-spread, vmax=spread, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(blocks)), list(blocks), size=8)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    return figure, axes


def _numbers(axes: Axes, values: Any, texts: Sequence[tuple[float, float, str]]) -> None:
    for x, y, text in texts:
        strong = abs(values[int(y), int(x)]) > 0.6 * _spread([values])
        axes.text(x, y, text, ha="center", va="center", size=7, color="white" if strong else "black")


def _neutral(radix: int) -> float:
    """What no preference is: 1/R, of a gate one half."""
    return 1 / max(2, radix)


def _spread(differences: Sequence[Any]) -> float:
    return max(_LEAST, *(float(np.nanmax(np.abs(values), initial=0)) for values in differences))


def _bar(figure: Figure, drawn: Any, axes: list[Axes], label: str) -> None:
    bar = figure.colorbar(drawn, ax=axes, aspect=30, fraction=0.05, pad=0.02)
    bar.set_label(label, size=8)
    bar.ax.tick_params(labelsize=8)
    bar.minorticks_off()
    bar.ax.yaxis.set_major_formatter("{x:g}")  # not a formula, for which Matplotlib looks for fonts
