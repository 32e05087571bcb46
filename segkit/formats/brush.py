"""Label Studio's run-length code of brush masks: bits of runs over an RGBA image, whose alpha is the mask.

The code is rle-pack of thi.ng/umbrella, as label_studio_sdk.converter.brush describes it. A header has the number of
values (32 bits), the bits of a value less 1 (5), and four lengths of counts less 1 (4 each). Then follow runs: a bit
that tells one repeated value (1) from a row of values (0), which of the four lengths its count has (2), the count less
1, and the value or values.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from segkit.arrays import BoolArray
from segkit.errors import InputError

_COUNTS = (3, 4, 8, 16)  # bits, as Label Studio writes them
_LONGEST = 1 << _COUNTS[-1]


def encode(mask: BoolArray) -> list[int]:
    """The bytes of a mask (H, W)."""
    flat = mask.ravel()
    starts = np.r_[0, np.flatnonzero(flat[1:] != flat[:-1]) + 1]
    lengths = 4 * np.diff(np.r_[starts, flat.size])  # of values; a pixel has four
    bits = [f"{4 * flat.size:032b}{8 - 1:05b}", *(f"{count - 1:04b}" for count in _COUNTS)]
    for is_inside, length in zip(flat[starts].tolist(), lengths.tolist(), strict=True):
        for start in range(0, length, _LONGEST):
            count = min(length - start, _LONGEST) - 1
            which = next(i for i, size in enumerate(_COUNTS) if count < 1 << size)
            bits.append(f"1{which:02b}{count:0{_COUNTS[which]}b}{255 * is_inside:08b}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8))


def decode(rle: Sequence[int], size: tuple[int, int], source: str) -> BoolArray:
    """The mask (H, W) of a code: where its alpha is not 0.

    Args:
        rle: Bytes 0..255.
        size: (H, W) that the mask has to have.
        source: Its name in messages.

    Raises:
        InputError: It is damaged, or of an image of another size.
    """
    try:
        data = bytes(list(rle))  # of a number, `bytes` would make zeros
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{source}: its brush mask is no list of bytes 0..255 ({error}); export it again") from error
    count = int.from_bytes(data[:4])
    if count != 4 * size[0] * size[1]:
        raise InputError(
            f"{source}: its brush mask has {count} values, where {size[1]}x{size[0]} pixels have "
            f"{4 * size[0] * size[1]}: it was drawn on an image of another size, or is damaged; export it again"
        )
    inside = np.empty(count, bool)  # whether a value is not 0
    filled = 0
    for values, repeats in _runs(data, count):
        if filled + repeats > count:
            break
        inside[filled : filled + repeats] = values
        filled += repeats
    if filled != count:
        raise InputError(f"{source}: its brush mask is damaged after {filled} of {count} values; export it again")
    return inside.reshape(*size, 4)[..., 3]


def _runs(data: bytes, count: int) -> Iterator[tuple[int | list[int], int]]:
    """Values, or one that is repeated, and how many there are; it ends where the data do."""
    place = 32

    def read(bits: int) -> int:
        nonlocal place
        place += bits
        first, last = (place - bits) // 8, -(-place // 8)
        return int.from_bytes(data[first:last]) >> (8 * last - place) & ((1 << bits) - 1)

    word, counts = read(5) + 1, [read(4) + 1 for _ in _COUNTS]
    while place + 3 < 8 * len(data):
        is_run = read(1)
        repeats = read(counts[read(2)]) + 1
        if place + (1 if is_run else repeats) * word > 8 * len(data):
            return
        yield (read(word) if is_run else [read(word) for _ in range(repeats)]), repeats
