"""Counts and class weights, by hand and by another formula; where they are kept and when they are counted again."""

import json
import math
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from segkit.data import statistics as module
from segkit.data.sets.camvid import CamVidDataModule
from segkit.data.sets.folder import FolderDataModule
from segkit.data.statistics import class_weights, statistics, statistics_path
from segkit.errors import InputError
from segkit.io import write_png

# 8 pixels each; class c is in no mask
MASKS = {
    "x": [[0, 0, 0, 0], [0, 0, 1, 255]],
    "y": [[0, 0, 0, 0], [1, 1, 1, 3]],
    "z": [[3, 3, 255, 255], [255, 255, 255, 255]],
}


class Counted(FolderDataModule):
    reads = 0

    def read_mask(self, file):
        self.reads += 1
        return super().read_mask(file)


@pytest.fixture
def root(tmp_path):
    home = tmp_path / "data"
    for name, mask in MASKS.items():
        write_png(home / f"images/train/{name}.png", np.zeros((2, 4, 3), np.uint8))
        write_png(home / f"labels/train/{name}.png", np.array(mask, np.uint8))
    (home / "classes.txt").write_text("a\nb\nc\nd\n")
    return home


def test_counts(root):
    found = statistics(FolderDataModule(root), "train")
    assert found.pixels.tolist() == [10, 4, 0, 3] and found.ignored == 7
    assert found.images.tolist() == [2, 2, 0, 2] and found.class_names == ("a", "b", "c", "d")
    assert found.areas(["z", "x"]).tolist() == [[0, 0, 0, 2], [6, 1, 0, 0]]


def test_weights_by_hand(root):
    found = statistics(FolderDataModule(root), "train")
    # 17 valid pixels: 10, 4, 0 and 3 of them
    enet = [1 / math.log(1.02 + share) for share in (10 / 17, 4 / 17, 0, 3 / 17)]
    assert class_weights(found, "enet") == pytest.approx(enet, rel=1e-12)
    assert enet == pytest.approx([2.1047, 4.3981, 50.4983, 5.5749], abs=1e-4)
    # a and b are in x (7 valid pixels) and y (8): 10/15 and 4/15; d in y and z (2): 3/10; median of the three is 3/10
    assert class_weights(found, "median") == pytest.approx([0.3 / (10 / 15), 0.3 / (4 / 15), 0, 1], rel=1e-12)


def test_weights_by_another_formula(tmp_path):
    rng, masks = np.random.default_rng(0), []
    for i in range(6):
        mask = rng.choice([*range(i % 3, 5), 255], (9, 11)).astype(np.uint8)
        masks.append(mask)
        write_png(tmp_path / f"images/train/{i}.png", np.zeros((9, 11, 3), np.uint8))
        write_png(tmp_path / f"labels/train/{i}.png", mask)
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    found = statistics(FolderDataModule(tmp_path), "train")
    stack = np.stack(masks)
    shares = [(stack == k).sum() / (stack != 255).sum() for k in range(5)]
    assert np.allclose(class_weights(found, "enet"), [1 / np.log(1.02 + share) for share in shares], rtol=1e-12)
    freq = [
        sum((m == k).sum() for m in masks) / sum((m != 255).sum() for m in masks if (m == k).any()) for k in range(5)
    ]
    assert np.allclose(class_weights(found, "median"), [median(freq) / f for f in freq], rtol=1e-12)


def test_wrong_weights_are_one_line(root):
    found = statistics(FolderDataModule(root), "train")
    with pytest.raises(InputError, match="'foo': allowed are enet and median"):
        class_weights(found, "foo")
    for path in (root / "labels/train").iterdir():
        write_png(path, np.full((2, 4), 255, np.uint8))
    empty = statistics(FolderDataModule(root), "train")
    assert empty.ignored == 24
    with pytest.raises(InputError, match="no valid pixel"):
        class_weights(empty, "enet")


def test_kept_until_the_data_change(root):
    first, again, said = Counted(root), Counted(root), []
    one = statistics(first, "train", say=said.append)
    two = statistics(again, "train", say=said.append)
    assert (first.reads, again.reads) == (3, 0) and len(said) == 1 and str(statistics_path(first, "train")) in said[0]
    assert two.split == "train" and two.class_names == one.class_names and two.by_image.keys() == MASKS.keys()
    assert all(np.array_equal(one.by_image[name], two.by_image[name]) for name in MASKS)
    plain = json.loads(statistics_path(first, "train").read_text())
    assert plain["classes"][1] == {
        "class": "b", "pixels": 4, "share": 4 / 17, "images": 2,
        "enet": class_weights(one, "enet")[1], "median": class_weights(one, "median")[1],
    }  # fmt: skip
    write_png(root / "labels/train/z.png", np.zeros((2, 4), np.uint8))
    assert statistics(again, "train").pixels.tolist() == [18, 4, 0, 1] and again.reads == 3
    (root / "table.csv").write_text("raw,id\n0,0\n1,0\n3,3\n255,255\n")
    assert statistics(Counted(root), "train").pixels.tolist() == [22, 0, 0, 1]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 1', '{"key": 5, "class_names": 1}'])
def test_a_damaged_file_is_counted_again(root, text):
    path = statistics_path(FolderDataModule(root), "train")
    path.write_text(text)
    assert statistics(FolderDataModule(root), "train").pixels.tolist() == [10, 4, 0, 3]
    assert json.loads(path.read_text())["ignored"] == 7


def test_a_file_of_ones_own(root, tmp_path):
    path = tmp_path / "new/folder/mine.json"
    statistics(FolderDataModule(root), "train", path)
    layout = Counted(root)
    statistics(layout, "train", path)
    assert layout.reads == 0 and not statistics_path(layout, "train").exists()


def test_data_that_nobody_may_write_to_have_their_statistics_in_the_cache(root, tmp_path, monkeypatch):
    """They are said to lie there, and are read from there the next time."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != root and access(path, mode))
    monkeypatch.setenv("SEGKIT_CACHE", str(tmp_path / "cache"))
    said = []
    assert statistics(FolderDataModule(root), "train", say=said.append).pixels.tolist() == [10, 4, 0, 3]
    (kept,) = (tmp_path / "cache").rglob("*.json")
    assert said == [f"statistics of folder train: {kept}"]
    assert sorted(path.name for path in root.iterdir()) == ["classes.txt", "images", "labels"]
    again = Counted(root)
    assert statistics(again, "train").pixels.tolist() == [10, 4, 0, 3] and again.reads == 0


def test_statistics_that_can_be_kept_nowhere(root, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    said = []
    assert statistics(FolderDataModule(root), "train", say=said.append).pixels.tolist() == [10, 4, 0, 3]
    assert len(said) == 1 and "counted again each time" in said[0]
    with pytest.raises(InputError, match="no permission to write here; give another --output"):
        statistics(FolderDataModule(root), "train", tmp_path / "mine.json")


def test_a_wrong_mask_is_named(root):
    write_png(root / "labels/train/y.png", np.full((2, 4), 9, np.uint8))
    with pytest.raises(InputError, match=r"y\.png: raw label value 9"):
        statistics(FolderDataModule(root), "train")
    assert not statistics_path(FolderDataModule(root), "train").exists()


def test_of_a_zip_they_lie_beside_it_with_its_name(tmp_path):
    for name in ("one.zip", "two.ZIP"):
        write_png(tmp_path / "i.png", np.zeros((2, 4, 3), np.uint8))
        write_png(tmp_path / "l.png", np.full((2, 4), 3 if name == "one.zip" else 4, np.uint8))
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.write(tmp_path / "i.png", "CamVid/train/a.png")
            archive.write(tmp_path / "l.png", "CamVid/trainannot/a.png")
    assert statistics(CamVidDataModule(tmp_path / "one.zip"), "train").pixels[3] == 8
    assert statistics(CamVidDataModule(tmp_path / "two.ZIP"), "train").pixels[4] == 8
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [
        "one-segkit-statistics-train.json",
        "two-segkit-statistics-train.json",
    ]


def test_of_several_at_once_one_counts(root, monkeypatch):
    counts, count = [], module._count

    def counted(*arguments):
        counts.append(1)
        return count(*arguments)

    monkeypatch.setattr(module, "_count", counted)
    with ThreadPoolExecutor(4) as pool:  # a lock is of a file object, so that threads stand for processes
        found = list(pool.map(lambda _: statistics(FolderDataModule(root), "train"), range(4)))
    assert len(counts) == 1 and {tuple(one.pixels.tolist()) for one in found} == {(10, 4, 0, 3)}
