"""A run's folder is one training's at a time, and holds nothing half written when the next one goes on in it."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from filelock import FileLock
from left_behind import left_behind

from segkit import files
from segkit.cli import main
from segkit.errors import InputError
from segkit.training import run_folder
from segkit.training.fit import fit_loggers


def hold(run: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with run_folder.run_lock(run):
        ready.set()
        signal.pause()


def test_a_second_training_is_refused_until_the_first_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    first = context.Process(target=hold, args=(tmp_path / "run", ready))
    first.start()
    assert ready.wait(60)
    monkeypatch.setattr(run_folder, "WAIT", 0.0)
    said = r"--run_dir .*run: another `segkit fit` is writing here"
    with pytest.raises(InputError, match=said) as caught, run_folder.run_lock(tmp_path / "run"):
        pass
    assert "\n" not in str(caught.value)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    with run_folder.run_lock(tmp_path / "run"):
        pass


def test_fit_is_refused_before_it_touches_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_folder, "WAIT", 0.0)
    (tmp_path / "run").mkdir()
    synthetic = ["--data", "SyntheticDataModule", "--data.root", str(tmp_path / "data"), "--data.num_train", "4"]
    network = ["--model.network", "FCN", "--model.network.encoder", "resnest14_tiny", "--data.batch_size", "2"]
    with FileLock(tmp_path / "run" / ".lock"):
        assert main(["fit", *synthetic, *network, "--run_dir", str(tmp_path / "run")]) == 2
    assert "another `segkit fit` is writing here" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_training_that_is_refused_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "camvid", "--data.root", str(tmp_path / "data")]  # a short name, as `segkit data` takes it
    network = ["--model.network", "FCN", "--model.network.encoder", "resnest14_tiny", "--trainer.accelerator", "cpu"]
    assert main(["fit", *data, *network, "--run_dir", str(tmp_path / "runs/1")]) == 2
    assert "data: no such data folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_lock_goes_where_nothing_else_is_left_and_stays_where_something_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()  # the user's own
    with run_folder.run_lock(run):
        assert [path.name for path in run.iterdir()] == [".lock"]
    assert list(run.iterdir()) == []
    with run_folder.run_lock(tmp_path / "other/run"):
        (tmp_path / "other/run/config.yaml").touch()
    assert sorted(path.name for path in (tmp_path / "other/run").iterdir()) == [".lock", "config.yaml"]


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: FileLock) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(run_folder.FileLock, "acquire", fails)
    with pytest.warns(UserWarning, match="no locks .*Operation not supported"), run_folder.run_lock(tmp_path):
        pass


def test_other_ranks_leave_the_lock_to_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with FileLock(tmp_path / ".lock"), run_folder.run_lock(tmp_path):
        pass


def test_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    """In a run's folder whoever wrote it, once it is locked; in any other if its process is dead."""
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    elsewhere = checkpoints / ".last.ckpt.00000000.1.0123abcd.tmp"  # of another machine, or a container before this one
    dead, own = left_behind(checkpoints / "last.ckpt"), checkpoints / ".notes.tmp"
    for path in (elsewhere, dead, own):
        path.touch()
    with run_folder.run_lock(tmp_path / "run"):
        pass
    assert list(checkpoints.iterdir()) == [own]


def test_writing_into_a_folder_removes_what_dead_processes_left_there(tmp_path: Path) -> None:
    dead = left_behind(tmp_path / "a.png")
    elsewhere = tmp_path / ".a.png.00000000.1.0123abcd.tmp"
    with files.replacing(tmp_path / "b.png") as alive:
        for path in (dead, elsewhere, alive):
            path.touch()
        files._cleaned.clear()
        files.write_text(tmp_path / "c.txt", "")
        assert alive.exists() and elsewhere.exists() and not dead.exists()
        os.utime(elsewhere, (0, 0))
        files.remove_left_behind(tmp_path)
        assert alive.exists() and not elsewhere.exists()


def test_without_tensorboard_only_metrics_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = [type(logger).__name__ for logger in fit_loggers(None, tmp_path, None)]
    monkeypatch.setattr(run_folder, "find_spec", lambda name: None)
    with caplog.at_level("INFO"):
        left = [type(logger).__name__ for logger in fit_loggers(None, tmp_path, None)]
    assert names == [*left, "TensorBoardLogger"] and len(left) == 1
    assert "no TensorBoard log: it is not installed; pip install 'segkit-torch[tensorboard]'" in caplog.text
