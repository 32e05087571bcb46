"""Loaders: how long a reader has waited for one, where one stands in its epoch, and what worker processes are given."""

import time
from collections.abc import Callable, Iterator

import cv2
import torch
from torch.utils.data import DataLoader

from segkit.data.dataset import Item
from segkit.data.samplers import TrainSampler


class TimedLoader(DataLoader[Item]):
    """A DataLoader; `seconds_waited` is the time that fetching batches has taken so far, in all epochs.

    With workers that is what they do not manage while the network computes; without, all of loading.

    Attributes:
        clock: Gives seconds from any beginning.
    """

    seconds_waited = 0.0
    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        """The batches, as of a DataLoader."""
        batches = super().__iter__()
        while True:
            start = self.clock()
            batch = next(batches, None)
            self.seconds_waited += self.clock() - start
            if batch is None:
                return
            yield batch


class TrainLoader(TimedLoader):
    """A loader over a `TrainSampler` that can go on in the middle of an epoch."""

    _used = 0  # samples of this epoch that were handed out, over all ranks

    def state_dict(self) -> dict[str, int]:
        """Where it stands, for a checkpoint; Lightning asks for it."""
        return {"epoch": self._sampler.epoch, "samples": self._used}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out the samples that were used before, if the epoch is the one that was stopped in."""
        self._sampler.resume = (state["epoch"], state["samples"])

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        """The batches, as of a DataLoader."""
        # Nothing happens before the first batch is asked for: by then Lightning has told the sampler its epoch.
        epoch, used = self._sampler.resume
        self._used = used if epoch == self._sampler.epoch else 0
        for batch in super().__iter__():
            self._used += len(batch["name"]) * self._sampler.num_replicas
            yield batch

    @property
    def _sampler(self) -> TrainSampler:
        assert isinstance(self.sampler, TrainSampler)
        return self.sampler


def init_worker(worker_id: int) -> None:
    """Keep a loader worker to one thread: many workers times many threads stall a machine, or hang it."""
    cv2.setNumThreads(0)
    cv2.ocl.setUseOpenCL(False)
    torch.set_num_threads(1)
