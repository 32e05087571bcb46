"""Small data sets in the true layouts, as folders and as zip files."""

import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from PIL import Image

from segkit.errors import InputError
from segkit.io import write_png

Content: TypeAlias = str | Sequence[int] | None
Plant: TypeAlias = Callable[[Path, Mapping[str, Content]], Path]

SIZE = (6, 8)


def write(path: Path, content: Content) -> None:
    """A list of names for text, a paletted mask of these raw values for numbers, an image for None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        write_png(path, np.resize(np.array(content, np.uint8), SIZE), [(i, 255 - i, 7) for i in range(256)])
    else:
        rng = np.random.default_rng(sum(map(ord, path.name)))
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(path)


@pytest.fixture
def plant() -> Plant:
    """Write the files of a data set below a root."""

    def build(root: Path, files: Mapping[str, Content]) -> Path:
        for path, content in files.items():
            write(root / path, content)
        return root

    return build


@pytest.fixture
def pack() -> Callable[..., Path]:
    """Zip folders of a root, in an order that no folder would have; `home` is put before every name."""

    def build(archive: Path, root: Path, folders: Iterable[str], method: int, home: str = "") -> Path:
        archive.parent.mkdir(parents=True, exist_ok=True)
        files = sorted((p for folder in folders for p in (root / folder).rglob("*") if p.is_file()), reverse=True)
        with zipfile.ZipFile(archive, "w", method) as opened:
            opened.mkdir(f"{home}folder")
            for file in files:
                opened.write(file, home + file.relative_to(root).as_posix())
        return archive

    return build


@pytest.fixture
def refused() -> Callable[..., str]:
    """Check that a call is refused in one line with these words."""

    def check(call: Callable[[], object], *words: str) -> str:
        with pytest.raises(InputError) as caught:
            call()
        message = str(caught.value)
        assert "\n" not in message and not [word for word in words if word not in message], message
        return message

    return check
