"""How checkpoints are written: never half a file, and the last one but one stays until the next is complete."""

import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_warn

from segkit.errors import InputError
from segkit.files import replacing
from segkit.models.checkpoint import read_torch_file

LAST = "last.ckpt"
PREVIOUS = "last-previous.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary name in its folder, waits until it is on the disk, and renames it.

    Lightning's own writes into the system's temporary folder and copies from there, so that a process that dies then
    leaves half a checkpoint in the place of the good one. A `last.ckpt` that is replaced stays as `last-previous.ckpt`.
    """

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
