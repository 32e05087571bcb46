"""Many images with their labels on one sheet, above a bar chart of how much each class covers, which is the legend.

A tile is the image beside its overlay, where ignored pixels are hatched. Images that are larger than their place
are reduced; if all are small, all are enlarged by one whole factor; others are shown pixel by pixel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from segkit.visualization import (
    IGNORED,
    INK,
    PAPER,
    Palette,
    by_area,
    fit,
    fitted_size,
    font,
    hatch,
    magnified,
    overlay,
    padded,
    side_by_side,
    text_line,
)

WIDTH = 2400  # pixels of a full sheet
_MARGIN, _GAP, _SEAM = 24, 28, 6  # pixels: around the sheet, between tiles, between image and overlay
_TEXT, _HEADING, _SMALL = 20, 28, 14  # pixels of the fonts
_LINE = 30  # pixels of a row of the chart
_FAINT, _GRID = (110, 110, 110), (226, 226, 226)
_SHAPE = 0.8  # height / width that a sheet of tiles should have
_MAX_COLUMNS = 5
_LARGE = 480  # pixels up to which small images are enlarged
_SWATCH, _NAME, _NUMBER = 44, 240, 100  # pixels of swatch, name and percent in the chart; bars take what is left
_CELL = _SWATCH + _NAME + 150 + _NUMBER  # pixels that an entry of the chart needs
_LOWEST = -5  # the bars begin at 10^-5 of the pixels: 0.001 %
_TICKS = {-4: "0.01%", -2: "1%", 0: "100%"}


@dataclass(frozen=True)
class Tile:
    """An image on the sheet, with its labels.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        mask: Train ids, integers (H, W), 255 = ignored.
        caption: What to write below.
    """

    image: np.ndarray
    mask: np.ndarray
    caption: str


@dataclass(frozen=True)
class Share:
    """How much of the pixels a class covers.

    Attributes:
        id: Train id, or 255 for the ignored pixels.
        name: Name of the class, or "ignored".
        share: 0..1 of all pixels.
    """

    id: int
    name: str
    share: float

    @property
    def percent(self) -> str:
        """Three figures, or "< 0.001%"."""
        if self.share < 10**_LOWEST:
            return "< 0.001%"
        figures = max(0, min(3, 1 - math.floor(math.log10(100 * self.share))))
        return f"{100 * self.share:.{figures}f}%"

    @property
    def length(self) -> float:
        """The length of the bar, 0..1 on a logarithmic scale from 0.001 % to 100 %."""
        return max(0.0, 1 - math.log10(self.share) / _LOWEST)


def shares(samples: Sequence[Tile], class_names: Sequence[str]) -> list[Share]:
    """The classes that occur in any of the samples, the largest first; ignored pixels, if there are any, last."""
    counts = sum((np.bincount(sample.mask.ravel(), minlength=256) for sample in samples), np.zeros(256, np.int64))
    total = int(counts.sum())
    ids = sorted(by_area(counts), key=lambda i: i == IGNORED)
    return [Share(i, "ignored" if i == IGNORED else class_names[i], int(counts[i]) / total) for i in ids]


def contact_sheet(
    samples: Sequence[Tile], class_names: Sequence[str], palette: Palette, title: str, width: int = WIDTH
) -> np.ndarray:
    """Draw the sheet.

    Args:
        samples: One or more.
        class_names: K names.
        palette: K RGB colours.
        title: Line above the images.
        width: Largest width in pixels; a few small images need less.

    Returns:
        uint8 RGB.

    Raises:
        InputError: A mask holds a label without a colour, or sizes differ.
    """
    inner = width - 2 * _MARGIN
    columns = _columns(samples, inner)
    box, factor = _box(columns, inner), _factor(samples, _box(columns, inner))
    tiles = [_tile(sample, palette, box, factor) for sample in samples]
    grid = _grid(tiles, columns)
    inner = min(inner, max(grid.shape[1], 2 * _CELL))
    chart = _chart(shares(samples, class_names), len(class_names), palette, inner)
    parts = [_heading(title, inner), grid, chart]
    sheet = np.vstack([padded(part, inner, part.shape[0] + _MARGIN) for part in parts])
    return np.pad(sheet, ((_MARGIN, 0), (_MARGIN, _MARGIN), (0, 0)), constant_values=PAPER[0])


def tile_overlay(image: np.ndarray, mask: np.ndarray, palette: Palette) -> np.ndarray:
    """The image under the colours of its classes, ignored pixels hatched; uint8 (H, W, 3)."""
    return hatch(overlay(image, mask, palette), mask)


def _factor(samples: Sequence[Tile], box: int) -> int:
    """The factor by which all images are enlarged."""
    longest: int = max(max(sample.mask.shape) for sample in samples)
    return max(1, min(box, _LARGE) // longest)


def _box(columns: int, width: int) -> int:
    """Pixels of the longer side that an image may have."""
    return ((width - _GAP * (columns - 1)) // columns - _SEAM) // 2


def _columns(samples: Sequence[Tile], width: int) -> int:
    """The number of tiles in a row that brings the grid nearest to its shape."""

    def off(columns: int) -> float:
        box = _box(columns, width)
        factor = _factor(samples, box)
        sizes = [fitted_size(sample.mask.shape, box) for sample in samples]
        rows = [factor * max(size[0] for size in sizes[i : i + columns]) for i in range(0, len(sizes), columns)]
        across = columns * (2 * factor * max(size[1] for size in sizes) + _SEAM + _GAP)
        return abs(math.log((sum(rows) + (_LINE + _GAP) * len(rows)) / across / _SHAPE))

    return min(range(1, min(len(samples), _MAX_COLUMNS) + 1), key=off)


def _tile(sample: Tile, palette: Palette, box: int, factor: int) -> np.ndarray:
    """Image | overlay, above the caption."""
    image, mask = (magnified(array, factor) for array in fit(sample.image, sample.mask, box))
    pair = side_by_side([image, tile_overlay(image, mask, palette)], _SEAM)
    caption = text_line(_cut(sample.caption, pair.shape[1], keep_end=True), pair.shape[1], _TEXT, _LINE)
    return np.vstack([pair, caption])


def _grid(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    width = max(tile.shape[1] for tile in tiles)
    rows = []
    for start in range(0, len(tiles), columns):
        row = tiles[start : start + columns]
        height = max(tile.shape[0] for tile in row) + (_GAP // 2 if start + columns < len(tiles) else 0)
        line = np.hstack([padded(tile, width + _GAP, height) for tile in row])
        rows.append(padded(line, columns * (width + _GAP), height))
    return np.vstack(rows)[:, :-_GAP]


def _chart(found: Sequence[Share], num_classes: int, palette: Palette, width: int) -> np.ndarray:
    """Swatch, name, bar and percent of each class, in columns that are read downwards."""
    length = -(-len(found) // max(1, (width + _GAP) // (_CELL + _GAP)))
    columns = -(-len(found) // length)
    top = 2 * _LINE + _SMALL
    canvas = Image.new("RGB", (width, top + length * _LINE), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((0, _LINE // 2), chart_title(found, num_classes), INK, font(_TEXT), anchor="lm")
    step = (width + _GAP) // columns
    bar = step - _GAP - _SWATCH - _NAME - _NUMBER
    for column in range(columns):
        rows = found[column * length : (column + 1) * length]
        _draw_ticks(draw, (column * step + _SWATCH + _NAME, top), bar, len(rows))
        for i, row in enumerate(rows):
            _draw_row(canvas, (column * step, top + i * _LINE), bar, row, palette)
    return np.asarray(canvas)


def chart_title(found: Sequence[Share], num_classes: int) -> str:
    """The heading of the chart, which says what its bars show."""
    occurring = sum(row.id != IGNORED for row in found)
    return f"{occurring} of {num_classes} classes occur; share of all pixels shown, on a logarithmic scale"


def _draw_ticks(draw: ImageDraw.ImageDraw, corner: tuple[int, int], bar: int, rows: int) -> None:
    """A line for each power of 10."""
    left, top = corner
    for power in range(_LOWEST, 1):
        x = left + round(bar * (1 - power / _LOWEST))
        draw.line((x, top - 4, x, top + rows * _LINE), _GRID)
        draw.text((x, top - 6), _TICKS.get(power, ""), _FAINT, font(_SMALL), anchor="ms")


def _draw_row(canvas: Image.Image, corner: tuple[int, int], bar: int, row: Share, palette: Palette) -> None:
    x, y = corner
    middle, left = y + _LINE // 2, x + _SWATCH + _NAME
    draw = ImageDraw.Draw(canvas)
    draw.text((x + _SWATCH, middle), _cut(row.name, _NAME - 12), INK, font(_TEXT), anchor="lm")
    draw.text((left + bar + 10, middle), row.percent, INK, font(_TEXT), anchor="lm")
    for box in ((x, y + 5, x + 32, y + 25), (left, y + 7, left + max(2, round(bar * row.length)), y + 23)):
        if row.id == IGNORED:
            canvas.paste(Image.fromarray(_hatched(box[2] - box[0], box[3] - box[1])), box[:2])
        else:
            draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), tuple(palette[row.id]), (150, 150, 150))


def _hatched(width: int, height: int) -> np.ndarray:
    return hatch(np.zeros((height, width, 3), np.uint8), np.full((height, width), IGNORED, np.uint8))


def _heading(text: str, width: int) -> np.ndarray:
    return text_line(_cut(text, width, size=_HEADING), width, _HEADING, _HEADING + 8)


def _cut(text: str, width: int, keep_end: bool = False, size: int = _TEXT) -> str:
    """Shorten to `width` pixels, at the end of a name or at the start of a path."""
    shown, short = text, text
    while len(short) > 1 and font(size).getlength(shown) > width:
        short = short[1:] if keep_end else short[:-1]
        shown = f"...{short}" if keep_end else f"{short.rstrip(' ,')}..."
    return shown
