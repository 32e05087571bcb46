"""The output of `test` and `validate`: the result file, the tables, and the network's calibration."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info

from segkit.errors import InputError
from segkit.evaluation.calibration import Calibration
from segkit.evaluation.conventions import ALL_METRICS, DEFAULT, comparison_table, convention
from segkit.evaluation.plots import reliability_figure, save_figure
from segkit.evaluation.results import images_scored, without_words
from segkit.files import free_path, write_json
from segkit.ops.processor import peak_memory
from segkit.text import percent
from segkit.training.base import NetworkModule
from segkit.training.lightning_border import hide_score_tables
from segkit.training.module import SegmentationModule
from segkit.training.preflight import is_whole


class ResultWriter(Callback):
    """Writes `result.json` into the run's folder and prints the per-class table after `test` and `validate`.

    Args:
        metric: The convention of file and table (`segkit.evaluation.conventions`), or `all`: segkit's own, and a table
            of all conventions.

    Raises:
        InputError: There is no such convention.
    """

    def __init__(self, metric: str = DEFAULT) -> None:
        self.compares = metric == ALL_METRICS
        self.convention = convention(DEFAULT if self.compares else metric, others=(ALL_METRICS,))
        self._reported, self._start = False, 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hide Lightning's own table, which would show segkit's scores beside those of the requested metric."""
        hide_score_tables(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note when the images began."""
        self._start = time.perf_counter()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print the scores of `segkit test`."""
        self._report(trainer, pl_module, trainer.test_dataloaders, trainer.limit_test_batches)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print the scores of `segkit validate`; validation inside `fit` is only logged."""
        if trainer.state.fn == "validate":
            self._report(trainer, pl_module, trainer.val_dataloaders, trainer.limit_val_batches)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep the scores of this process's images so far when `test` or `validate` stops early."""
        loader = {"test": trainer.test_dataloaders, "validate": trainer.val_dataloaders}.get(trainer.state.fn or "")
        if loader is None or self._reported or not isinstance(pl_module, NetworkModule) or not pl_module.num_scored:
            return
        name = f"result-partial-rank{trainer.global_rank}.json" if trainer.global_rank else "result-partial.json"
        with suppress(InputError):  # undeclared ids cannot be scored; the exception itself says more
            # Not log_dir, which is broadcast, because the other processes are elsewhere.
            self._write(Path(trainer.default_root_dir), pl_module, _dataset(trainer, loader), name)

    def _report(self, trainer: Trainer, module: LightningModule, loader: Any, limit: float | int | None) -> None:
        assert isinstance(module, NetworkModule)
        count, expected = module.num_scored, len(loader.dataset)
        partial = not is_whole(limit)
        if not partial and count != expected:
            raise RuntimeError(f"{count} images were scored, the split has {expected}: a sampler repeats or drops some")
        folder = trainer.log_dir  # read on every rank, because it is broadcast
        self._reported = True
        if trainer.is_global_zero:
            self._write(Path(folder or "."), module, _dataset(trainer, loader), "result.json", partial)

    def _write(
        self, folder: Path, module: NetworkModule, dataset: dict[str, Any], name: str, partial: bool = True
    ) -> None:
        result = module.result(self.convention.name, {"dataset": dataset, "partial": partial})
        if self._start:
            result["speed"] = _speed(time.perf_counter() - self._start, module)
        path = free_path(folder / name)
        try:
            write_json(path, result)
        finally:  # hours of work, printed even if the file cannot be written
            self._print(module, dataset["num_images"], partial, path)

    def _print(self, module: NetworkModule, expected: int, partial: bool, path: Path) -> None:
        if self.compares and isinstance(module, SegmentationModule) and module.confusion is not None:
            heading = f"mIoU{without_words(module.classes.class_names, module.without)}"
            rank_zero_info(f"\n{comparison_table(module.confusion.counts, module.without, heading)}")
        rank_zero_info(
            f"\n{module.report(self.convention.name)}\n{images_scored(module.num_scored, expected, partial)}, "
            f"protocol {module.protocol_name}, {module.ran_in}{f'; {path}' if path.exists() else ''}"
        )


def _speed(seconds: float, module: NetworkModule) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "images_per_second": module.num_scored / seconds,
        "peak_memory_bytes": peak_memory(module.device),
        "rule": "wall time of the whole loop, with reading the images and measuring; of all processes together; memory "
        "of the first one, on a GPU that of tensors",
    }


def _dataset(trainer: Trainer, loader: Any) -> dict[str, Any]:
    name = type(getattr(trainer, "datamodule", None)).__name__
    return {"name": name, "split": trainer.state.fn, "num_images": len(loader.dataset)}


class CalibrationReport(Callback):
    """`segkit test --calibration`: compares the confidence of the fused scores with how often they are right.

    It prints the error, and coverage and mIoU at several confidences, and draws `<run>/reliability.png`; `ResultWriter`
    writes the numbers into `result.json`.

    Raises:
        InputError: Before anything runs, if this is not a test.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to fit, validate or predict."""
        if stage != "test":
            raise InputError("--calibration: calibration is measured by `segkit test`; leave it out here")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the module measure calibration, from empty bins."""
        assert isinstance(pl_module, SegmentationModule)
        pl_module.calibration = Calibration(pl_module.device, num_classes=pl_module.network.num_classes)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum the bins of all processes once."""
        _calibration(pl_module).all_reduce()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print error and thresholds, and draw the diagram."""
        assert isinstance(pl_module, SegmentationModule)
        folder = Path(trainer.log_dir or ".")  # read on every rank, because it is broadcast
        if trainer.is_global_zero:
            result, temperature = _calibration(pl_module).result(pl_module.without), pl_module.temperature
            path = free_path(folder / "reliability.png")
            scaled = "" if temperature == 1 else f", temperature {temperature:.4g}"
            rank_zero_info(
                f"\n{result.table()}\nexpected calibration error {percent(result.expected_error)} %, largest gap of a "
                f"bin {percent(result.maximum_error)} %{scaled}; {path}"
            )
            save_figure(reliability_figure(result), path)


def _calibration(module: LightningModule) -> Calibration:
    assert isinstance(module, SegmentationModule) and module.calibration is not None
    return module.calibration
