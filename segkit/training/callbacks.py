"""What happens beside the steps: speed in the progress bar, curves, the result file."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_info

from segkit.errors import InputError
from segkit.evaluation.conventions import DEFAULT, comparison_table, convention
from segkit.evaluation.results import format_table, result_dict, write_result
from segkit.files import free_path
from segkit.inference.engine import resolve
from segkit.models.checkpoint import weights_sha256
from segkit.training.lightning_border import hide_score_tables
from segkit.training.module import SegmentationModule
from segkit.training.views.curves import plot_class_iou, plot_curves

ALL_METRICS = "all"


class CurvePlotter(Callback):
    """Draws `curves.png` and `class_iou.png` beside `metrics.csv` after every validation and at the end of `fit`."""

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
            for plot, name in ((plot_curves, "curves.png"), (plot_class_iou, "class_iou.png")):
                with suppress(InputError):  # nothing to draw before the first loss or score is logged
                    plot(metrics, metrics.with_name(name))


class ResultWriter(Callback):
    """Writes `result.json` into the run's folder and prints the per-class table after `test` and `validate`.

    Args:
        metric: The convention of both (`segkit.evaluation.conventions`), or `all`: segkit's, and a table of all.

    Raises:
        InputError: There is no such convention.
    """

    def __init__(self, metric: str = DEFAULT) -> None:
        self.compares = metric == ALL_METRICS
        self.convention = convention(DEFAULT if self.compares else metric, others=(ALL_METRICS,))
        self._reported = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Silence Lightning's own table, which would show segkit's scores beside those of the metric asked for."""
        hide_score_tables(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write and print the scores of `segkit test`."""
        self._report(trainer, pl_module, trainer.test_dataloaders, trainer.limit_test_batches)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write and print the scores of `segkit validate`; validation inside `fit` is only logged."""
        if trainer.state.fn == "validate":
            self._report(trainer, pl_module, trainer.val_dataloaders, trainer.limit_val_batches)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep what was scored when `test` or `validate` stops: the images of this process until then."""
        loader = {"test": trainer.test_dataloaders, "validate": trainer.val_dataloaders}.get(trainer.state.fn or "")
        confusion = pl_module.confusion if isinstance(pl_module, SegmentationModule) else None
        if loader is None or confusion is None or confusion.num_images == 0 or self._reported:
            return
        name = f"result-partial-rank{trainer.global_rank}.json" if trainer.global_rank else "result-partial.json"
        with suppress(InputError):  # of ids that cannot be scored; the exception itself tells more
            # Not log_dir, which is broadcast: the other processes are elsewhere.
            self._write(Path(trainer.default_root_dir), pl_module, _dataset(trainer, loader), name)

    def _report(self, trainer: pl.Trainer, module: pl.LightningModule, loader: Any, limit: float | int | None) -> None:
        assert isinstance(module, SegmentationModule) and module.confusion is not None and module.scores is not None
        count, expected = module.confusion.num_images, len(loader.dataset)
        partial = not is_whole(limit)
        if not partial and count != expected:
            raise RuntimeError(f"{count} images were scored, the split has {expected}: a sampler repeats or drops some")
        folder = trainer.log_dir  # asked on every rank: it is broadcast
        self._reported = True
        if trainer.is_global_zero:
            self._write(Path(folder or "."), module, _dataset(trainer, loader), "result.json", partial)

    def _write(
        self, folder: Path, module: pl.LightningModule, dataset: dict[str, Any], name: str, partial: bool = True
    ) -> None:
        assert isinstance(module, SegmentationModule) and module.confusion is not None
        names = module.classes.class_names
        protocol = resolve(module.protocol, module.network)  # what depends on the network filled in
        metric, weights = self.convention.name, {"sha256": weights_sha256(module.network.state_dict())}
        result = result_dict(
            module.confusion,
            names,
            protocol,
            dataset=dataset,
            weights=weights,
            partial=partial,
            metric=metric,
            precision=module.ran_in,
            note=module.note,
        )
        if module.calibration is not None:
            result["calibration"] = module.calibration.result().to_dict()
        path = free_path(folder / name)
        try:
            write_result(path, result)
        finally:  # hours of work are shown also where the disk does not take them
            self._print(module, dataset["num_images"], partial, path)

    def _print(self, module: SegmentationModule, expected: int, partial: bool, path: Path) -> None:
        assert module.confusion is not None
        metric, names = self.convention.name, module.classes.class_names
        if self.compares:
            rank_zero_info(f"\n{comparison_table(module.confusion.counts)}")
        note = f"note: in the truth {module.note}\n" if module.note else ""
        of_all = f" of {expected} images (partial)" if partial else " images"
        rank_zero_info(
            f"\n{format_table(module.confusion.scores(metric), names)}\n{note}metric {metric}: {self.convention.rule}\n"
            f"{module.confusion.num_images}{of_all}, "
            f"protocol {module.protocol.name}, {module.ran_in}{f'; {path}' if path.exists() else ''}"
        )


def _dataset(trainer: pl.Trainer, loader: Any) -> dict[str, Any]:
    name = type(getattr(trainer, "datamodule", None)).__name__
    return {"name": name, "split": trainer.state.fn, "num_images": len(loader.dataset)}


def is_whole(limit: float | int | None) -> bool:
    """Whether a `limit_..._batches` of the trainer leaves the split whole: 1.0 does, the integer 1 means one batch."""
    return isinstance(limit, float) and limit == 1.0
