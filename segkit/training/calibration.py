"""`segkit test --calibration`: how sure the fused scores are of each pixel, against how often they are right."""

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info

from segkit.errors import InputError
from segkit.evaluation.calibration import Calibration
from segkit.evaluation.plots import reliability_figure, save_figure
from segkit.files import free_path
from segkit.text import percent
from segkit.training.module import SegmentationModule


class CalibrationReport(Callback):
    """Has the module measure calibration during a test; prints the error and draws `<run>/reliability.png`.

    The numbers are in `result.json`, which `ResultWriter` writes.

    Raises:
        InputError: Before anything runs: this is no test.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse to fit, validate or predict."""
        if stage != "test":
            raise InputError("--calibration: calibration is measured by `segkit test`; leave it out here")

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start with empty bins."""
        assert isinstance(pl_module, SegmentationModule)
        pl_module.calibration = Calibration(pl_module.device)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sum the bins of all processes once."""
        _calibration(pl_module).all_reduce()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print and draw."""
        folder = Path(trainer.log_dir or ".")  # asked on every rank: it is broadcast
        if trainer.is_global_zero:
            result = _calibration(pl_module).result()
            path = free_path(folder / "reliability.png")
            rank_zero_info(
                f"expected calibration error {percent(result.expected_error)} %, largest gap of a bin "
                f"{percent(result.maximum_error)} %; {path}"
            )
            save_figure(reliability_figure(result), path)


def _calibration(module: pl.LightningModule) -> Calibration:
    assert isinstance(module, SegmentationModule) and module.calibration is not None
    return module.calibration
