"""Masks of one's own folder: numbers, also of a palette; 0 and 255; colours; and numbers that a table translates."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segkit.data.sets.folder import FolderDataModule, MaskKind
from segkit.io import write_png

PALETTE = "id,name,r,g,b\n0,road,10,20,30\n1,tree,40,50,60\n255,,0,0,0\n255,,1,2,3\n"
COLOURS = {0: (10, 20, 30), 1: (40, 50, 60), 254: (1, 2, 3), 255: (0, 0, 0)}  # 254: another colour of the ignored


@pytest.fixture
def root(tmp_path: Path, plant: Any) -> Path:
    return plant(tmp_path, {"classes.txt": "road\ntree\n", "images/train/a.jpg": None, "images/val/b.jpg": None})


def mask_of(root: Path, values: Any, **options: Any) -> Path:
    """Write the mask of image a: (6, 8) from values or colours."""
    array = np.resize(np.array(values, np.uint8), (6, 8, 3) if np.ndim(values) == 2 else (6, 8))
    write_png(root / "labels/train/a.png", array, **options)
    return root / "labels/train/a.png"


def ids_of(root: Path, masks: MaskKind = "ids") -> list[int]:
    """The first train ids of image a."""
    layout = FolderDataModule(root, masks)
    mask = layout.read(layout.find_samples("train")[0])[1]
    assert mask is not None and mask.shape == (6, 8)
    return [int(label) for label in mask.ravel()[:4]]


def test_ids(root: Path) -> None:
    mask_of(root, [1, 0, 255, 1])
    assert ids_of(root) == [1, 0, 255, 1]
    mask_of(root, [1, 0, 255, 1], palette=[(255 - i, 9, i) for i in range(256)])  # its colours mean nothing
    assert ids_of(root) == [1, 0, 255, 1]


def test_ids_not_declared(root: Path, refused: Any) -> None:
    file = mask_of(root, [1, 0, 7, 1])
    refused(lambda: ids_of(root), str(file), "value 7 is not declared", "row 0, column 2")
    mask_of(root, [0, 255, 255, 0])
    assert ids_of(root) == [0, 255, 255, 0]  # a road and what is ignored: allowed


def test_binary(root: Path, refused: Any) -> None:
    mask_of(root, [255, 0, 0, 255])
    assert ids_of(root, "binary") == [1, 0, 0, 1]
    file = mask_of(root, [255, 0, 128, 255])
    refused(lambda: ids_of(root, "binary"), str(file), "value 128", "row 0, column 2")
    mask_of(root, [1, 0, 0, 1])
    refused(lambda: ids_of(root, "binary"), "value 1", "set masks to ids")
    (root / "classes.txt").write_text("road\ntree\ncar\n")
    refused(lambda: ids_of(root, "binary"), "classes.txt", "3 classes", "binary masks have two")


@pytest.mark.parametrize("kind", ["rgb", "palette"])
def test_colors(root: Path, kind: str) -> None:
    (root / "palette.csv").write_text(PALETTE)
    values = [1, 0, 255, 254, 1, 1, 0, 0]
    if kind == "rgb":
        mask_of(root, [COLOURS[value] for value in values])
    else:
        mask_of(root, values, palette=[COLOURS.get(i, (0, 0, 0)) for i in range(256)])
    assert ids_of(root, "colors") == [1, 0, 255, 255]
    assert FolderDataModule(root, "colors").label_space.palette == (COLOURS[0], COLOURS[1])


def test_colors_not_declared(root: Path, refused: Any) -> None:
    (root / "palette.csv").write_text(PALETTE)
    file = mask_of(root, [COLOURS[0], COLOURS[1], (9, 9, 9), COLOURS[0]])
    words = (str(file), "(9, 9, 9)", "not declared", "12 pixels", "row 0, column 2", "palette.csv")
    message = refused(lambda: ids_of(root, "colors"), *words)
    assert "other undeclared" not in message
    mask_of(root, [COLOURS[0], (7, 7, 7), (9, 9, 9), COLOURS[0]])
    refused(lambda: ids_of(root, "colors"), "(7, 7, 7)", "1 other undeclared colours")
    blended = np.arange(48 * 3, dtype=np.uint8).reshape(-1, 3)  # as many colours as pixels: blended edges
    mask_of(root, blended)
    refused(lambda: ids_of(root, "colors"), "without antialiasing")


def test_colors_need_a_palette_that_is_clear(root: Path, refused: Any) -> None:
    mask_of(root, [COLOURS[0], COLOURS[1]])
    refused(lambda: ids_of(root, "colors"), "palette.csv", "no such file")
    (root / "palette.csv").write_text(PALETTE + "255,,40,50,60\n")
    refused(lambda: ids_of(root, "colors"), "palette.csv", "line 6", "(40, 50, 60)")


@pytest.mark.parametrize("kind", ["ids", "binary", "colors"])
def test_jpeg_masks_are_refused(root: Path, kind: MaskKind, refused: Any) -> None:
    (root / "palette.csv").write_text(PALETTE)
    file = root / "labels/train/a.png"
    file.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(file, format="JPEG")
    refused(lambda: ids_of(root, kind), str(file), "JPEG")


def test_colours_in_a_folder_of_numbers(root: Path, refused: Any) -> None:
    file = mask_of(root, [COLOURS[0], COLOURS[1]])
    refused(lambda: ids_of(root), str(file), "mode RGB")


def test_a_table_translates_numbers(root: Path) -> None:
    (root / "table.csv").write_text("raw, id\n7, 1\n9, 0\n10, 0\n0, 255\n")
    mask_of(root, [7, 9, 0, 10])
    assert ids_of(root) == [1, 0, 255, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("value,id\n1,1\n", ("header", "raw,id")),
        ("raw,id\n1,x\n", ("line 2", "whole numbers")),
        ("raw,id\n1\n", ("line 2", "whole numbers")),
        ("raw,id\n0,0\n1,2\n", ("line 3", "maps 1 to 2", "0..1")),
        ("raw,id\n256,0\n", ("line 2", "maps 256", "0..255")),
        ("raw,id\n-1,0\n", ("line 2", "maps -1")),
        ("raw,id\n1,0\n1,1\n", ("line 3", "second time")),
    ],
)
def test_a_wrong_table_is_refused(root: Path, text: str, words: tuple[str, ...], refused: Any) -> None:
    (root / "table.csv").write_text(text)
    refused(lambda: FolderDataModule(root).label_space, str(root / "table.csv"), *words)


def test_a_value_that_the_table_lacks(root: Path, refused: Any) -> None:
    (root / "table.csv").write_text("raw,id\n7,1\n9,0\n")
    mask_of(root, [7, 9, 8, 7])
    refused(lambda: ids_of(root), "value 8 is not declared", "row 0, column 2")


def test_the_key_of_a_cache_follows_what_the_masks_mean(root: Path) -> None:
    def keys() -> list[str]:
        kinds: tuple[MaskKind, ...] = ("ids", "colors", "binary")
        return [FolderDataModule(root, kind).mask_key() for kind in kinds]

    (root / "palette.csv").write_text(PALETTE)
    before = keys()
    assert len(set(before)) == 3
    (root / "palette.csv").write_text(PALETTE.replace("1,2,3", "1,2,4"))
    after = keys()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]


def test_an_unknown_kind_of_masks(tmp_path: Path, refused: Any) -> None:
    refused(lambda: FolderDataModule(tmp_path, "grey"), "grey", "ids, binary and colors")  # type: ignore[arg-type]
