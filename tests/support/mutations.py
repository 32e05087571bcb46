"""Files as accidents leave them: bytes changed, lost, repeated or cut off; and images and masks to do it to."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import rasterio
from PIL import Image

PNG_START = b"\x89PNG\r\n\x1a\n"
HEADER = 64  # bytes at a file's beginning that header edits are aimed at

Rng = np.random.Generator
Mutation = Callable[[bytes, Rng], bytes]


@dataclass(frozen=True)
class Stored:
    """A file in memory, as `segkit.io` reads it."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name

    def read_bytes(self) -> bytes:
        return self.data


def flip(data: bytes, rng: Rng) -> bytes:
    """Change a few bytes anywhere."""
    return _replace(data, rng.integers(0, len(data), rng.integers(1, 9)), rng)


def edit_header(data: bytes, rng: Rng) -> bytes:
    """Change one or two of the first bytes."""
    return _replace(data, rng.integers(0, min(HEADER, len(data)), rng.integers(1, 3)), rng)


def truncate(data: bytes, rng: Rng) -> bytes:
    """Lose the end."""
    return data[: rng.integers(1, len(data))]


def lose(data: bytes, rng: Rng) -> bytes:
    """Lose a part, the end excepted."""
    start, end = sorted(rng.integers(0, len(data) - 16, 2).tolist())
    return data[:start] + data[end + 1 :]


def repeat(data: bytes, rng: Rng) -> bytes:
    """Have a part twice."""
    start, end = sorted(rng.integers(0, len(data), 2).tolist())
    return data[:end] + data[start:]


def clear(data: bytes, rng: Rng) -> bytes:
    """Zeros in place of a part, as of a disk's block that was never written."""
    start, end = sorted(rng.integers(0, len(data), 2).tolist())
    return data[:start] + bytes(end - start) + data[end:]


def append(data: bytes, rng: Rng) -> bytes:
    """Bytes after the end."""
    return data + rng.bytes(int(rng.integers(1, 100)))


def edit_chunk(data: bytes, rng: Rng) -> bytes:
    """Change, drop, repeat or move a chunk of a PNG, whose check sums are right afterwards; of other files, `flip`."""
    if not data.startswith(PNG_START):
        return flip(data, rng)
    chunks = list(png_chunks(data))
    at = int(rng.integers(len(chunks)))
    kind, body = chunks[at]
    match int(rng.integers(4)):
        case 0 if body:
            chunks[at] = kind, _replace(body, rng.integers(0, len(body), 1), rng)
        case 1:
            del chunks[at]
        case 2:
            chunks.insert(at, chunks[at])
        case _:
            chunks.insert(int(rng.integers(len(chunks))), chunks.pop(at))
    return png_of(chunks)


MUTATIONS: tuple[Mutation, ...] = (flip, edit_header, truncate, lose, repeat, clear, append, edit_chunk)


def mutated(originals: dict[str, bytes], count: int, seed: int) -> Iterator[tuple[str, bytes, bytes]]:
    """`count` cases: a label that tells how to make it again, the original file, and the mutated one."""
    names = list(originals)
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        name, mutation = names[i % len(names)], MUTATIONS[int(rng.integers(len(MUTATIONS)))]
        original = originals[name]
        yield f"seed ({seed}, {i}) {mutation.__name__} {name}", original, mutation(original, rng)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = len(PNG_START)
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        yield kind, data[position + 8 : position + 8 + length]
        position += 12 + length


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return PNG_START + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def interlaced_png(pixels: np.ndarray) -> bytes:
    """uint8 (H, W) or (H, W, 3) as an interlaced PNG (Adam7), which Pillow and OpenCV read and do not write."""
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    rows = b"".join(
        b"\0" + row.tobytes() for y, down, x, across in passes for row in pixels[y::down, x::across] if row.size
    )
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 1)
    return png_of([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def geotiff(bands: np.ndarray, **options: object) -> bytes:
    """(bands, H, W) of any type."""
    count, height, width = bands.shape
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", width=width, height=height, count=count, dtype=bands.dtype, **options) as file:
            file.write(bands)
        return bytes(memory.read())


def _replace(data: bytes, positions: np.ndarray, rng: Rng) -> bytes:
    changed = bytearray(data)
    for position in positions.tolist():
        changed[position] ^= int(rng.integers(1, 256))
    return bytes(changed)
