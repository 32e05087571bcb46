"""What a step draws depends on seed, process, epoch and batch, and on nothing else."""

import random
from itertools import product
from types import SimpleNamespace

import numpy as np
import torch

from segkit.training.guards.resume import StepSeeds


def draws(seed: int, rank: int, epoch: int, batch: int) -> tuple[float, float, float]:
    trainer = SimpleNamespace(global_rank=rank, current_epoch=epoch)
    StepSeeds(seed).on_train_batch_start(trainer, None, None, batch)
    return float(torch.rand(())), float(np.random.rand()), random.random()


def test_every_step_of_every_process_draws_by_itself() -> None:
    keys = list(product((0, 1), repeat=4))
    found = [draws(*key) for key in keys]
    for generator in range(3):
        assert len({row[generator] for row in found}) == len(keys)
    torch.rand(100), np.random.rand(100), random.random()
    assert [draws(*key) for key in keys] == found


def test_a_run_without_a_seed_keeps_the_one_that_it_drew() -> None:
    one, two, other = StepSeeds(None), StepSeeds(5), StepSeeds(None)
    two.load_state_dict(one.state_dict())
    assert two.seed == one.seed != other.seed
