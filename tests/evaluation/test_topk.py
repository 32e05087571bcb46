"""Top-k against torchmetrics, Wilson's interval against scipy, several processes against one."""

import math
from pathlib import Path

import pytest
import torch
from gloo import run_function
from scipy.stats import binomtest
from torchmetrics.functional.classification import multiclass_accuracy

from segkit.evaluation.topk import TopK, ranks, wilson


def batch(count: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, classes, generator=generator), torch.randint(0, classes, (count,), generator=generator)


def test_top_1_and_5_are_those_of_torchmetrics() -> None:
    counts, seen = TopK(), [batch(n, 20, n) for n in (7, 16, 1)]
    for logits, label in seen:
        counts.update(logits, label)
    found = counts.compute()
    logits, label = (torch.cat(parts) for parts in zip(*seen, strict=True))
    for k, value in ((1, found.top1.value), (5, found.top5.value)):
        assert value == pytest.approx(float(multiclass_accuracy(logits, label, 20, average="micro", top_k=k)))
    assert found.images == 24


def test_ties_go_to_the_lower_class_and_nan_is_never_right() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [math.nan, 1.0, 0.0], [math.nan, 1.0, 0.0]])
    assert ranks(logits, torch.tensor([0, 1, 1, 0])).tolist() == [0, 1, 1, 3]


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (1, 1), (40517, 50000), (37, 120)])
def test_the_interval_is_wilsons(successes: int, trials: int) -> None:
    found, theirs = wilson(successes, trials), binomtest(successes, trials).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert found.value == successes / trials


def test_no_image_has_no_score() -> None:
    assert math.isnan(wilson(0, 0).value)


def share_of(rank: int, world: int) -> torch.Tensor:
    logits, label = batch(11, 7, 1)
    counts = TopK()
    counts.update(logits[rank::world], label[rank::world])
    counts.all_reduce()
    return counts.counts


@pytest.mark.slow
def test_several_processes_count_as_one(tmp_path: Path) -> None:
    assert all(torch.equal(found, share_of(0, 1)) for found in run_function(3, share_of, folder=tmp_path))
