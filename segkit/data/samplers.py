"""Which sample goes to which process, in training and in evaluation.

Both are `DistributedSampler`s because Lightning leaves a loader alone whose sampler is one, and replaces any other by
a sampler that repeats samples until all ranks have the same number, which would count pictures twice in a score.
"""

from collections.abc import Callable, Iterator, Sized
from typing import Any

import numpy as np
import torch.distributed as dist
from torch.utils.data import DistributedSampler


def replicas_and_rank(num_replicas: int | None = None, rank: int | None = None) -> tuple[int, int]:
    """World size and rank of this process; (1, 0) without torch.distributed."""
    running = dist.is_available() and dist.is_initialized()
    replicas = num_replicas if num_replicas is not None else dist.get_world_size() if running else 1
    return replicas, rank if rank is not None else dist.get_rank() if running else 0


class TrainSampler(DistributedSampler[Any]):
    """Yields (index, epoch), shuffled by (seed, epoch); every rank has the same number, the rest is dropped.

    Lightning calls `set_epoch` before each epoch.
    """

    def __init__(self, dataset: Sized, seed: int = 0, num_replicas: int | None = None, rank: int | None = None) -> None:
        replicas, rank = replicas_and_rank(num_replicas, rank)
        super().__init__(dataset, replicas, rank, shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.length = len(dataset)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """This rank's samples of the current epoch."""
        # A sequence, not the sum seed + epoch: seed 0 epoch 1 must differ from seed 1 epoch 0.
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        usable = self.length - self.length % self.num_replicas
        return iter([(int(index), self.epoch) for index in order[self.rank : usable : self.num_replicas]])

    def __len__(self) -> int:
        """Samples per rank."""
        return self.length // self.num_replicas


class EvalSampler(DistributedSampler[Any]):
    """Yields rank, rank + world, rank + 2 * world, ...: each sample once over all ranks, none repeated.

    Ranks may differ by one sample, and have none where there are more ranks than samples.

    Args:
        dataset: Only its length matters.
        num_replicas: Processes; None: as many as run.
        rank: This one; None: as torch.distributed says.
        skip: Which indices this rank leaves out of its own. They are still its own: dealing out only what is left would
            need all ranks to see the same rest, while some of them already work.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        skip: Callable[[int], bool] | None = None,
    ) -> None:
        replicas, rank = replicas_and_rank(num_replicas, rank)
        super().__init__(dataset, replicas, rank, shuffle=False)  # type: ignore[arg-type]
        own = range(rank, len(dataset), replicas)
        self.indices = own if skip is None else [index for index in own if not skip(index)]

    def __iter__(self) -> Iterator[int]:
        """This rank's samples, in order."""
        return iter(self.indices)

    def __len__(self) -> int:
        """Samples of this rank."""
        return len(self.indices)
