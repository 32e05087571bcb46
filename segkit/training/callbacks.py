"""What happens beside the steps: speed in the progress bar, curves, the result file, prediction PNGs."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter, Callback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from segkit.errors import InputError
from segkit.evaluation.results import format_table, result_dict, write_result
from segkit.inference.engine import resolve
from segkit.io import free_path, write_png
from segkit.metadata.label_space import numbered_space
from segkit.training.curves import plot_curves
from segkit.training.module import SegmentationModule


class Throughput(Callback):
    """Logs `samples/s` over all processes: pictures since the last batch by the time, smoothed over ~10 steps."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._rate: float | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the time that validation took."""
        self._last = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the rate."""
        now = time.perf_counter()
        if self._last is not None:
            rate = len(batch["image"]) * trainer.world_size / (now - self._last)
            self._rate = rate if self._rate is None else 0.9 * self._rate + 0.1 * rate
            pl_module.log("samples/s", self._rate, prog_bar=True)
        self._last = now


class CurvePlotter(Callback):
    """Draws `curves.png` beside `metrics.csv` after every validation and at the end of `fit`."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Redraw, so that a run in progress can be looked at."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._draw(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the whole run."""
        self._draw(trainer)

    def _draw(self, trainer: pl.Trainer) -> None:
        logger = next((lg for lg in trainer.loggers if isinstance(lg, CSVLogger)), None)
        if logger is None or not trainer.is_global_zero:
            return
        logger.save()
        metrics = Path(logger.log_dir) / "metrics.csv"
        if metrics.is_file():
            with suppress(InputError):  # nothing to draw before the first loss or score is logged
                plot_curves(metrics, metrics.with_name("curves.png"))


class ResultWriter(Callback):
    """Writes `result.json` into the run's folder and prints the per-class table after `test` and `validate`."""

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write and print the scores of `segkit test`."""
        self._report(trainer, pl_module, trainer.test_dataloaders, trainer.limit_test_batches)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write and print the scores of `segkit validate`; validation inside `fit` is only logged."""
        if trainer.state.fn == "validate":
            self._report(trainer, pl_module, trainer.val_dataloaders, trainer.limit_val_batches)

    def _report(self, trainer: pl.Trainer, module: pl.LightningModule, loader: Any, limit: float | int | None) -> None:
        assert isinstance(module, SegmentationModule) and module.confusion is not None and module.scores is not None
        count, expected = module.confusion.num_images, len(loader.dataset)
        partial = not (isinstance(limit, float) and limit == 1.0)  # the integer 1 means one batch
        if not partial and count != expected:
            raise RuntimeError(
                f"{count} pictures were scored, the split has {expected}: a sampler repeats or drops some"
            )
        folder = trainer.log_dir  # asked on every rank: it is broadcast
        if trainer.is_global_zero:
            name = type(getattr(trainer, "datamodule", None)).__name__
            dataset = {"name": name, "split": trainer.state.fn, "num_images": expected}
            self._write(Path(folder or "."), module, dataset, partial)

    def _write(self, folder: Path, module: SegmentationModule, dataset: dict[str, Any], partial: bool) -> None:
        assert module.confusion is not None and module.scores is not None
        names = _class_names(module)
        protocol = resolve(module.protocol, module.network)  # what depends on the network filled in
        result = result_dict(module.confusion, names, protocol, dataset=dataset, partial=partial)
        path = free_path(folder / "result.json")
        write_result(path, result)
        rank_zero_info(
            f"\n{format_table(module.scores, names)}\n{module.confusion.num_images} pictures"
            f"{' (partial)' if partial else ''}, protocol {module.protocol.name}; {path}"
        )


class PredictionWriter(BasePredictionWriter):
    """Writes each predicted label map as an 8-bit PNG of train ids, `OUTPUT/<name>.png`, as soon as it is there."""

    def __init__(self, output: str | Path) -> None:
        super().__init__(write_interval="batch")
        self.output = Path(output)

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one file per picture."""
        for name, labels in zip(batch["name"], prediction.cpu().numpy(), strict=True):
            if labels.dtype.itemsize > 1:
                raise InputError(f"predict: more than 256 classes do not fit an 8-bit PNG ({name})")
            write_png(self.output / f"{name}.png", labels)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say where the files are."""
        rank_zero_info(f"predictions: {self.output}")


def _class_names(module: SegmentationModule) -> Sequence[str]:
    return (module.label_space or numbered_space(module.network.num_classes)).class_names
