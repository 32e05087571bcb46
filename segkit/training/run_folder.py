"""A training run's folder: where it is, its logs, and the lock that lets only one training at a time write there."""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from segkit.errors import InputError, install_extra
from segkit.files import remove_left_behind, write_text
from segkit.training.guards.preemption import slurm_job

CHECKPOINTS, METRICS, CONFIG = "checkpoints", "metrics.csv", "config.yaml"
PREDICTIONS = "predictions"  # label maps of `segkit test --report`

# Seconds. Loader workers share the lock of the process that started them, and outlive its SIGKILL by five seconds.
WAIT = 10.0

# Environment variables in which launchers give this process's rank, before there is a Trainer that knows it.
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def next_run() -> Path:
    """`runs/<n>` with the first free number; in a SLURM job `runs/slurm-<id>`, the same after a requeue."""
    numbers = [int(path.name) for path in Path("runs").glob("*") if path.name.isdigit()]
    job = slurm_job(os.environ)
    return Path("runs") / (f"slurm-{job}" if job else str(max(numbers, default=-1) + 1))


def newest_run() -> Path:
    """The run under runs/ that wrote a checkpoint last.

    Raises:
        InputError: There is none.
    """
    folders = [folder for folder in Path("runs").glob(f"*/{CHECKPOINTS}") if folder.is_dir()]
    if not folders:
        raise InputError(
            f"--ckpt_path last: there is no run with checkpoints under {Path('runs').absolute()}; name one by --run_dir"
        )
    return max(folders, key=lambda folder: folder.stat().st_mtime).parent


def has_not_begun(run: Path) -> bool:
    """Whether a run was stopped before its first step, so that resuming it means starting it."""
    return (run / CONFIG).is_file() and not (run / METRICS).exists() and not any((run / CHECKPOINTS).glob("*.ckpt"))


def goes_on(run: Path, checkpoint: str | None) -> bool:
    """Whether a run is resumed in its checkpoint's own folder."""
    return checkpoint is not None and (run / CHECKPOINTS).resolve() in Path(checkpoint).resolve().parents


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold `<run>/.lock`, which always ends with the process, and remove half-written files of a killed run.

    Only the first of a training's processes holds it. On a file system without locks a warning says so. A training that
    is refused before it writes anything leaves neither the lock nor a folder that was created for it.

    Raises:
        InputError: Another training holds it.
    """
    if any(os.environ.get(name, "0") != "0" for name in _RANKS):
        yield
        return
    lock, made = FileLock(run / ".lock", timeout=WAIT), [path for path in (run, *run.parents) if not path.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"--run_dir {run}: another `segkit fit` is writing here; wait for its end, or give another folder, or none "
            "for runs/<n>"
        ) from None
    except (OSError, NotImplementedError) as error:
        if not os.access(run, os.W_OK):  # the next write has a better message
            raise
        rank_zero_warn(f"{run}: this file system has no locks ({error}); see to it that no other fit writes here")
    for folder in (run, run / CHECKPOINTS, run / "validation"):
        remove_left_behind(folder, all_of_them=lock.is_locked)
    try:
        yield
    finally:
        with suppress(OSError):
            left = list(run.iterdir())
            if all(path.name == ".lock" or path.name.startswith("events.out.tfevents") for path in left):
                for path in left:  # TensorBoard creates its file before anything is logged
                    path.unlink()
            for folder in made:  # stops at the first folder that is not empty
                folder.rmdir()
        lock.release()


def csv_logger(run: Path, from_step: int | None) -> CSVLogger:
    """The logger of `metrics.csv` in `run` itself.

    Args:
        run: The folder.
        from_step: For a resumed run, the first step to log again; None for a new run.

    Raises:
        InputError: The run is new and the folder holds another run's logs, which Lightning would delete.
    """
    if from_step is None and (run / METRICS).exists():
        raise InputError(
            f"--run_dir {run}: holds a training run already; resume it (--ckpt_path last), or give another folder, "
            "or none for runs/<n>"
        )
    return ContinuedCSVLogger(run, from_step)


def tensorboard_loggers(run: Path, from_step: int | None) -> list[TensorBoardLogger]:
    """The logger of TensorBoard's file in `run`; if TensorBoard is not installed, none and a message."""
    if find_spec("tensorboard") is None:
        rank_zero_info(f"no TensorBoard log: it is not installed; {install_extra('tensorboard')}")
        return []
    purge: dict[str, Any] = {} if from_step is None else {"purge_step": from_step}
    return [TensorBoardLogger(run, name="", version="", **purge)]


class ContinuedCSVLogger(CSVLogger):
    """Lightning's logger without versions, which keeps the rows of a resumed run.

    Args:
        folder: The folder of `metrics.csv`.
        from_step: Rows of earlier steps are kept; None keeps none.
    """

    def __init__(self, folder: Path, from_step: int | None) -> None:
        super().__init__(folder, name="", version="")
        self._from_step = from_step
        self._writer: _Writer | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> "_Writer":
        """The writer, whose file already holds the rows to keep."""
        if self._writer is None:
            self._writer = _Writer(self.log_dir, self._from_step)
        return self._writer

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the remaining rows, if anything was logged."""
        if self._writer is not None:
            self.save()


class _Writer(ExperimentWriter):
    """Lightning's writer, except that it replaces `metrics.csv` atomically."""

    NAME_METRICS_FILE = ".none"  # Lightning removes this file at the start

    def __init__(self, folder: str, from_step: int | None) -> None:
        super().__init__(folder)
        path = Path(folder) / METRICS
        self.metrics_file_path = str(path)
        kept = _earlier_rows(path, from_step) if from_step is not None and path.is_file() else []
        if kept:
            self.metrics_keys = list(kept[0])
            write_text(path, _csv_text(self.metrics_keys, kept))
        else:
            path.unlink(missing_ok=True)

    def save(self) -> None:
        """Append the new rows; if there is a new column, write all rows again."""
        path, columns = Path(self.metrics_file_path), sorted({*self.metrics_keys}.union(*self.metrics))
        if columns != self.metrics_keys:
            before = _rows(path.read_text(encoding="utf-8")) if path.is_file() else []
            write_text(path, _csv_text(columns, [*before, *self.metrics]))
            self.metrics_keys, self.metrics = columns, []
        super().save()


def _earlier_rows(path: Path, step: int) -> list[dict[str, str]]:
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # a killed process leaves half a row
    return [row for row in _rows(whole) if (row.get("step") or "").isdigit() and int(row["step"]) < step]


def _rows(text: str) -> list[dict[str, str]]:
    return [row for row in csv.DictReader(io.StringIO(text, newline="")) if None not in row]


def _csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
