"""The summary of a run: numbers of a real tiny training, what is printed, and what a stopped run is told."""

import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from segkit.models.segmentation import FCN
from segkit.training.module import SegmentationModule
from segkit.training.views import summary
from segkit.training.views.curves import CurvePlotter
from segkit.training.views.summary import RunSummary, clock, rate_text, summary_lines

SCORES = (0.25, 0.75, 0.5)  # of the validations


class Module(SegmentationModule):
    """Scores as it is told to."""

    def on_validation_epoch_end(self) -> None:
        self.log_dict({"val/mIoU": SCORES[self.current_epoch], "val/IoU/sea, ocean": 0.5})


class Stop(Callback):
    """Raises in the second epoch, after its first step."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.current_epoch == 1:
            raise self.error


def fit(folder: Path, *callbacks: Callback, epochs: int = 3, ckpt_path: Path | None = None) -> pl.Trainer:
    given = {"image": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "mask": torch.zeros(2, 32, 32, dtype=torch.uint8)}
    loader = DataLoader([given] * 2, batch_size=None)
    best = {"monitor": "val/mIoU", "mode": "max", "auto_insert_metric_name": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[
            *callbacks,
            CurvePlotter(),
            RunSummary(),
            ModelCheckpoint(filename="epoch{epoch:03d}-mIoU{val/mIoU:.4f}", **best),
            ModelCheckpoint(filename="last", enable_version_counter=False, save_on_train_epoch_end=True),
        ],
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
    )
    trainer.fit(Module(FCN("resnest14_tiny", 3)), loader, loader, ckpt_path=ckpt_path)
    return trainer


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines of the last message."""
    return caplog.records[-1].getMessage().strip().split("\n")


@pytest.mark.slow
@pytest.mark.curves
def test_a_whole_run_is_summed_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    (run / "config.yaml").write_text("")
    with caplog.at_level(logging.INFO):
        fit(run)
    found = json.loads((run / "summary.json").read_text())
    rate, memory, duration = (found.pop(key) for key in ("samples_per_second", "peak_memory_GB", "wall_time"))
    assert found == {
        "epochs": 3,
        "steps": 6,
        "device": "cpu",
        "best_mIoU": 0.75,
        "best_epoch": 1,
        "last_mIoU": 0.5,
        "note": None,
        "files": {
            "best": "checkpoints/epoch001-mIoU0.7500.ckpt",
            "last": "checkpoints/last.ckpt",
            "curves.png": "curves.png",
            "class_iou.png": "class_iou.png",
            "metrics.csv": "metrics.csv",
            "config.yaml": "config.yaml",
        },
    }
    assert rate > 0
    assert 0.05 < memory < 64
    assert re.fullmatch(r"\d+:\d\d:\d\d", duration)
    lines = said(caplog)
    checkpoint = f"{run}/checkpoints/epoch001-mIoU0.7500.ckpt"
    assert lines[0] == f"run          {run}: 3 epochs, 6 steps in {duration}"
    assert lines[3:5] == ["best mIoU    75.00 % in epoch 1, last 50.00 %", f"best         {checkpoint}"]
    assert lines[7] == f"log, config  {run}/metrics.csv, config.yaml"
    assert lines[8] == f"next         segkit test --config '{run}/config.yaml' --ckpt_path '{checkpoint}'"
    assert len(lines) == 9


@pytest.mark.slow
def test_a_resumed_run_knows_the_best_of_before(tmp_path: Path) -> None:
    fit(tmp_path, epochs=2)
    fit(tmp_path, epochs=3, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    found = json.loads((tmp_path / "summary.json").read_text())
    assert (found["best_mIoU"], found["best_epoch"], found["last_mIoU"]) == (0.75, 1, 0.5)
    assert (found["epochs"], found["steps"]) == (3, 6)


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_stopped_run_is_told_how_to_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    with caplog.at_level(logging.INFO), pytest.raises((error, SystemExit)):
        fit(tmp_path, Stop(error))
    told = [r.getMessage().strip().split("\n") for r in caplog.records if "stopped by" in r.getMessage()]
    assert len(told) == 1
    first, second = told[0]
    assert re.fullmatch(
        rf"stopped by {error.__name__} in epoch 1 after 3 steps and \d:\d\d:\d\d, last mIoU 25.00 %", first
    )
    assert second == f"continue: segkit fit --ckpt_path last --run_dir {tmp_path}"
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("fn", ["fit", "test"])
def test_without_a_checkpoint_there_is_no_way_to_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, fn: str
) -> None:
    checkpoint = ModelCheckpoint(tmp_path)
    fake = SimpleNamespace(
        state=SimpleNamespace(fn=fn),
        default_root_dir=str(tmp_path),
        checkpoint_callbacks=[checkpoint],
        current_epoch=0,
        global_step=0,
    )
    callback = RunSummary()
    monkeypatch.setattr(summary, "time", SimpleNamespace(perf_counter=lambda: 7.0))
    with caplog.at_level(logging.INFO):
        callback.on_exception(fake, None, ValueError())  # before anything began
        assert not caplog.records
        callback.on_fit_start(fake, None)
        callback.on_exception(fake, None, ValueError())
    told = ["stopped by ValueError in epoch 0 after 0 steps and 0:00:00"]
    assert [record.getMessage().strip() for record in caplog.records] == (told if fn == "fit" else [])


def fake_trainer(folder: Path) -> SimpleNamespace:
    return SimpleNamespace(
        is_global_zero=True,
        default_root_dir=str(folder),
        checkpoint_callbacks=[],
        loggers=[],
        current_epoch=1,
        global_step=2,
        world_size=1,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )


def test_what_is_not_there_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_trainer(tmp_path)
    monkeypatch.setattr(summary, "time", SimpleNamespace(perf_counter=lambda: 7.0))
    callback = RunSummary()
    callback.on_fit_start(fake, None)
    callback.on_fit_end(fake, None)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["files"] == {} and found["best_mIoU"] is found["last_mIoU"] is found["samples_per_second"] is None
    lines = summary_lines(found | {"peak_memory_GB": None}, tmp_path)
    assert lines == [f"run  {tmp_path}: 1 epoch, 2 steps in 0:00:00"]
    assert callback.state_dict() == {}


def test_samples_of_all_processes_are_counted_without_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 100.0, 102.0, 104.0, 200.0, 204.0, 300.0, 304.0])  # seconds
    monkeypatch.setattr(summary, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    callback, validated = RunSummary(), SimpleNamespace(sanity_checking=False, callback_metrics={})
    callback.on_fit_start(None, None)
    callback.on_train_epoch_start(None, None)
    for i in range(2):
        callback.on_train_batch_end(None, None, None, {"image": torch.zeros(5)}, i)
    callback.on_validation_end(validated, None)
    callback.on_train_batch_end(None, None, None, {"image": torch.zeros(5)}, 2)
    callback.on_train_epoch_start(None, None)
    callback.on_train_batch_end(None, None, None, {"image": torch.zeros(1)}, 0)
    assert (callback._samples, callback._seconds) == (16, 12.0)


def test_a_slow_run_has_a_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample in 400 s, as a large network on a small machine takes them."""
    callback = RunSummary()
    times = iter([1.0, 1.0, 401.0, 401.0])
    monkeypatch.setattr(summary, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    fake = fake_trainer(tmp_path)
    callback.on_fit_start(fake, None)
    callback.on_train_epoch_start(fake, None)
    callback.on_train_batch_end(fake, None, None, {"image": torch.zeros(1)}, 0)
    callback.on_fit_end(fake, None)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["samples_per_second"] == 0.0025
    assert "speed        0.0025 samples/s in training" in summary_lines(found, tmp_path)
    assert [rate_text(rate) for rate in (0.0312, 7.46, 120.4)] == ["0.031", "7.5", "120.4"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3723, "1:02:03"), (2e5, "55:33:20")]
)
def test_time_is_told_in_hours(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_the_score_of_the_sanity_check_is_none_of_the_run() -> None:
    callback = RunSummary()
    for sanity, score in ((True, None), (False, 0.5)):
        fake = SimpleNamespace(sanity_checking=sanity, callback_metrics={"val/mIoU": torch.tensor(0.5)})
        callback.on_validation_end(fake, None)
        assert callback._score == score
