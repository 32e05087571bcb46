"""Which share of the images a process takes that torchrun or SLURM has started as one of several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from segkit.errors import InputError

Item = TypeVar("Item")

# launcher      number of the process, how many there are, its number on this machine
_LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "SLURM":    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
}  # fmt: skip


@dataclass(frozen=True)
class Rank:
    """One of several processes with the same command.

    Attributes:
        index: Its number, 0..count - 1.
        count: How many there are.
        local: Its number on this machine.
        launcher: What started them.
    """

    index: int = 0
    count: int = 1
    local: int = 0
    launcher: str = ""

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `count`-th item: each is in the share of one rank, if all have the same list."""
        return items[self.index :: self.count]


def rank_of(environment: Mapping[str, str]) -> Rank:
    """The rank that a launcher's variables give to this process; the only one without them.

    Raises:
        InputError: They are not whole numbers, or contradict each other.
    """
    for launcher, (index, count, local) in _LAUNCHERS.items():
        if index in environment and count in environment:
            texts = environment[index], environment[count], environment.get(local, "0")
            numbers = [int(text) if text.isdecimal() else -1 for text in texts]
            if not 0 <= numbers[0] < numbers[1] or numbers[2] < 0:
                raise InputError(
                    f"{index}={texts[0]}, {count}={texts[1]} and {local}={texts[2]} in the environment are not the "
                    f"numbers of a process of {launcher}; unset them, or start it by {launcher}"
                )
            return Rank(numbers[0], numbers[1], numbers[2], launcher)
    return Rank()
