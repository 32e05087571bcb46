"""What is said when a batch does not fit, and the search for one that does."""

import re
from contextlib import nullcontext

import pytest
import torch

from segkit.models.segmentation import FCN
from segkit.ops.processor import is_out_of_memory
from segkit.training import probe
from segkit.training.module import SegmentationModule
from segkit.training.preflight import smaller_batch
from segkit.training.probe import (
    Probed,
    Prober,
    largest_on_line,
    search_cpu,
    search_gpu,
)


def test_the_advice_keeps_the_images_of_a_step() -> None:
    text = smaller_batch(12, 2, (480, 480))
    assert "data.batch_size 12, crops of 480x480 and 2 accumulated" in text and "\n" not in text
    size, times = map(int, re.search(r"batch_size (\d+) --trainer.accumulate_grad_batches (\d+)", text).groups())
    assert size == 6 and size * times == 12 * 2
    assert "--data.crop_size '[360, 576]'" in smaller_batch(1, 1, (480, 768))


@pytest.mark.parametrize(
    "error, whether",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, whether: bool) -> None:
    assert is_out_of_memory(error) is whether


class Fake(Prober):
    """A device on which a batch takes 3 + 2 bytes an image, and fails beyond its capacity."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.tried = capacity, []

    def try_batch(self, batch_size: int) -> Probed | None:
        self.tried.append(batch_size)
        memory = 3 + 2 * batch_size
        return Probed(batch_size, 0.1 * batch_size, memory) if memory <= self.capacity else None


@pytest.mark.parametrize("fits", [2, 3, 4, 7, 16, 21, 100])
def test_the_search_finds_the_largest_batch(fits: int) -> None:
    fake = Fake(3 + 2 * fits)
    rows = list(search_gpu(fake, limit=10**9))
    assert max(row.batch_size for row in rows) == fits and len(fake.tried) < 20
    limited = Fake(10**9)
    assert max(row.batch_size for row in search_gpu(limited, limit=3 + 2 * fits)) == fits
    assert list(search_gpu(Fake(4), limit=10**9)) == []


def test_on_the_cpu_it_is_the_line_through_small_batches() -> None:
    fake = Fake(10**9)
    rows = list(search_cpu(fake, limit=1000))
    assert fake.tried == [2, 4, 8] and largest_on_line(rows, 1003) == 500
    fake = Fake(10**9)
    assert len(list(search_cpu(fake, limit=15))) == 2 and fake.tried == [2, 4]  # 8 would not fit: it is not tried


def test_real_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SegmentationModule(FCN("resnest14_tiny", 3))
    before = module.network.encoder.conv1[0].weight.clone()
    tried = Prober(module, (33, 65), nullcontext).try_batch(2)
    assert tried is not None and tried.batch_size == 2 and 0 < tried.seconds < 60 and tried.memory > 10**7
    assert not torch.equal(before, module.network.encoder.conv1[0].weight)  # it is a whole step

    def fails(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(probe, "segmentation_loss", fails)
    assert Prober(module, (33, 65), nullcontext).try_batch(2) is None
