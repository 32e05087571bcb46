"""The samplers that deal samples to processes, in training and in evaluation.

They are `DistributedSampler`s because Lightning keeps those, and replaces any other sampler by one that repeats samples
until all ranks have the same number, which would count images twice in a score.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler

from segkit.errors import InputError


def replicas_and_rank(num_replicas: int | None = None, rank: int | None = None) -> tuple[int, int]:
    """World size and rank of this process; (1, 0) without torch.distributed."""
    running = dist.is_available() and dist.is_initialized()
    replicas = num_replicas if num_replicas is not None else dist.get_world_size() if running else 1
    return replicas, rank if rank is not None else dist.get_rank() if running else 0


def check_one_batch(root: Path, images: int, batch_size: int) -> None:
    """Refuse a training set that is smaller than one batch.

    Raises:
        InputError: There are fewer images than one batch over all processes.
    """
    world, _ = replicas_and_rank()
    if images < batch_size * world:
        raise InputError(
            f"{root}: {images} training images are fewer than one batch "
            f"(batch_size {batch_size} x {world} processes); lower --data.batch_size"
        )


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw of a sample, which together with the seed determines all of its randomness.

    Attributes:
        index: Index of the sample.
        epoch: The epoch in which it is drawn.
        repeat: How often it was drawn before in this epoch, over all ranks.
        wanted_class: Train id that the crop should show; -1 for any.
    """

    index: int
    epoch: int = 0
    repeat: int = 0
    wanted_class: int = -1


class TrainSampler(DistributedSampler[Any]):
    """Yields each sample once an epoch, shuffled by (seed, epoch); every rank has the same number, the rest is dropped.

    Lightning calls `set_epoch` before each epoch.

    Attributes:
        resume: (epoch, samples): that many samples of that epoch, over all ranks, were used before the run was stopped;
            they are skipped.
    """

    def __init__(self, dataset: Sized, seed: int = 0, num_replicas: int | None = None, rank: int | None = None) -> None:
        replicas, rank = replicas_and_rank(num_replicas, rank)
        super().__init__(dataset, replicas, rank, shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.length = len(dataset)
        self.resume = (0, 0)

    def __iter__(self) -> Iterator[Draw]:
        """This rank's samples of the current epoch."""
        usable = self.length - self.length % self.num_replicas
        epoch, used = self.resume
        first = used if epoch == self.epoch else 0
        return iter(self.draws()[first + self.rank : usable : self.num_replicas])

    def draws(self) -> list[Draw]:
        """The current epoch's, of all ranks."""
        return [Draw(int(index), self.epoch) for index in self._generator().permutation(self.length)]

    def _generator(self) -> np.random.Generator:
        # A sequence, not the sum seed + epoch: seed 0 epoch 1 must differ from seed 1 epoch 0.
        return np.random.default_rng((self.seed, self.epoch))

    def __len__(self) -> int:
        """The number of samples per rank."""
        return self.length // self.num_replicas


class RareClassSampler(TrainSampler):
    """Draws a class, rare ones more often, then an image that has it; as often per epoch as there are images.

    Rare class sampling of DAFormer (Hoyer et al., CVPR 2022, equation 5): class c with probability proportional to
    exp((1 - f_c) / T), f_c being its share of all valid pixels.

    Args:
        areas: Pixels of each class of each image, integers (N, K).
        temperature: T, 0.01 in the paper; lower ones draw rare classes more often.
        seed: Seed of the draws.
        num_replicas: Number of processes; None: torch.distributed's world size.
        rank: Rank of this process; None: torch.distributed's rank.
    """

    def __init__(
        self,
        areas: npt.NDArray[np.int64],
        temperature: float = 0.01,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(range(len(areas)), seed, num_replicas, rank)
        totals = areas.sum(axis=0)
        self.classes = np.flatnonzero(totals)  # a class without a pixel cannot be drawn
        shares = totals[self.classes] / totals.sum()
        logits = (1 - shares) / temperature
        odds = np.exp(logits - logits.max())
        self.probabilities = odds / odds.sum()
        self.images: Sequence[npt.NDArray[np.intp]] = [np.flatnonzero(areas[:, c]) for c in self.classes]

    def draws(self) -> list[Draw]:
        """The current epoch's, of all ranks."""
        rng = self._generator()
        seen: Counter[int] = Counter()
        draws = []
        for position in rng.choice(len(self.classes), self.length, p=self.probabilities):
            index = int(rng.choice(self.images[position]))
            draws.append(Draw(index, self.epoch, seen[index], int(self.classes[position])))
            seen[index] += 1
        return draws


def only(loader: DataLoader[Any], indices: Sequence[int]) -> DataLoader[Any]:
    """The loader of a split in its own order (`EvalSampler`), which now reads these images and no others."""
    assert isinstance(loader.sampler, EvalSampler)
    loader.sampler.indices = indices
    return loader


class EvalSampler(DistributedSampler[Any]):
    """Yields rank, rank + world, rank + 2 * world, ...: each sample once over all ranks, none repeated.

    Ranks may differ by one sample, and have none where there are more ranks than samples.

    Args:
        dataset: The data set, of which only the length matters.
        num_replicas: Number of processes; None: torch.distributed's world size.
        rank: Rank of this process; None: torch.distributed's rank.
        skip: Whether this rank skips one of its own indices. Dealing out only the remaining ones would require all
            ranks to see the same remainder, while some of them already work.
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
        self.indices: Sequence[int] = own if skip is None else [index for index in own if not skip(index)]

    def __iter__(self) -> Iterator[int]:
        """This rank's samples, in order."""
        return iter(self.indices)

    def __len__(self) -> int:
        """The number of samples of this rank."""
        return len(self.indices)
