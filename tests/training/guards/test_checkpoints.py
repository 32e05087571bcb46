"""Checkpoints are whole or not there, and the newest whole one is found."""

from pathlib import Path

import pytest
import torch

from segkit.errors import InputError
from segkit.training.guards import checkpoints
from segkit.training.guards.checkpoints import AtomicCheckpointIO, newest_checkpoint


def save(folder: Path, step: int, name: str = "last.ckpt") -> None:
    AtomicCheckpointIO().save_checkpoint({"step": step, "weights": torch.ones(1000) * step}, folder / name)


def step(path: Path) -> int:
    return torch.load(path, weights_only=True)["step"]


def test_the_one_before_stays(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        save(tmp_path, number)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last-previous.ckpt", "last.ckpt"]
    assert (step(tmp_path / "last.ckpt"), step(tmp_path / "last-previous.ckpt")) == (3, 2)
    save(tmp_path, 4, "best.ckpt"), save(tmp_path, 5, "best.ckpt")
    assert not (tmp_path / "best-previous.ckpt").exists()


def test_a_write_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def half(checkpoint: object, file) -> None:
        file.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", half)
    with pytest.raises(InputError, match="the disk is full"):
        save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"] and step(tmp_path / "last.ckpt") == 1


def test_the_newest_whole_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint was written yet"):
        newest_checkpoint(tmp_path)
    save(tmp_path, 1, "epoch000-mIoU0.1.ckpt"), save(tmp_path, 2), save(tmp_path, 3)
    assert newest_checkpoint(tmp_path).name == "last.ckpt"
    (tmp_path / "last.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:-100])
    with pytest.warns(UserWarning, match="last.ckpt.*resuming from the one before it"):
        assert newest_checkpoint(tmp_path).name == "last-previous.ckpt"
    (tmp_path / "last-previous.ckpt").unlink()  # killed between the two renames
    with pytest.warns(UserWarning):
        assert newest_checkpoint(tmp_path).name == "epoch000-mIoU0.1.ckpt"
    (tmp_path / "epoch000-mIoU0.1.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(InputError, match="no checkpoint is complete"):
        newest_checkpoint(tmp_path)
