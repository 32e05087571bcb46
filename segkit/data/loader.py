"""Loaders that measure how long they were waited for and resume within an epoch, and the set-up of their workers."""

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from segkit.data.dataset import Item, collate
from segkit.data.samplers import TrainSampler
from segkit.machine import cores


class TimedLoader(DataLoader[Item]):
    """A DataLoader whose `seconds_waited` is the time spent waiting for batches so far, in all epochs.

    With workers, that is the part of loading not hidden behind the network's computation; without, all of it.

    Attributes:
        clock: Returns seconds since any fixed time.
    """

    seconds_waited = 0.0
    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        """The batches of the DataLoader."""
        batches = super().__iter__()
        while True:
            start = self.clock()
            batch = next(batches, None)
            self.seconds_waited += self.clock() - start
            if batch is None:
                return
            yield batch


class TrainLoader(TimedLoader):
    """A loader over a `TrainSampler` that can resume in the middle of an epoch."""

    def state_dict(self) -> dict[str, int]:
        """Return nothing: the caller knows the position. Lightning requires this method and `load_state_dict`."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip the samples that were already used, if the epoch is the one that was interrupted.

        Args:
            state: `{"epoch": e, "samples": n}`: n samples of epoch e were used, over all ranks.
        """
        if isinstance(self.sampler, TrainSampler):  # Lightning replaces it for overfit_batches
            self.sampler.resume = (state["epoch"], state["samples"])


def init_worker(worker_id: int) -> None:
    """Limit a loader worker to one thread: many workers times many threads stall a machine, or hang it.

    Signals to all processes of a job, from Ctrl-C or SLURM, are left to the main process, which may need batches to
    finish its step, and stops its workers itself.
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    cv2.setNumThreads(0)
    cv2.ocl.setUseOpenCL(False)
    torch.set_num_threads(1)


class LoaderOptions(LightningDataModule):
    """What the data modules of all tasks share: worker processes, and advice if they are too slow.

    Args:
        num_workers: Loader processes of each training process; None: cores / local processes, at most 8.
    """

    def __init__(self, num_workers: int | None) -> None:
        super().__init__()
        self.num_workers = num_workers

    def faster_loading(self) -> str:
        """Advice for a warning on how to make the loaders of this run faster."""
        have, workers, processes = cores(), self._workers(), self._local_processes()
        cures = self._cures()
        if workers * processes < have:
            cures.append(f"raise --data.num_workers (now {workers}; {have} cores, {processes} training processes)")
        return " or ".join(cures) or "use a machine with more cores for each GPU, or fewer augmentations"

    def _cures(self) -> list[str]:
        """Advice that applies to this kind of data set only."""
        return []

    def _worker_options(self, prefetch: int | None = None) -> dict[str, Any]:
        workers = self._workers()
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "prefetch_factor": prefetch if workers > 0 else None,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": init_worker,
            "collate_fn": collate,
        }

    def _workers(self) -> int:
        given = self.num_workers
        return max(1, min(8, cores() // self._local_processes())) if given is None else given

    def _local_processes(self) -> int:
        return int(self.trainer.num_devices) if self.trainer is not None else 1
