"""Images of label maps for people: colours, overlays and legends; uint8 arrays in, uint8 arrays out.

Labels are train ids, `(H, W)` of any integer type; 255 is ignored and drawn black (in `colorize`) or not at all (in
`overlay`). A palette holds one RGB colour a class. Text is drawn by Pillow with its built-in font, at a size that
follows the image's, so that a figure reads the same from a 32-pixel patch and from a 12-megapixel photograph.
"""

import base64
import io
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segkit.errors import InputError
from segkit.text import shorten

Palette = Sequence[Sequence[int]]

IGNORED = 255
PAPER, INK = (255, 255, 255), (32, 32, 32)
_STRIPE = 130  # grey level of a hatch's stripes
_OUTLINE = (150, 150, 150)  # round swatches: a white or pale class stays visible on paper
_MIN_HEIGHT = 240  # images below are enlarged by a whole factor
_MAX_WIDTH = 1280  # ... but not beyond this, so that a 1-pixel-high strip does not become a giant
_MAX_ROWS = 6  # rows of a legend; its last entry counts the names that do not fit
_MAX_CHARACTERS = 24  # characters of a class name; ADE20K has names of 40


def colorize(labels: np.ndarray, palette: Palette) -> np.ndarray:
    """Paint train ids.

    Args:
        labels: integers `(H, W)`, 0..K-1 or 255.
        palette: K RGB colours.

    Returns:
        uint8 `(H, W, 3)`; 255 is black.

    Raises:
        InputError: labels are not a 2-d integer array, or hold a value that the palette has no colour for.
    """
    _check_labels(labels, len(palette))
    table = np.zeros((IGNORED + 1, 3), np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)
    return np.asarray(table[labels])  # (H, W) -> (H, W, 3)


def overlay(image: np.ndarray, labels: np.ndarray, palette: Palette, alpha: float = 0.5) -> np.ndarray:
    """Lay the colours of a label map over its image; ignored pixels show the image alone.

    Args:
        image: uint8 `(H, W, 3)` RGB.
        labels: integers `(H, W)`, 0..K-1 or 255.
        palette: K RGB colours.
        alpha: weight of the colours, 0 (image only) to 1 (colours only).

    Returns:
        uint8 `(H, W, 3)`.

    Raises:
        InputError: the sizes differ, alpha is outside 0..1, or `colorize` refuses the labels.
    """
    if image.shape != (*labels.shape, 3):
        raise InputError(f"image {image.shape} and labels {labels.shape} differ: they must be (H, W, 3) and (H, W)")
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha {alpha} is outside 0..1 (0 shows the image only, 1 the colours only)")
    colours = colorize(labels, palette)
    weight = round(alpha * 256)  # integers: 3x less memory than float32 on a large photograph
    mixed = (image.astype(np.uint16) * (256 - weight) + colours.astype(np.uint16) * weight + 128) >> 8
    return np.where((labels == IGNORED)[..., None], image, mixed.astype(np.uint8))


def hatch(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Darken the ignored pixels and lay grey stripes over them, so that black ones (padding) are seen too.

    Args:
        image: uint8 `(H, W, 3)`, mostly an `overlay`; a copy is returned.
        labels: integers `(H, W)`; only 255 matters.
    """
    height, width = labels.shape
    stripe = max(2, min(height, width) // 60)  # pixels
    is_stripe = (np.arange(height)[:, None] + np.arange(width)) // stripe % 4 == 0
    dark = np.where(is_stripe[..., None], _STRIPE, image // 3)
    return np.where((labels == IGNORED)[..., None], dark, image).astype(np.uint8)


def occurring(labels: np.ndarray) -> list[int]:
    """Train ids (and 255) that occur in a label map of any shape, the largest area first, ties by id."""
    return by_area(np.bincount(labels.ravel()))


def by_area(counts: np.ndarray) -> list[int]:
    """The ids that have pixels, of the pixels of each id: the largest area first, ties by id."""
    return [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]


def legend(class_names: Sequence[str], palette: Palette, width: int, font_size: int = 14) -> np.ndarray:
    """Draw swatches and names in columns, row by row, on white.

    At most six rows are drawn; the last entry counts the names that do not fit ("+ 12 more"), so give the names in the
    order of their importance (see `occurring`).

    Args:
        class_names: n names; long ones are shortened.
        palette: their n RGB colours.
        width: pixels; at least one column is drawn, cut off if need be.
        font_size: pixels.

    Returns:
        uint8 `(height, width, 3)`; the height follows from the number of rows and is 0 for no names.
    """
    if len(class_names) != len(palette):
        raise InputError(f"{len(class_names)} class names and {len(palette)} colours: each name needs one colour")
    names = [shorten(name, _MAX_CHARACTERS) for name in class_names]
    column, line = _cell_size(names, font_size)
    columns = max(1, (width + font_size) // column)
    capacity = columns * _MAX_ROWS
    if len(names) > capacity:
        names = [*names[: capacity - 1], f"+ {len(names) - capacity + 1} more"]
    rows = -(-len(names) // columns)
    columns = -(-len(names) // max(1, rows))  # as few as the rows need: 8 names in 7 columns become 4 + 4
    canvas = Image.new("RGB", (width, rows * line + font_size // 2 if rows else 0), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, name in enumerate(names):
        # "+ n more" takes the last cell and has no colour of its own
        more = i == len(names) - 1 and len(names) < len(class_names)
        corner = (i % columns * column, font_size // 2 + i // columns * line)
        _draw_entry(draw, corner, name, None if more else palette[i], font_size)
    return np.asarray(canvas)


def with_legend(image: np.ndarray, labels: np.ndarray, class_names: Sequence[str], palette: Palette) -> np.ndarray:
    """Set the legend of the classes in `labels` below an `overlay`; small images are enlarged.

    Args:
        image: uint8 `(H, W, 3)` RGB.
        labels: integers `(H, W)`, 0..K-1 or 255.
        class_names: K names.
        palette: K RGB colours.

    Returns:
        uint8 RGB, at least 240 pixels wide.
    """
    large = _enlarge(image)
    width = max(large.shape[1], _MIN_HEIGHT)
    ids = [i for i in occurring(labels) if i != IGNORED]  # an overlay shows ignored pixels as they are
    below = legend([class_names[i] for i in ids], [palette[i] for i in ids], width, _font_size(large))
    return np.vstack([_centre(large, width), below])


def text_line(text: str, width: int, size: int, height: int) -> np.ndarray:
    """A line of text of a font `size`, in pixels, on white; uint8 `(height, width, 3)`."""
    canvas = Image.new("RGB", (width, height), PAPER)
    ImageDraw.Draw(canvas).text((0, height // 2), text, INK, font(size), anchor="lm")
    return np.asarray(canvas)


def side_by_side(images: Sequence[np.ndarray], gap: int) -> np.ndarray:
    """Images of one height, uint8 `(H, W, 3)`, from left to right with `gap` white pixels between them."""
    between = np.full((images[0].shape[0], gap, 3), PAPER, np.uint8)
    return np.hstack([images[0], *(part for image in images[1:] for part in (between, image))])


def padded(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The image with white to its right and below it; uint8 `(height, width, 3)`."""
    room = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
    return np.pad(image, room, constant_values=PAPER[0])


def magnified(array: np.ndarray, factor: int) -> np.ndarray:
    """An image or a label map, each pixel repeated `factor` times in both directions."""
    return array.repeat(factor, 0).repeat(factor, 1)


def fit(image: np.ndarray, mask: np.ndarray, box: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask, reduced so that no side is longer than `box` pixels."""
    height, width = fitted_size(mask.shape, box)
    if (height, width) == mask.shape:
        return image, mask
    pillow, labels = Image.fromarray(np.ascontiguousarray(image)), Image.fromarray(np.ascontiguousarray(mask))
    nearest = labels.resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(pillow.resize((width, height), Image.Resampling.BOX)), np.asarray(nearest)


def fitted_size(shape: Sequence[int], box: int) -> tuple[int, int]:
    """The (height, width) to which `fit` reduces an image of this size."""
    scale = min(1.0, box / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def data_url(image: np.ndarray, quality: int | None = None, subsampling: int = 0) -> str:
    """An image as the address of itself, for a page that is one file.

    Args:
        image: uint8 `(H, W)` or `(H, W, 3)`.
        quality: That of a JPEG; None means PNG, which keeps every pixel.
        subsampling: Of a JPEG's colours, as Pillow has it: 0 keeps their full resolution, 2 halves it on both sides.
    """
    buffer, pillow = io.BytesIO(), Image.fromarray(np.ascontiguousarray(image))
    if quality is None:
        pillow.save(buffer, "PNG")
    else:
        pillow.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    kind = "png" if quality is None else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _check_labels(labels: np.ndarray, num_classes: int) -> None:
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise InputError(f"labels are {labels.dtype} {labels.shape}: a 2-d integer array (H, W) of train ids is needed")
    strange = (labels != IGNORED) & ((labels < 0) | (labels >= num_classes))
    if strange.any():
        value = int(labels[strange][0])
        raise InputError(f"label {value} has no colour: the palette has {num_classes}, so 0..{num_classes - 1} and 255")


def _font_size(image: np.ndarray) -> int:
    """A readable font size, 1/24 of the shorter side: 15 at 360 x 480, 42 at 1024 x 2048."""
    height, width = image.shape[:2]
    return int(max(14, min(height, width) // 24))


@lru_cache(maxsize=32)
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's built-in font; `size` in pixels."""
    return ImageFont.load_default(size=size)


def _cell_size(names: Sequence[str], font_size: int) -> tuple[int, int]:
    """(width, height) of a legend's cell: swatch, gap, the longest name, gap."""
    longest = max((font(font_size).getlength(name) for name in [*names, "+ 100 more"]), default=0)
    return int(longest + 3.2 * font_size), int(1.6 * font_size)


def _draw_entry(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], name: str, colour: Sequence[int] | None, font_size: int
) -> None:
    x, y = corner
    swatch = int(1.5 * font_size)
    if colour is not None:
        draw.rectangle((x, y, x + swatch, y + font_size), fill=tuple(colour), outline=_OUTLINE)
    # anchored at the middle of the line: letters with descenders keep one base line with the others
    draw.text((x + swatch + font_size // 2, y + font_size // 2), name, INK, font(font_size), anchor="lm")


def _enlarge(image: np.ndarray) -> np.ndarray:
    """Repeat pixels so that a small image reaches 240 pixels in height, within 1280 in width."""
    height, width = image.shape[:2]
    return magnified(image, max(1, min(-(-_MIN_HEIGHT // height), _MAX_WIDTH // width)))


def _centre(image: np.ndarray, width: int) -> np.ndarray:
    left = (width - image.shape[1]) // 2
    return np.pad(image, ((0, 0), (left, width - image.shape[1] - left), (0, 0)), constant_values=PAPER[0])
