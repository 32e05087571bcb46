"""Figures of what a network attends to, to be read at 100 %: text keeps its size, and the figure grows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from segkit.arrays import Float64Array, UInt8Array
from segkit.evaluation.plots import VERMILION, plain_label
from segkit.explain.attention import Reading
from segkit.explain.effective_field import ENERGY, EffectiveField
from segkit.metadata.label_space import LabelSpace
from segkit.text import percent
from segkit.visualization import occurring

_PANEL, _ROW, _CELL, _CHARACTER = 3.2, 0.21, 0.42, 0.08  # inches: an image's width, a block, a class, a letter
_MANY = 40  # classes; from here on cells are narrow and carry no numbers
_LEGEND = 12  # classes
_SORTED = 256  # columns for the channels of a split, however many they are
_LEAST = 0.05  # of a scale around no preference, so that rounding is not drawn in full colours
_DIVERGING, _GROWING = "PuOr", "viridis"
_MEANINGS = {  # by radix: the colours of `classes_figure`, and the numbers in its cells
    1: ("mean gate - 1/2", "gate, %"),
    2: ("share of split 0 - 1/2", "share, %"),
    3: ("share of the preferred split - 1/R", "which"),
}


class Panel(NamedTuple):
    """An image with its title and, over it in grey, a map (H, W) in colours."""

    title: str
    image: UInt8Array
    heat: Any = None


class Scale(NamedTuple):
    """What the maps of a figure show, Matplotlib's name of their colours, and the values at their ends and centre."""

    label: str
    colours: str = _GROWING
    low: float = 0
    centre: float = 0.5
    high: float = 1


def panels_figure(
    rows: Sequence[Sequence[Panel]], title: str, scale: Scale | None, labels: UInt8Array, space: LabelSpace
) -> Figure:
    """Draw rows of panels, with one scale for all maps, and below them the largest classes of `labels`."""
    height, width = rows[0][0].image.shape[:2]
    wide = _PANEL * min(1, max(0.4, width / height))
    tall, columns = wide * min(2.5, max(0.2, height / width)), max(map(len, rows))
    ids = [i for i in occurring(labels) if i < space.num_classes]
    entries = [("#{:02x}{:02x}{:02x}".format(*space.palette[i]), space.class_names[i]) for i in ids[:_LEGEND]]
    entries += [("white", f"+ {len(ids) - _LEGEND} more")] if len(ids) > _LEGEND else []
    across = max(5.0, columns * wide + (1.0 if scale else 0.1))
    per_row = int(across / 1.6)
    lines = 1.5 + title.count("\n") + -(-len(entries) // per_row)
    size = (across, max(2.4, len(rows) * (tall + 0.3)) + 0.22 * lines)
    figure, drawn = Figure(figsize=size, layout="constrained"), None
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for axes, panel in ((grid[y, x], panel) for y, row in enumerate(rows) for x, panel in enumerate(row)):
        axes.set_title(plain_label(panel.title, 60), size=8)
        axes.imshow(panel.image if panel.heat is None else panel.image.mean(2), cmap="gray", vmin=0, vmax=255)
        if panel.heat is not None and scale is not None:
            norm = TwoSlopeNorm(scale.centre, scale.low, scale.high)
            drawn = axes.imshow(panel.heat, cmap=scale.colours, norm=norm, alpha=0.6)
    if drawn is not None and scale is not None:
        _bar(figure, drawn, grid.ravel().tolist(), scale.label)
    handles = [Patch(color=colour, label=plain_label(name)) for colour, name in entries]
    figure.legend(handles=handles, loc="outside lower center", ncols=per_row, fontsize=8, frameon=False)
    figure.suptitle(title, size=10)
    return figure


def channels_figure(attention: Mapping[str, Reading], title: str) -> Figure:
    """Draw the attention of an image: for each block the channels of each split, sorted, with mean and deviation."""
    weights = [read.weights[0].cpu().numpy() for read in attention.values()]
    radix = max(map(len, weights))
    values, texts = np.full((len(weights), radix * _SORTED), np.nan), []
    middles = (np.arange(radix) + 0.5) * _SORTED
    for y, block in enumerate(weights):
        for r, channels in enumerate(np.sort(block)[:, ::-1]):
            resampled = channels[np.arange(_SORTED) * len(channels) // _SORTED]
            values[y, r * _SORTED : (r + 1) * _SORTED] = resampled - neutral(len(block))
            texts.append((middles[r], y, f"{channels.mean():.2f} \u00b1 {channels.std():.2f}"))
    heads = [f"{'gate' if radix == 1 else f'split {r}'}: most to least attended channel" for r in range(radix)]
    label = f"weight - {'1/R' if radix > 1 else '1/2'}"
    figure, axes = _blocks_figure(values, list(attention), radix * max(3.0, 9 / radix), 0.3, title, label, texts)
    axes.set_xticks(middles, heads, size=8)
    axes.vlines(np.arange(1, radix) * _SORTED - 0.5, -0.5, len(weights) - 0.5, color="black", linewidth=1)
    return figure


def classes_figure(shares: Mapping[str, Float64Array], class_names: Sequence[str], title: str) -> Figure:
    """Draw what each class prefers, blocks as rows and classes as columns, without classes that are NaN.

    The colour is the share of split 0 (or the mean gate) above 1/2; of more than two splits that of the preferred one
    above 1/R, and the number in the cell says which. `shares` are (K, R) of each block.
    """
    blocks, texts = list(shares.values()), []
    kept = np.flatnonzero(~np.isnan(blocks[0][:, 0])).tolist()
    values, many = np.zeros((len(blocks), len(kept))), len(kept) > _MANY
    for y, block in enumerate(blocks):
        for x, share in enumerate(block[kept]):
            values[y, x] = (share.max() if len(share) > 2 else share[0]) - neutral(len(share))
            texts.append((x, y, f"{share.argmax() if len(share) > 2 else 100 * share[0]:.0f}"))
    names = [plain_label(class_names[k]) for k in kept]
    meaning, numbers = _MEANINGS[min(3, max(block.shape[1] for block in blocks))]
    label = meaning if many else f"{meaning}\n(numbers: {numbers})"
    width, head = len(kept) * _CELL / (3 if many else 1), _CHARACTER * max(map(len, names))
    figure, axes = _blocks_figure(values, list(shares), max(3.0, width), head, title, label, () if many else texts)
    axes.set_xticks(range(len(kept)), names, rotation=90, size=8)
    return figure


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
            come = f"(orange); {percent(field.beyond, 0)} % of |gradient| from beyond, by global pools"
            lines.append(f"bound {field.bound}\u00b2 {'is wider' if field.beyond is None else come}")
        axes.set_title("\n".join([plain_label(field.name), *lines]), size=8)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("pixels from the centre", size=8)
    _bar(figure, drawn, grid, "mean |gradient|, share of a pixel")
    figure.suptitle(f"effective receptive field of the encoder, mean of {count} crops", size=10)
    return figure


def shares_scale(shares: Sequence[Any], radix: int) -> Scale:
    """The scale of maps of shares, around no preference."""
    centre, label = neutral(radix), {1: "gate", 2: "share of split 0"}.get(radix, "share of the split")
    spread = _spread([share - centre for share in shares])
    return Scale(label, _DIVERGING, max(0, centre - spread), centre, centre + spread)


def short_names(names: Sequence[str]) -> list[str]:
    """Names of modules without what all of them begin and end with: `layer1.0`."""
    parts = [name.split(".") for name in names]
    pairs = zip(min(parts), max(parts), strict=False)
    start = next((i for i, (a, b) in enumerate(pairs) if a != b), len(parts[0]) - 1)
    same_end = all(p[-1] == parts[0][-1] and len(p) > start + 1 for p in parts)
    return [".".join(p[start : -1 if same_end else None]) for p in parts]


def neutral(radix: int) -> float:
    """The attention that prefers nothing: 1/R, of a gate one half."""
    return 1 / max(2, radix)


def _blocks_figure(
    values: Any, blocks: Sequence[str], width: float, head: float, title: str, label: str, texts: Sequence[Any]
) -> tuple[Figure, Axes]:
    """A heat map, `width` inches wide, of a row for each block, with texts (x, y, text) and `head` inches above it."""
    names, spread = short_names(blocks), _spread([values])
    size = (width + _CHARACTER * max(map(len, names)) + 1.6, max(3.0, _ROW * len(names) + head + 0.7))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(values, cmap=_DIVERGING, vmin=-spread, vmax=spread, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(names)), names, size=8)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    for x, y, text in texts:
        colour = "white" if abs(values[y, int(x)]) > 0.6 * spread else "black"
        axes.text(x, y, text, ha="center", va="center", size=7, color=colour)
    _bar(figure, drawn, [axes], label)
    figure.suptitle(title, size=10)
    return figure, axes


def _spread(differences: Sequence[Any]) -> float:
    return max(_LEAST, *(float(np.nanmax(np.abs(values), initial=0)) for values in differences))


def _bar(figure: Figure, drawn: Any, axes: list[Axes], label: str) -> None:
    bar = figure.colorbar(drawn, ax=axes, aspect=30, fraction=0.05, pad=0.02)
    bar.set_label(label, size=8)
    bar.ax.tick_params(labelsize=8)
    bar.minorticks_off()
    bar.ax.yaxis.set_major_formatter("{x:g}")  # not a formula, for which Matplotlib looks for fonts
