import csv
import logging
import time
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from segkit.training.throughput import DataWait, Throughput


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


def run(tmp_path: Path, load: float, step: float, length: int, epochs: int = 1, validate: bool = False):
    asked = []

    def cure() -> str:
        asked.append(1)
        return "buy a faster disk"

    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=CSVLogger(tmp_path, name="", version=""),
        callbacks=[Throughput(), DataWait(cure)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        val_check_interval=0.25 if validate else None,
        limit_val_batches=2 if validate else 0,
        log_every_n_steps=5,
    )
    trainer.fit(Module(step), DataLoader(Slow(load, length)), DataLoader(Slow(0, 2)))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    return [float(row["data_wait"]) for row in rows if row.get("data_wait")], asked


def test_slow_data_are_measured_and_named_once(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        shares, asked = run(tmp_path, 0.03, 0.01, 65, epochs=2)
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


@pytest.mark.parametrize("validate", [False, True])
def test_fast_data_are_left_alone(tmp_path, caplog, validate) -> None:
    """Validation in the middle of an epoch is no waiting for data either."""
    with caplog.at_level(logging.WARNING):
        shares, asked = run(tmp_path, 0.0, 0.02, 64, validate=validate)
    assert shares and max(shares) < 0.2 and not asked and "waited" not in caplog.text
