"""Files that cannot be written: one line with the path, the reason and a cure; what was there stays."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from disks import file_limit
from safetensors.torch import save_file

from segkit.errors import InputError
from segkit.files import check_writable, replacing, write_bytes, write_json, write_refusal


def refused(folder: Path, path: Path) -> str:
    """What is said of `path`; only `folder`'s earlier file is left."""
    with pytest.raises(InputError) as caught:
        write_bytes(path, bytes(20_000))
    text = str(caught.value)
    assert text.startswith(f"{path}: cannot be written: ") and "\n" not in text
    assert [p.name for p in folder.iterdir()] == ["kept"] and (folder / "kept").read_text() == "mine"
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "kept").write_text("mine")
    return tmp_path


def test_a_file_that_is_too_large(folder: Path) -> None:
    with file_limit(4096):
        assert "ulimit -f" in refused(folder, folder / "new") and "ulimit -f" in refused(folder, folder / "kept")
        assert "ulimit -f" in refused(folder, folder / "kept")
    write_bytes(folder / "kept", bytes(20_000))
    assert (folder / "kept").stat().st_size == 20_000


def test_a_path_that_cannot_be(folder: Path) -> None:
    assert "a part of this path is a file" in refused(folder, folder / "kept" / "new")
    assert "a part of this path is a file" in refused(folder, folder / "kept" / "deeper" / "new")
    assert "the name is too long" in refused(folder, folder / ("x" * 300))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full; free some of it"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EACCES, "no permission"),
        (errno.EMFILE, "too many files are open"),
    ],
)
def test_whatever_the_disk_says(folder: Path, monkeypatch, number: int, words: str) -> None:
    def fail(source, target) -> None:
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    monkeypatch.setattr(os, "replace", fail)
    assert words in refused(folder, folder / "kept")


@pytest.mark.parametrize("library", ["torch", "torch, to a name", "safetensors"])
def test_what_libraries_say_of_a_full_disk(folder: Path, library: str) -> None:
    tensors = {"weight": torch.zeros(10_000)}
    refusal = pytest.raises(InputError, match=r"cannot be written: the (disk|file) is ")
    with file_limit(4096), refusal as caught, replacing(folder / "kept") as temporary:
        if library == "safetensors":
            save_file(tensors, temporary)
        elif library == "torch":
            with temporary.open("wb") as file:
                torch.save(tensors, file)
        else:
            torch.save(tensors, temporary)
    assert str(caught.value).startswith(str(folder / "kept")) and (folder / "kept").read_text() == "mine"
    assert [p.name for p in folder.iterdir()] == ["kept"]


def test_what_is_about_something_else_stays_as_it_is(folder: Path) -> None:
    for error in (KeyError("x"), ValueError("x"), PermissionError(errno.EACCES, "no", "/elsewhere"), InputError("x")):
        with pytest.raises(type(error)) as caught, replacing(folder / "kept"):
            raise error
        assert caught.value is error
    assert write_refusal(OSError("no number")) is write_refusal(ValueError("x")) is None
    assert write_refusal(PermissionError(errno.EACCES, "no")) is None  # of nobody knows what
    assert str(write_refusal(OSError(errno.ENOSPC, "full"))) == (
        "a file: cannot be written: the disk is full; free some of it, or name a place on another one"
    )


def test_a_full_disk_is_refused_before_work(folder: Path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    for used in (100, 99):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, used=used: usage(100, used, 100 - used))
        if used == 100:
            with pytest.raises(InputError, match=r"the disk is full; free some of it, or give another --run_dir"):
                check_writable(folder / "new", "--run_dir")
        else:
            check_writable(folder / "new")
    assert not (folder / "new").exists()


def test_a_finished_file_is_renamed(folder: Path) -> None:
    write_json(folder / "deep" / "new.json", {"a": 1})
    assert [p.name for p in (folder / "deep").iterdir()] == ["new.json"]
