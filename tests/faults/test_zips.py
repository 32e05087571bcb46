"""Mutated zips of data sets: what is read has its own pixels, the rest is refused, and no file is written outside."""

import contextlib
import io
import os
import shutil
import stat
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from campaign import Campaign

from segkit.cli import main
from segkit.data.datamodule import SegmentationDataModule
from segkit.data.sets.ade20k import ADE20KDataModule
from segkit.data.sets.cityscapes import CityscapesDataModule
from segkit.errors import InputError

HOSTILE = ("../../../../X.png", "/tmp/X.png", "C:/X.png", "..\\..\\X.png", "a/../../X.png", "a\0X.png", "./", "")
ODD = (
    "ü/ß {}.png",
    "new\nline {}.png",
    "\x1b[31m {}.png",
    "-rf {}.png",
    "{} .png",
    "CON {}.png",
    "{}" + "n" * 200 + ".png",
)
FIELDS = {  # offset and bytes of the numbers in a directory's entry, in a member's header, and at a zip's end
    b"PK\x01\x02": (
        (4, 2),
        (6, 2),
        (8, 2),
        (10, 2),
        (16, 4),
        (20, 4),
        (24, 4),
        (28, 2),
        (30, 2),
        (32, 2),
        (38, 4),
        (42, 4),
    ),
    b"PK\x03\x04": ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
    b"PK\x05\x06": ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
}
FOLDERS = {  # of each archive of a data set
    "ade20k": {"ADEChallengeData2016.zip": ("images", "annotations")},
    "cityscapes": {"leftImg8bit_trainvaltest.zip": ("leftImg8bit",), "gtFine_trainvaltest.zip": ("gtFine",)},
}
NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)

Files = dict[str, bytes]
Known = dict[str, tuple[np.ndarray, np.ndarray]]  # of each name: RGB (H, W, 3), train ids (H, W)


def png(array: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", array[..., ::-1] if array.ndim == 3 else array)[1])


def samples(rng: np.random.Generator, path: str, mask_path: str, name: str, raw: int) -> tuple[Files, Known]:
    """Three images and masks of other values each, whose train ids are the raw values less `raw`."""
    files, known = Files(), Known()
    for i in range(3):
        image = rng.integers(0, 256, (6, 8, 3), np.uint8)
        ids = rng.integers(0, 2, (6, 8), np.uint8)
        files |= {path.format(i): png(image), mask_path.format(i): png(ids + np.uint8(raw))}
        known[name.format(i)] = image, ids
    return files, known


def data_set(kind: str, rng: np.random.Generator) -> tuple[dict[str, Files], Known]:
    """The files of each archive, and what must be read."""
    if kind == "ade20k":
        paths = ("images/validation/ADE_val_{}.png", "annotations/validation/ADE_val_{}.png")
        files, known = samples(rng, *paths, "ADE_val_{}", 1)
        return {"ADEChallengeData2016.zip": files}, known
    stem = "val/bonn/bonn_{}_000019"
    paths = (f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_labelIds.png")
    files, known = samples(rng, *paths, "bonn/bonn_{}_000019_leftImg8bit", 7)
    archives = FOLDERS[kind].items()
    return {name: {f: files[f] for f in files if f.startswith(folders)} for name, folders in archives}, known


def pack(files: Files, method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in sorted(files):
            archive.writestr(name, files[name])
    return buffer.getvalue()


def flipped(data: bytearray, rng: np.random.Generator) -> None:
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        data[place] ^= 1 << rng.integers(8)


def cut(data: bytearray, rng: np.random.Generator) -> None:
    del data[rng.integers(len(data)) :]


def padded(data: bytearray, rng: np.random.Generator) -> None:
    """Right still, mostly: bytes before the first member or after the last."""
    junk = rng.bytes(rng.integers(1, 99))
    data[:] = junk + data if rng.integers(2) else data + junk


def moved(data: bytearray, rng: np.random.Generator) -> None:
    """A block is cut out, or is there twice."""
    start, length = rng.integers(len(data)), rng.integers(1, 200)
    data[start : start + length] = data[start : start + length] * int(2 * rng.integers(2))


def renumbered(data: bytearray, rng: np.random.Generator) -> None:
    signature = list(FIELDS)[rng.integers(len(FIELDS))]
    offset, size = FIELDS[signature][rng.integers(len(FIELDS[signature]))]
    place = pick(data, signature, rng) + offset
    number = NUMBERS[rng.integers(len(NUMBERS))] if rng.integers(2) else int(rng.integers(len(data)))
    data[place : place + size] = struct.pack("<I", number)[:size]


def renamed(data: bytearray, rng: np.random.Generator) -> None:
    """Another name of the same length in the directory, and in the member's header, too, or not."""
    places = [place + 46 for place in find(data, b"PK\x01\x02")]
    lengths = [struct.unpack_from("<H", data, place - 18)[0] for place in places]
    first, other = rng.integers(len(places), size=2)
    old = bytes(data[places[first] : places[first] + lengths[first]])
    new = bytes(data[places[other] : places[other] + lengths[other]])
    if rng.integers(2):
        new = HOSTILE[rng.integers(5)].encode().ljust(len(old), b"x")[: len(old)]
    if len(new) == len(old):
        data[places[first] : places[first] + len(old)] = new
        if rng.integers(2):
            data[:] = data.replace(old, new)


def exchanged(data: bytearray, rng: np.random.Generator) -> None:
    """Two entries of the directory take each other's name: only the members' own headers know better."""
    places = [place + 46 for place in find(data, b"PK\x01\x02")]
    length = struct.unpack_from("<H", data, places[0] - 18)[0]
    a, b = (places[i] for i in rng.permutation(len(places))[:2])
    if struct.unpack_from("<H", data, a - 18) == struct.unpack_from("<H", data, b - 18):
        length = struct.unpack_from("<H", data, a - 18)[0]
        data[a : a + length], data[b : b + length] = bytes(data[b : b + length]), bytes(data[a : a + length])


def find(data: bytes, signature: bytes) -> list[int]:
    places, place = [], -1
    while (place := data.find(signature, place + 1)) >= 0:
        places.append(place)
    return places


def pick(data: bytes, signature: bytes, rng: np.random.Generator) -> int:
    places = find(data, signature)
    return places[rng.integers(len(places))]


MUTATIONS: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    flipped, cut, padded, moved, renumbered, renumbered, renamed, exchanged,
)  # fmt: skip


def with_strangers(files: Files, rng: np.random.Generator) -> bytes:
    """A sound zip with one more member, whose name leads out, is odd, or that is a link, and one that is a bomb."""
    buffer = io.BytesIO()
    names = [*HOSTILE, *ODD]
    name = names[rng.integers(len(names))]
    folder = next(iter(files)).rpartition("/")[0] + "/" if rng.integers(2) else ""
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for known in sorted(files):
            archive.writestr(known, files[known])
        info = zipfile.ZipInfo(folder + "placeholder")
        info.filename = info.orig_filename = folder + name  # unlike the constructor, keeps what leads out
        if rng.integers(3) == 0:
            info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, b"\0" * 10**6 if rng.integers(4) == 0 else next(iter(files.values())))
    return buffer.getvalue()


def case(root: Path, rng: np.random.Generator) -> tuple[str, type[SegmentationDataModule], Known, str]:
    """Write the zips of a data set, one of them mutated."""
    kind = ("ade20k", "cityscapes")[rng.integers(2)]
    archives, known = data_set(kind, rng)
    method = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[rng.integers(2)]
    victim = list(archives)[rng.integers(len(archives))]
    what = "strangers"
    for name, files in archives.items():
        data = bytearray(pack(files, method))
        if name == victim and rng.integers(6) == 0:
            data = bytearray(with_strangers(files, rng))
        elif name == victim:
            mutate = MUTATIONS[rng.integers(len(MUTATIONS))]
            what = mutate.__name__
            mutate(data, rng)
        (root / name).write_bytes(data)
    return (
        kind,
        {"ade20k": ADE20KDataModule, "cityscapes": CityscapesDataModule}[kind],
        known,
        f"{kind} {victim} {what}",
    )


def data_check(kind: str, root: Path) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["data", "check", kind, str(root), "--workers", "1"])
    if code == 2:
        raise InputError(err.getvalue().strip().rpartition("\r")[2].rpartition("\x1b[A")[2])


def read_all(module: SegmentationDataModule, stage: str, known: Known, output: Path) -> None:
    """Every sample has the pixels of its name, and its label map would lie in the output folder."""
    module.setup(stage)
    loader = module.predict_dataloader() if stage == "predict" else module.val_dataloader()
    for batch in loader:
        (name,) = batch["name"]
        assert os.path.normpath(output / f"{name}.png").startswith(f"{output}{os.sep}"), f"{name!r} leads out"
        if stage == "predict" and name not in known:  # an odd name
            continue
        image, ids = known[name]
        np.testing.assert_array_equal(batch["image"][0].permute(1, 2, 0), image, err_msg=name)
        if stage == "validate":
            np.testing.assert_array_equal(batch["mask"][0], ids, err_msg=name)


@contextlib.contextmanager
def kept(refusals: list[InputError]) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        refusals.append(error)


def attack(campaign: Campaign, count: int, seed: int, folder: Path) -> None:
    unpack = prepare_common().unpack
    for i in range(count):
        root = folder / f"{seed}-{i}" / "data"
        root.mkdir(parents=True)
        kind, module, known, label = case(root, np.random.default_rng((seed, i)))
        before = set(folder.rglob("*"))
        output, refusals = root.with_name("out"), list[InputError]()
        with campaign.case(f"seed {seed}, case {i}: {label}"):
            with kept(refusals):
                data_check(kind, root)
            for stage in ("validate", "predict"):
                with kept(refusals):
                    read_all(module(root, num_workers=0), stage, known, output)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                for archive, folders in FOLDERS[kind].items():
                    with kept(refusals):
                        unpack(root / archive, {name: {} for name in folders}, output)
            outside = [path for path in set(folder.rglob("*")) - before if output not in (path, *path.parents)]
            assert not outside, f"written outside: {outside}"
            if refusals:
                raise refusals[-1]
        shutil.rmtree(root.parent)


def prepare_common() -> Any:
    folder = str(Path(__file__).parents[2] / "datasets")
    sys.path.insert(0, folder)
    try:
        return import_module("prepare_common")
    finally:
        sys.path.remove(folder)


@pytest.mark.slow
def test_a_sample_of_zips(figures: Callable[[str], None], tmp_path: Path) -> None:
    campaign = Campaign("zips (sample)", figures)
    attack(campaign, 60, 0, tmp_path)
    campaign.finish()


@pytest.mark.campaign
def test_zips(figures: Callable[[str], None], tmp_path: Path) -> None:
    campaign = Campaign("zips", figures)
    attack(campaign, 500, 1, tmp_path)
    campaign.finish()
