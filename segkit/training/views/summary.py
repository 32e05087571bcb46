"""The summary of a training run, printed and written as `summary.json` at its end; after a stop, how to resume it."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from segkit.errors import InputError
from segkit.evaluation.results import number_or_null
from segkit.files import write_json
from segkit.models.weight_files import read_torch_file
from segkit.ops.processor import peak_memory
from segkit.text import aligned, counted, percent
from segkit.training.base import NetworkModule
from segkit.training.run_folder import CONFIG, METRICS

NAME = "summary.json"
_FILES = ("curves.png", "class_iou.png", METRICS, CONFIG)  # files of a run beside its two checkpoints


class RunSummary(Callback):
    """Reports at the end of `fit` scores, speed, files and the next command; after a stop, how to resume.

    It must come after the callbacks that draw and log, so that it finds their files.

    Args:
        score: The name under which the score is logged.
    """

    def __init__(self, score: str = NetworkModule.score) -> None:
        self.name, self.logged_as = score.removeprefix("val/"), score
        self._begin: float | None = None  # start of `fit`; None: not started
        self._mark = 0.0  # start of the current stretch of training
        self._seconds, self._samples = 0.0, 0  # time of training without validation; samples of this process
        self._score: float | None = None
        self._note: str | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the run."""
        self._begin = time.perf_counter()
        self._seconds, self._samples, self._score, self._note = 0.0, 0, None, None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out the time between two epochs."""
        self._mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count samples and their time, including the wait for data."""
        now = time.perf_counter()
        self._seconds += now - self._mark
        self._samples += len(batch["image"])
        self._mark = now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out the time of the validation, and keep its score."""
        self._mark = time.perf_counter()
        if not trainer.sanity_checking and self.logged_as in trainer.callback_metrics:
            self._score = _plain(trainer.callback_metrics[self.logged_as])
            self._note = getattr(pl_module, "note", None)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print the summary."""
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)  # not log_dir, which is broadcast
        summary = self._summary(trainer)
        write_json(folder / NAME, summary)
        rank_zero_info("\n" + "\n".join(summary_lines(summary, folder)))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say how far the run got, and how to resume it."""
        if self._begin is None or trainer.state.fn != "fit":
            return
        score = "" if self._score is None else f", last {self.name} {percent(self._score)} %"
        lines = [
            f"stopped by {type(exception).__name__} in epoch {trainer.current_epoch} after {trainer.global_step} steps"
            f" and {clock(time.perf_counter() - self._begin)}{score}"
        ]
        if _last_checkpoint(trainer) is not None:
            run = shlex.quote(str(trainer.default_root_dir))
            lines.append(f"continue: segkit fit --ckpt_path last --run_dir {run}")
        rank_zero_info("\n" + "\n".join(lines))

    def _summary(self, trainer: Trainer) -> dict[str, Any]:
        """The summary as plain data: scores 0..1, `files` relative to the run's folder if they are inside it."""
        seconds = time.perf_counter() - (self._begin or time.perf_counter())
        rate = trainer.world_size * self._samples / self._seconds if self._seconds else None
        best = next((c for c in _checkpoints(trainer) if c.monitor == self.logged_as), None)
        files = _files(trainer, best)
        return {
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "wall_time": clock(seconds),
            "samples_per_second": rate and float(f"{rate:.4g}"),
            "device": trainer.strategy.root_device.type,
            "peak_memory_GB": round(peak_memory(trainer.strategy.root_device) / 1e9, 3) or None,
            f"best_{self.name}": None if best is None else _plain(best.best_model_score),
            "best_epoch": _epoch(files["best"]) if "best" in files else None,
            f"last_{self.name}": _plain(self._score),
            "note": self._note,
            "files": {what: _relative(path, Path(trainer.default_root_dir)) for what, path in files.items()},
        }


def summary_lines(summary: dict[str, Any], folder: Path) -> list[str]:
    """Format a summary for people, one aligned line for each subject, with paths as typed in a shell.

    Args:
        summary: The content of `summary.json`.
        folder: The run's folder.
    """
    files = {what: folder / path for what, path in summary["files"].items()}
    name = next(key for key in summary if key.startswith("last_")).removeprefix("last_")
    rate, memory, epoch = (summary[key] for key in ("samples_per_second", "peak_memory_GB", "best_epoch"))
    drawn = [files[name] for name in _FILES if name in files]
    done = f"{counted(summary['epochs'], 'epoch')}, {counted(summary['steps'], 'step')}"
    rows = {
        "run": f"{folder}: {done} in {summary['wall_time']}",
        "speed": f"{rate_text(rate)} samples/s in training" if rate else None,
        "peak memory": f"{memory:.2f} GB ({summary['device']})" if memory else None,
        f"best {name}": _score_text(summary[f"best_{name}"], epoch, summary[f"last_{name}"])
        or (summary["note"] and "none"),
        "note": summary["note"] and f"in the validation masks {summary['note']}",
        "best": files.get("best"),
        "last": files.get("last"),
        "curves": _listed([path for path in drawn if path.suffix == ".png"]),
        "log, config": _listed([path for path in drawn if path.suffix != ".png"]),
        "next": _next_command(files),
    }
    return aligned([(what, str(text)) for what, text in rows.items() if text], left=(0, 1)).splitlines()


def clock(seconds: float) -> str:
    """Format seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def rate_text(value: float) -> str:
    """Format a rate per second, including slow ones: 0.031, 7.5, 120.4."""
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _score_text(best: float | None, epoch: int | None, last: float | None) -> str | None:
    """The scores in words; epochs are counted from 0, as in the names of checkpoints."""
    at = "" if epoch is None else f" in epoch {epoch}"
    texts = ["" if best is None else f"{percent(best)} %{at}", "" if last is None else f"last {percent(last)} %"]
    return ", ".join(text for text in texts if text) or None


def _next_command(files: dict[str, Path]) -> str | None:
    if CONFIG not in files or "best" not in files:
        return None
    return shlex.join(["segkit", "test", "--config", str(files[CONFIG]), "--ckpt_path", str(files["best"])])


def _listed(paths: Sequence[Path]) -> str:
    """The first path in full; others in its folder by name alone."""
    return ", ".join(p.name if i and p.parent == paths[0].parent else str(p) for i, p in enumerate(paths))


def _files(trainer: Trainer, best: ModelCheckpoint | None) -> dict[str, Path]:
    """The files that exist: "best", "last", and those of `_FILES` by their names."""
    folders = [Path(trainer.default_root_dir)]
    folders += [Path(logger.log_dir) for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    found = {name: folder / name for name in _FILES for folder in folders if (folder / name).is_file()}
    last = _last_checkpoint(trainer)
    checkpoints = {} if last is None else {"last": last}
    if best is not None and Path(best.best_model_path).is_file():
        checkpoints = {"best": Path(best.best_model_path)} | checkpoints
    return checkpoints | found


def _checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _last_checkpoint(trainer: Trainer) -> Path | None:
    paths = [Path(c.dirpath) / f"last{c.FILE_EXTENSION}" for c in _checkpoints(trainer) if c.dirpath]
    return next((path for path in paths if path.is_file()), None)


def _epoch(checkpoint: Path) -> int | None:
    """The epoch in which a checkpoint was saved, counted from 0; None if it does not say."""
    try:
        return read_torch_file(checkpoint).get("epoch")
    except InputError:  # a file changed meanwhile is not worth failing at the end of a training
        return None


def _plain(score: Tensor | float | None) -> float | None:
    return None if score is None else number_or_null(float(score))


def _relative(path: Path, folder: Path) -> str:
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
