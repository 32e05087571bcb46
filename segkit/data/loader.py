"""Loaders: one that knows how long its reader has waited for it, and what its worker processes are given."""

import time
from collections.abc import Iterator

import cv2
import torch
from torch.utils.data import DataLoader

from segkit.data.dataset import Item


class TimedLoader(DataLoader[Item]):
    """A DataLoader; `seconds_waited` is the time that fetching batches has taken so far, in all epochs.

    With workers that is what they do not manage while the network computes; without, all of loading.
    """

    seconds_waited = 0.0

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        """The batches, as of a DataLoader."""
        batches = super().__iter__()
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.seconds_waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch


def init_worker(worker_id: int) -> None:
    """Keep a loader worker to one thread: many workers times many threads stall a machine, or hang it."""
    cv2.setNumThreads(0)
    cv2.ocl.setUseOpenCL(False)
    torch.set_num_threads(1)
