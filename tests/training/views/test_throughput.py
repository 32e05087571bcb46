import csv
import logging
import time
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from segkit.data.loader import TimedLoader
from segkit.training.views.throughput import DataWait, Throughput


class Slow(torch.utils.data.Dataset):
    def __init__(self, seconds: float, length: int) -> None:
        self.seconds, self.length = seconds, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        if index >= self.length:
            raise IndexError
        time.sleep(self.seconds)
        return {"image": torch.zeros(1)}


class Module(LightningModule):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seconds = seconds

    def training_step(self, batch, batch_idx):
        time.sleep(self.seconds)
        return (self.weight * batch["image"]).sum()

    def validation_step(self, batch, batch_idx):
        time.sleep(0.2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class SlowSaving(Callback):
    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        time.sleep(0.2)


def run(tmp_path: Path, load, step, length, epochs=1, validate=False, save=False, loader=DataLoader):
    asked = []

    def cure() -> str:
        asked.append(1)
        return "buy a faster disk"

    checkpoints = [SlowSaving(), ModelCheckpoint(tmp_path, every_n_train_steps=5)] if save else []
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=CSVLogger(tmp_path, name="", version=""),
        callbacks=[Throughput(), DataWait(cure), *checkpoints],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=save,
        num_sanity_val_steps=0,
        val_check_interval=0.25 if validate else None,
        limit_val_batches=2 if validate else 0,
        log_every_n_steps=5,
    )
    trainer.fit(Module(step), loader(Slow(load, length)), DataLoader(Slow(0, 2)))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    return [float(row["data_wait"]) for row in rows if row.get("data_wait")], asked


@pytest.mark.parametrize("loader", [DataLoader, TimedLoader])
def test_slow_data_are_measured_and_named_once(tmp_path, caplog, loader) -> None:
    with caplog.at_level(logging.WARNING):
        shares, asked = run(tmp_path, 0.03, 0.01, 65, epochs=2, loader=loader)
    assert shares and all(0.55 < share < 0.85 for share in shares)  # 30 of 40 ms
    warnings = [record.getMessage() for record in caplog.records if "waited" in record.getMessage()]
    assert len(warnings) == len(asked) == 1
    assert warnings[0].startswith("training waited ") and warnings[0].endswith("buy a faster disk")
    assert "\n" not in warnings[0]


def test_short_epochs_are_judged_at_their_end(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "long_enough", 0.02, 0.005, 21)
        assert "waited" in caplog.text
        caplog.clear()
        run(tmp_path / "too_short", 0.02, 0.005, 15)
    assert "waited" not in caplog.text


def test_a_few_slow_steps_after_a_judgement_are_no_reason(tmp_path, caplog, monkeypatch) -> None:
    """60 fast steps, judged and well; the two slow ones that end the epoch are too few to judge by."""
    monkeypatch.setattr(Slow, "__getitem__", lambda self, i: time.sleep(0.1 * (i > 60)) or {"image": torch.zeros(1)})
    with caplog.at_level(logging.WARNING):
        shares, _ = run(tmp_path, 0, 0.02, 63)
    assert shares and "waited" not in caplog.text


def test_epochs_too_short_to_judge_add_up(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        run(tmp_path, 0.02, 0.005, 15, epochs=3)  # 5 are measured in each
    assert caplog.text.count("waited") == 1


@pytest.mark.parametrize("other", ["nothing", "validate", "save"])
def test_fast_data_are_left_alone(tmp_path, caplog, other) -> None:
    """Neither validation in the middle of an epoch nor the writing of a checkpoint is waiting for data."""
    with caplog.at_level(logging.WARNING):
        shares, asked = run(tmp_path, 0.0, 0.02, 64, validate=other == "validate", save=other == "save")
    assert shares and max(shares) < 0.2 and not asked and "waited" not in caplog.text


class BusyBetweenSteps(Callback):
    """What a progress bar does that waits for the device: time between two steps, but not for data."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        time.sleep(0.02)


def test_what_is_done_between_steps_is_no_waiting(tmp_path, caplog, monkeypatch) -> None:
    before = Trainer.__init__
    monkeypatch.setattr(
        Trainer, "__init__", lambda self, **k: before(self, **{**k, "callbacks": [*k["callbacks"], BusyBetweenSteps()]})
    )
    with caplog.at_level(logging.WARNING):
        shares, _ = run(tmp_path, 0.0, 0.01, 64, loader=TimedLoader)
    assert shares and max(shares) < 0.1 and "waited" not in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_a_timed_loader_gives_what_a_loader_gives(workers) -> None:
    options = {"batch_size": 2, "num_workers": workers, "persistent_workers": workers > 0}
    timed, plain = (kind(range(7), **options) for kind in (TimedLoader, DataLoader))
    for _ in range(2):
        assert [batch.tolist() for batch in timed] == [batch.tolist() for batch in plain]
    assert timed.seconds_waited > 0 and len(timed) == 4
