"""Folders of small images with a class each, and their like as tars and zips."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("n01440764", "n01443537", "n02119789")


def jpeg(seed: int, label: int, size: tuple[int, int] = (40, 36)) -> bytes:
    """Noise whose brightness tells the class."""
    rng = np.random.default_rng(seed)
    pixels = (rng.integers(0, 60, (size[1], size[0], 3)) + 60 * label).clip(0, 255).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=90)
    return data.getvalue()


def files(train: int = 4, val: int = 2) -> dict[str, bytes]:
    """`train/CLASS/NAME.JPEG` and `val/...`, in the order of the names; contents differ."""
    return {
        f"{part}/{name}/{name}_{i}.JPEG": jpeg(100 * label + 10 * i + (part == "val"), label)
        for part, count in (("train", train), ("val", val))
        for label, name in enumerate(CLASSES)
        for i in range(count)
    }


def write_folders(root: Path, contents: Mapping[str, bytes] | None = None) -> Path:
    """Write them below `root`."""
    for path, data in (files() if contents is None else contents).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def tar_of(contents: Mapping[str, bytes]) -> bytes:
    """An uncompressed tar."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def write_tars(root: Path) -> list[str]:
    """Both tars as published: a tar for each class in that of the training, validation images side by side.

    Returns:
        The class of each validation image, in their order, which is not that of the classes.
    """
    contents = files()
    inner = {
        f"{name}.tar": tar_of({p.split("/")[2]: d for p, d in contents.items() if p.startswith(f"train/{name}/")})
        for name in CLASSES
    }
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    val = sorted((p for p in contents if p.startswith("val/")), key=lambda p: p[::-1])
    flat = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": contents[path] for i, path in enumerate(val)}
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of(flat))
    return [path.split("/")[1] for path in val]


def write_zip(path: Path, home: str = "ILSVRC/Data/CLS-LOC/") -> Path:
    """The folders in a zip, as Kaggle has them."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files().items():
            archive.writestr(home + name, data)
    return path


def write_shapes(root: Path, train: int, val: int, side: int = 48) -> Path:
    """Discs, squares and stripes of any colour, size and place on noise: what can be learned without pretraining."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:side, :side]
    for part, count in (("train", train), ("val", val)):
        for name in ("disc", "square", "stripes"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                radius = int(rng.integers(side // 5, side // 3))
                y, x = rng.integers(radius, side - radius, 2)
                inside = (abs(rows - y) <= radius) & (abs(cols - x) <= radius)
                if name == "disc":
                    inside = (rows - y) ** 2 + (cols - x) ** 2 <= radius**2
                if name == "stripes":
                    inside &= (rows - y) % 6 < 3
                pixels = rng.integers(0, 80, (side, side, 3))
                pixels[inside] = rng.integers(100, 256, 3)
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{i}.png")
    return root
