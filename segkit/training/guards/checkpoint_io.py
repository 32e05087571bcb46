"""How checkpoints are written: never half a file, and the last one but one stays until the next is complete."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_warn

from segkit.errors import InputError
from segkit.files import replacing
from segkit.models.checkpoint import read_torch_file
from segkit.signatures import fits

LAST = "last.ckpt"
PREVIOUS = "last-previous.ckpt"

_COUNTERS = {name: int for name in ("ready", "started", "processed", "completed")}
_FIT_LOOP = {
    "epoch_progress": {"total": _COUNTERS, "current": _COUNTERS},
    "epoch_loop.batch_progress": {"total": _COUNTERS, "current": _COUNTERS, "is_last_batch": bool},
    "epoch_loop.state_dict": dict[str, Any],
    "state_dict": dict[str, Any],
}
# part of a checkpoint that a training goes on from, and its type or its own parts
_TRAINING = {
    "pytorch-lightning_version": str,
    "global_step": int,
    "epoch": int,
    "state_dict": dict[str, Any],
    "loops": {"fit_loop": _FIT_LOOP},
    "callbacks": dict[str, Any],
    "optimizer_states": list[Any],
    "lr_schedulers": list[Any],
}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary name in its folder, waits until it is on the disk, and renames it.

    Lightning's own writes into the system's temporary folder and copies from there, so that a process that dies then
    leaves half a checkpoint in the place of the good one. A `last.ckpt` that is replaced stays as `last-previous.ckpt`.
    What a checkpoint says of its training is checked when it is read, before Lightning takes it as it is.
    """

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read it.

        Raises:
            InputError: As `checked_training`.
        """
        return checked_training(super().load_checkpoint(path, *args, **kwargs), path)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write it."""
        if "://" in str(path):  # a remote store, which fsspec knows to write to
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        with replacing(target) as temporary:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if target.name == LAST and target.exists():
                os.replace(target, target.with_name(PREVIOUS))


def checked_training(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The checkpoint itself, if a training can go on from it; `path` is what a message calls it.

    Raises:
        InputError: A part that a training goes on from is absent, or of another type.
    """
    wrong = next(_wrong_parts(checkpoint, _TRAINING), None)
    if wrong is not None:
        raise InputError(
            f"{path}: damaged, or not from `segkit fit`: its {wrong} is absent or of another type; go on from "
            f"another checkpoint, such as {PREVIOUS}, or start again without --ckpt_path"
        )
    return checkpoint


def _wrong_parts(parts: Any, expected: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Names of the parts that are not as expected, outer ones first."""
    for name, kind in expected.items():
        if not isinstance(parts, Mapping) or name not in parts:
            yield f"{where}{name}"
        elif isinstance(kind, dict):
            yield from _wrong_parts(parts[name], kind, f"{where}{name}.")
        elif not fits(parts[name], kind):
            yield f"{where}{name}"


def newest_checkpoint(folder: Path) -> Path:
    """The checkpoint in `folder` to go on from: the last one, or where that is damaged, with a warning, one before it.

    Raises:
        InputError: There is none, or none is complete.
    """
    best = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    last = [path for path in (folder / LAST, folder / PREVIOUS) if path.is_file()]
    candidates = [*last, *(path for path in best if path not in last)]
    for path in candidates:
        try:
            read_torch_file(path)
        except InputError as error:
            rank_zero_warn(f"{error}; going on from the one before it")
        else:
            return path
    what = "no checkpoint is complete" if candidates else "no checkpoint was written yet"
    raise InputError(f"{folder}: {what}; start again without --ckpt_path, in another --run_dir")
