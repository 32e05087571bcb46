import csv
import logging
from pathlib import Path

import pytest
import torch
from clock import Clock
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from segkit.data.loader import TimedLoader
from segkit.training.views.data import Throughput

CLOCK = Clock()  # takes what the classes below say that they take


class Slow(torch.utils.data.Dataset):
    def __init__(self, seconds: float, length: int) -> None:
        self.seconds, self.length = seconds, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        if index >= self.length:
            raise IndexError
        CLOCK.sleep(self.seconds)
        return {"image": torch.zeros(1)}


class SlowAtLast(Slow):
    def __getitem__(self, index: int):
        CLOCK.sleep(0.1 * (index > 60))
        return super().__getitem__(index)


class Timed(TimedLoader):
    clock = CLOCK


class Module(LightningModule):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seconds = seconds

    def training_step(self, batch, batch_idx):
        CLOCK.sleep(self.seconds)
        return (self.weight * batch["image"]).sum()

    def validation_step(self, batch, batch_idx):
        CLOCK.sleep(0.2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class SlowSaving(Callback):
    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        CLOCK.sleep(0.2)


class BusyBetweenSteps(Callback):
    """What a progress bar does that waits for the device: time between two steps, but not for data."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        CLOCK.sleep(0.02)


def run(tmp_path: Path, data: Slow, step, epochs=1, validate=False, save=False, loader=DataLoader, others=()):
    """The logged shares and rates, and how often the cure was asked for."""
    asked = []

    def cure() -> str:
        asked.append(1)
        return "buy a faster disk"

    checkpoints = [SlowSaving(), ModelCheckpoint(tmp_path, every_n_train_steps=5)] if save else []
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=CSVLogger(tmp_path, name="", version=""),
        callbacks=[Throughput(cure, CLOCK), *checkpoints, *others],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=save,
        num_sanity_val_steps=0,
        val_check_interval=0.25 if validate else None,
        limit_val_batches=2 if validate else 0,
        log_every_n_steps=5,
    )
    trainer.fit(Module(step), loader(data), DataLoader(Slow(0, 2)))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    shares, rates = ([float(row[name]) for row in rows if row.get(name)] for name in ("data_wait", "samples/s"))
    return shares, rates, asked


@pytest.mark.slow
@pytest.mark.parametrize("loader", [DataLoader, Timed])
def test_slow_data_are_measured_and_named_once(tmp_path, caplog, loader) -> None:
    with caplog.at_level(logging.WARNING):
        shares, rates, asked = run(tmp_path, Slow(0.03, 65), 0.01, epochs=2, loader=loader)
    assert shares and set(shares) == {0.75}  # 30 of 40 ms
    assert rates == pytest.approx([25] * len(rates))
    warnings = [record.getMessage() for record in caplog.records if "waited" in record.getMessage()]
    assert warnings == ["training waited 75 % of the time for data: buy a faster disk"] and len(asked) == 1


def test_short_epochs_are_judged_at_their_end(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "long_enough", Slow(0.02, 21), 0.005)
        assert "waited" in caplog.text
        caplog.clear()
        run(tmp_path / "too_short", Slow(0.02, 15), 0.005)
    assert "waited" not in caplog.text


def test_a_few_slow_steps_after_a_judgement_are_no_reason(tmp_path, caplog) -> None:
    """60 fast steps, judged and well; the two slow ones that end the epoch are too few to judge by."""
    with caplog.at_level(logging.WARNING):
        shares, _, _ = run(tmp_path, SlowAtLast(0, 63), 0.02)
    assert shares and "waited" not in caplog.text


def test_epochs_too_short_to_judge_add_up(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        run(tmp_path, Slow(0.02, 15), 0.005, epochs=3)  # 5 are measured in each
    assert caplog.text.count("waited") == 1


@pytest.mark.slow
@pytest.mark.parametrize("other", ["nothing", "validate", "save"])
def test_fast_data_are_left_alone(tmp_path, caplog, other) -> None:
    """Neither validation in the middle of an epoch nor the writing of a checkpoint is waiting for data."""
    with caplog.at_level(logging.WARNING):
        shares, _, asked = run(tmp_path, Slow(0.0, 64), 0.02, validate=other == "validate", save=other == "save")
    assert shares and max(shares) == 0 and not asked and "waited" not in caplog.text


def test_what_is_done_between_steps_is_no_waiting(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        shares, _, _ = run(tmp_path, Slow(0.0, 64), 0.01, loader=Timed, others=[BusyBetweenSteps()])
    assert shares and max(shares) == 0 and "waited" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_timed_loader_gives_what_a_loader_gives(workers) -> None:
    options = {"batch_size": 2, "num_workers": workers, "persistent_workers": workers > 0}
    timed, plain = (kind(range(7), **options) for kind in (TimedLoader, DataLoader))
    for _ in range(2):
        assert [batch.tolist() for batch in timed] == [batch.tolist() for batch in plain]
    assert timed.seconds_waited > 0 and len(timed) == 4
