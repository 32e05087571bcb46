"""Where a training run lies, and going on with one: `segkit fit --ckpt_path last`."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from segkit.cli.restore import ckpt_path, named
from segkit.errors import InputError
from segkit.files import write_text
from segkit.training.guards.checkpoint_io import newest_checkpoint
from segkit.training.guards.preemption import slurm_job

CHECKPOINTS = "checkpoints"


def with_run(args: Sequence[str]) -> list[str]:
    """The command line with what `fit` leaves open: the run's folder, and what `--ckpt_path last` means.

    All processes of a run must write to one folder, so it is chosen before they are started. `last` is the newest
    checkpoint that is complete, in `--run_dir`, or in the newest run under runs/; its `config.yaml` is taken where no
    `--config` is given. A job that SLURM runs again goes on by itself.

    Raises:
        InputError: There is no run, or no checkpoint in it, to go on with.
    """
    if not args or args[0] != "fit" or {"-h", "--help"} & set(args):
        return list(args)
    checkpoint, given = ckpt_path(args), named(args, "run_dir")
    run = Path(given or (_newest_run() if checkpoint == "last" else next_run()))
    # SLURM runs a job again with the same command line.
    again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and (run / CHECKPOINTS).is_dir()
    if checkpoint == "last" or (checkpoint is None and again):
        found = newest_checkpoint(run / CHECKPOINTS)
        config = [] if any(arg.split("=")[0] in ("-c", "--config") for arg in args) else [str(run / "config.yaml")]
        args = [args[0], *(x for path in config for x in ("--config", path)), *args[1:], "--ckpt_path", str(found)]
    return [*args, "--run_dir", str(run)]


def next_run() -> Path:
    """`runs/<n>` with the first free number; for a job of SLURM `runs/slurm-<id>`, the same when it is run again."""
    job = slurm_job(os.environ)
    return Path("runs") / (f"slurm-{job}" if job else str(max(_numbers(), default=-1) + 1))


def goes_on(run: Path, checkpoint: str | None) -> bool:
    """Whether a training writes on in the folder of the run that its checkpoint is from."""
    return checkpoint is not None and (run / CHECKPOINTS).resolve() in Path(checkpoint).resolve().parents


def loggers(run: Path, from_step: int | None) -> tuple[CSVLogger, TensorBoardLogger]:
    """CSV and TensorBoard logs, both in `run` itself.

    Args:
        run: The folder.
        from_step: Of a run that is gone on with, the first step that is to be logged again; None for a new run.

    Raises:
        InputError: The run is new and the folder holds another one's logs, which Lightning would delete.
    """
    metrics = run / "metrics.csv"
    if from_step is None and metrics.exists():
        raise InputError(
            f"--run_dir {run}: holds a training run already; go on with it (--ckpt_path last), or give another folder, "
            "or none for runs/<n>"
        )
    purge: dict[str, Any] = {} if from_step is None else {"purge_step": from_step}
    return ContinuedCSVLogger(run, from_step), TensorBoardLogger(run, name="", version="", **purge)


class ContinuedCSVLogger(CSVLogger):
    """Lightning's logger without versions, which keeps the rows of the run that it goes on with.

    Args:
        folder: Where `metrics.csv` is.
        from_step: The rows of earlier steps are kept; None keeps none.
    """

    def __init__(self, folder: Path, from_step: int | None) -> None:
        super().__init__(folder, name="", version="")
        path = folder / "metrics.csv"
        self._kept = _earlier_rows(path, from_step) if from_step is not None and path.is_file() else []
        self._from_step = from_step

    @property
    def experiment(self):  # type: ignore[no-untyped-def]  # as Lightning has it
        """Lightning's writer; when it is made, what is kept is written back to the file that it removes."""
        new = self._experiment is None
        writer = super().experiment
        if new and self._kept and self._experiment is not None:
            writer.metrics_keys = list(self._kept[0])
            write_text(writer.metrics_file_path, _csv_text(self._kept))
        return writer


def _earlier_rows(path: Path, step: int) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if None not in row and (row.get("step") or "").isdigit() and int(row["step"]) < step]


def _csv_text(rows: Sequence[dict[str, str]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _newest_run() -> Path:
    folders = [folder for folder in Path("runs").glob(f"*/{CHECKPOINTS}") if folder.is_dir()]
    if not folders:
        raise InputError(
            f"--ckpt_path last: there is no run with checkpoints under {Path('runs').absolute()}; name one by --run_dir"
        )
    return max(folders, key=lambda folder: folder.stat().st_mtime).parent


def _numbers() -> list[int]:
    return [int(path.name) for path in Path("runs").glob("*") if path.name.isdigit()]
