"""The cache: the same pixels as decoding, never wrong, and never begun anew without need."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from collections import namedtuple
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from segkit.data.cache import writing as cache_writing
from segkit.data.cache.cache import find_cache, other_caches
from segkit.data.cache.writing import make_cache
from segkit.data.crops import RandomLongSideCrop
from segkit.data.dataset import SegmentationDataset
from segkit.data.sets.folder import FolderDataModule
from segkit.data.transforms import TrainTransform
from segkit.errors import InputError
from segkit.io import write_png

COUNT = 8


class Logged(FolderDataModule):
    """Writes down what it decodes, and may kill its process at an image once those before are journaled."""

    def __init__(self, root: Path, cache_dir: Path, log: Path, die: int, wait: float) -> None:
        super().__init__(root)
        self.cache_dir, self.log, self.die, self.wait = cache_dir, log, die, wait

    def read(self, sample):
        with self.log.open("a") as file:
            file.write(f"{sample.name}\n")
        if self.die and len(self.log.read_text().split()) == self.die:
            journaled = (self.die - 1) * cache_writing._RECORD.itemsize
            while sum(p.stat().st_size for p in self.cache_dir.glob("*/journal")) < journaled:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.wait)
        return super().read(sample)


def _make(root: Path, cache_dir: Path, log: Path, die: int, wait: float, output: Path) -> None:
    layout = Logged(root, cache_dir, log, die, wait)
    with output.open("w") as file:
        say = partial(print, file=file)
        make_cache(cache_dir, layout, "train", layout.find_samples("train"), workers=1, say=say)


def run(root: Path, cache_dir: Path, log: Path, die: int = 0, wait: float = 0) -> BaseProcess:
    """Make the cache in a process of its own, forked as one of Python would import PyTorch; what it says: run.txt."""
    arguments = (root, cache_dir, log, die, wait, log.with_name("run.txt"))
    process = multiprocessing.get_context("fork").Process(target=_make, args=arguments)
    process.start()
    return process


class Counted(FolderDataModule):
    """Counts what it decodes."""

    reads = 0

    def read(self, sample):
        self.reads += 1
        return super().read(sample)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        height, width = 20 + i, 33 + 2 * i  # all of different sizes
        write_png(tmp_path / f"data/images/train/town/{i}.png", rng.integers(0, 256, (height, width, 3), np.uint8))
        labels = np.where(rng.random((height, width)) < 0.1, 255, rng.integers(0, 3, (height, width)))
        write_png(tmp_path / f"data/labels/train/town/{i}.png", labels.astype(np.uint8))
    (tmp_path / "data/classes.txt").write_text("a\nb\nc\n")
    return tmp_path / "data"


def made(root, cache_dir, layout=None, **options):
    layout = layout or Counted(root)
    samples = layout.find_samples("train")
    return make_cache(cache_dir, layout, "train", samples, **options), layout, samples


def assert_equal_to_decoding(cache, layout, samples):
    for sample in samples:
        for stored, decoded in zip(cache.read(sample), layout.read(sample), strict=True):
            assert stored.dtype == np.uint8 and np.array_equal(stored, decoded)


def test_every_sample_is_as_decoded(root, tmp_path):
    cache, layout, samples = made(root, tmp_path / "cache")
    assert layout.reads == COUNT
    assert_equal_to_decoding(cache, layout, samples)
    found = find_cache(tmp_path / "cache", layout, "train", samples)
    assert_equal_to_decoding(found, layout, samples)
    found.verify(range(COUNT))
    with pytest.raises(ValueError, match="read-only"):
        found.read(samples[0])[0][0, 0] = 1
    assert sorted(path.name for path in found.folder.iterdir()) == ["images.u8", "index.json", "masks.u8"]
    again = Counted(root)
    made(root, tmp_path / "cache", again)
    assert again.reads == 0


def test_crops_of_the_views_are_those_of_decoded_images(root, tmp_path):
    cache, layout, samples = made(root, tmp_path / "cache")
    transform = TrainTransform(RandomLongSideCrop(48, 24))
    sets = [SegmentationDataset(samples, read, transform) for read in (cache.read, layout.read)]
    for i in range(COUNT):
        one, other = sets[0][i], sets[1][i]
        assert one["image"].equal(other["image"]) and one["mask"].equal(other["mask"])


@pytest.mark.slow
def test_a_spawned_worker_reads_it(root, tmp_path):
    cache, layout, samples = made(root, tmp_path / "cache", FolderDataModule(root))
    cache.read(samples[0])  # its maps are open now, and stay here
    assert len(pickle.dumps(cache)) < 10_000
    loader = DataLoader(SegmentationDataset(samples, cache.read), None, num_workers=1, multiprocessing_context="spawn")
    for item, sample in zip(loader, samples, strict=True):
        assert np.array_equal(item["mask"], layout.read(sample)[1])


@pytest.mark.slow
def test_a_killed_run_is_completed(root, tmp_path):
    log, cache_dir = tmp_path / "log", tmp_path / "cache"
    died = run(root, cache_dir, log, die=5)
    died.join()
    assert died.exitcode == -9
    layout = Counted(root)
    assert find_cache(cache_dir, layout, "train", layout.find_samples("train")) is None
    log.unlink()
    resumed = run(root, cache_dir, log)
    resumed.join()
    assert resumed.exitcode == 0
    assert "4 of 8 images already exist" in (tmp_path / "run.txt").read_text()
    assert log.read_text().split() == [f"town/{i}" for i in range(4, COUNT)]
    cache, layout, samples = made(root, cache_dir, layout)
    assert layout.reads == 0
    assert_equal_to_decoding(cache, layout, samples)


def stopped(root, cache_dir, at=5):
    """The folder of a cache that a bad image has stopped; the image is mended, its time as before."""
    bad = root / f"labels/train/town/{at}.png"
    good, times = bad.read_bytes(), (bad.stat().st_atime_ns, bad.stat().st_mtime_ns)
    bad.write_bytes(good[:-20] + bytes(20))  # of the same size and time: the same key
    os.utime(bad, ns=times)
    with pytest.raises(InputError, match=str(bad)) as caught:
        made(root, cache_dir, workers=1)
    assert "\n" not in str(caught.value)
    bad.write_bytes(good)
    os.utime(bad, ns=times)
    (part,) = cache_dir.glob("*.part")
    return part


def test_after_a_bad_image_the_rest_is_kept(root, tmp_path):
    stopped(root, tmp_path / "cache")
    cache, layout, samples = made(root, tmp_path / "cache")
    assert layout.reads == COUNT - 5
    assert_equal_to_decoding(cache, layout, samples)


def test_mending_an_image_keeps_what_was_done_though_the_key_is_another(root, tmp_path):
    bad = root / "labels/train/town/6.png"
    good = bad.read_bytes()
    bad.write_bytes(good[:40])
    with pytest.raises(InputError, match=r"6\.png"):
        made(root, tmp_path / "cache", workers=1)
    bad.write_bytes(good)
    write_png(root / "images/train/town/2.png", np.zeros((22, 37, 3), np.uint8))  # changed in between, same size
    cache, layout, samples = made(root, tmp_path / "cache")
    assert layout.reads == COUNT - 5  # 0, 1, 3, 4, 5 were right
    assert_equal_to_decoding(cache, layout, samples)
    assert not list((tmp_path / "cache").glob("*.part"))


def test_an_unfinished_cache_of_other_data_is_left_alone(root, tmp_path):
    part = stopped(root, tmp_path / "cache")
    shutil.copytree(root, tmp_path / "copy")
    made(tmp_path / "copy", tmp_path / "cache")
    assert part.is_dir()


def test_what_a_power_failure_has_lost_is_decoded_again(root, tmp_path):
    part = stopped(root, tmp_path / "cache")
    size = (part / "images.u8").stat().st_size
    with (part / "images.u8").open("r+b") as file:  # the journal came to the disk, the rows of image 1 did not
        file.seek(3 * 20 * 33 + 100)
        file.write(bytes(50))
    cache, layout, samples = made(root, tmp_path / "cache")
    assert layout.reads == COUNT - 5 + 1
    assert_equal_to_decoding(cache, layout, samples)
    assert (cache.folder / "images.u8").stat().st_size == size


@pytest.mark.parametrize("loss", ["short images", "no masks", "torn journal", "empty index", "no index"])
def test_half_written_files_of_a_stopped_run_do_no_harm(root, tmp_path, loss):
    part = stopped(root, tmp_path / "cache")
    if loss == "short images":
        os.truncate(part / "images.u8", 3 * 20 * 33 + 7)
    elif loss == "no masks":
        (part / "masks.u8").unlink()
    elif loss == "torn journal":
        (part / "journal").write_bytes((part / "journal").read_bytes() + b"\1\2\3")
    elif loss == "empty index":
        (part / "index.json").write_text("")
    else:
        (part / "index.json").unlink()
    cache, layout, samples = made(root, tmp_path / "cache")
    assert layout.reads == {"short images": COUNT - 1, "no masks": COUNT}.get(loss, COUNT - 5)
    assert_equal_to_decoding(cache, layout, samples)


def test_a_run_that_ends_before_the_last_rename_decodes_nothing_again(root, tmp_path, monkeypatch):
    def fails(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache_writing.os, "replace", fails, raising=True)
        patch.setattr(cache_writing, "write_json", lambda path, obj: path.write_text(json.dumps(obj)))
        with pytest.raises(KeyboardInterrupt):
            made(root, tmp_path / "cache")
    cache, layout, samples = made(root, tmp_path / "cache")
    assert layout.reads == 0
    assert_equal_to_decoding(cache, layout, samples)


@pytest.mark.parametrize("name", ["images.u8", "masks.u8"])
def test_damage_is_found(root, tmp_path, name):
    cache, layout, samples = made(root, tmp_path / "cache")
    path = cache.folder / name
    data = bytearray(path.read_bytes())
    data[5] ^= 1  # in the first image, which is always looked at
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged at image town/0; remove"):
        find_cache(tmp_path / "cache", layout, "train", samples)
    data[5] ^= 1
    channels = 3 if name == "images.u8" else 1
    data[channels * int(cache.index.offsets[1]) + 3] ^= 1  # in the second, which only `verify` looks at
    path.write_bytes(data)
    found = find_cache(tmp_path / "cache", layout, "train", samples)
    with pytest.raises(InputError, match="damaged at image town/1"):
        found.verify(range(COUNT))
    os.truncate(path, 100)
    with pytest.raises(InputError, match=f"{name}: has 100 bytes"):
        find_cache(tmp_path / "cache", layout, "train", samples)


def changed(change):
    """An index.json after `change`."""

    def write(path):
        plain = json.loads(path.read_text())
        path.write_text(json.dumps(change(plain)))

    return write


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("{"),
        lambda path: path.unlink(),
        changed(lambda plain: {"version": 9, "images": []}),
        changed(lambda plain: []),
        changed(lambda plain: {**plain, "checksums": []}),
        changed(lambda plain: {**plain, "sizes": plain["sizes"][1:]}),
        changed(lambda plain: {**plain, "key": "0" * 64}),
    ],
)
def test_another_index_is_one_line(root, tmp_path, spoil):
    cache, layout, samples = made(root, tmp_path / "cache")
    spoil(cache.folder / "index.json")
    for attempt in (find_cache, make_cache):
        with pytest.raises(InputError, match="remove") as caught:
            attempt(tmp_path / "cache", layout, "train", samples)
        assert "\n" not in str(caught.value) and str(cache.folder) in str(caught.value)


def test_changed_data_have_another_key_and_old_caches_are_named(root, tmp_path):
    def folder_of(layout=None):
        cache, layout, samples = made(root, tmp_path / "cache", layout)
        assert_equal_to_decoding(cache, layout, samples)
        return cache.folder

    folders = [folder_of()]
    os.utime(root / "images/train/town/3.png", ns=(1, 1))
    folders.append(folder_of())
    (root / "table.csv").write_text("raw,id\n0,0\n1,1\n2,255\n255,255\n")
    folders.append(folder_of())
    write_png(root / "images/train/town/0.png", np.zeros((20, 33, 3), np.uint8))
    folders.append(folder_of())
    (root / "table.csv").unlink()
    for path in (root / "labels").rglob("*.png"):  # read as colours, 0 is grey
        write_png(path, np.zeros((20, 33), np.uint8))
    for path in (root / "images").rglob("*.png"):
        write_png(path, np.zeros((20, 33, 3), np.uint8))
    (root / "palette.csv").write_text("id,r,g,b\n0,0,0,0\n1,1,1,1\n2,2,2,2\n")
    folders += [folder_of(), folder_of(FolderDataModule(root, "colors"))]
    (root / "palette.csv").write_text("id,r,g,b\n0,1,1,1\n1,0,0,0\n2,2,2,2\n")
    folders.append(folder_of(FolderDataModule(root, "colors")))
    assert len(set(folders)) == len(folders)
    layout = FolderDataModule(root, "colors")
    others = other_caches(tmp_path / "cache", layout, "train", layout.find_samples("train"))
    assert sorted(others) == sorted(folders[:-1]) and min(others.values()) > 0
    shutil.copytree(root, tmp_path / "copy")  # another data set of the same kind: its caches are not ours
    copy = FolderDataModule(tmp_path / "copy", "colors")
    assert other_caches(tmp_path / "cache", copy, "train", copy.find_samples("train")) == {}


@pytest.mark.slow
def test_two_processes_make_one(root, tmp_path):
    cache_dir, log = tmp_path / "cache", tmp_path / "log"
    processes = [run(root, cache_dir, log, wait=0.05) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(log.read_text().split()) == [f"town/{i}" for i in range(COUNT)]
    cache, layout, samples = made(root, cache_dir)
    assert layout.reads == 0
    assert_equal_to_decoding(cache, layout, samples)


def test_a_full_disk_is_one_line(root, tmp_path, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    said = []
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 1000))
        with pytest.raises(InputError, match=r"needs 0\.00 GB for 8 images, 0\.00 GB are free; give another cache_dir"):
            made(root, tmp_path / "cache", say=said.append)
    assert "the cache needs" in said[0]

    def full(path, start, array):
        if start > 3000:
            raise OSError(28, "No space left on device")
        return write_at(path, start, array)

    write_at = cache_writing._write_at
    with monkeypatch.context() as patch:
        patch.setattr(cache_writing, "_write_at", full)
        with pytest.raises(InputError, match="No space left on device") as caught:
            made(root, tmp_path / "cache", workers=1)
        assert "\n" not in str(caught.value)
    cache, layout, samples = made(root, tmp_path / "cache")
    assert 0 < layout.reads < COUNT
    assert_equal_to_decoding(cache, layout, samples)


def test_a_folder_that_may_not_be_written(root, tmp_path, monkeypatch):
    cache = made(root, tmp_path / "cache")[0]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="give another cache_dir"):
        made(root, tmp_path / "file")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"no permission .* cache_dir"):
        made(root, tmp_path / "new")
    shutil.rmtree(tmp_path / "new", ignore_errors=True)
    (tmp_path / "cache/.folder-train.lock").unlink()
    assert made(root, tmp_path / "cache")[0].folder == cache.folder  # what is complete is only read
    assert not (tmp_path / "cache/.folder-train.lock").exists()


def test_an_image_that_changes_meanwhile(root, tmp_path):
    class Changing(FolderDataModule):
        def read(self, sample):
            image, mask = super().read(sample)
            return image[1:], mask[1:]

    with pytest.raises(InputError, match="changed while the cache was written"):
        made(root, tmp_path / "cache", Changing(root))
