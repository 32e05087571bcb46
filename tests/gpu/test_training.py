"""Training on CUDA: several processes, sharding, saved memory; skipped without a GPU."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from gloo import run_function
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from segkit.models.gradient_checkpointing import checkpoint_stages
from segkit.models.segmentation import FCN, DeepLabV3
from segkit.ops.sync_batch_norm import to_sync_batch_norm
from segkit.training.losses import LossConfig, segmentation_loss
from segkit.training.module import SegmentationModule
from segkit.training.optim import OptimConfig, build_optimizer, parameter_groups
from segkit.training.probe import SHARE, Prober, available_memory, search_gpu

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

SIZES = {1: (5,), 2: (3, 2)}


def three_steps(rank: int, world: int) -> dict[str, Tensor]:
    """State after three float64 steps on the process's part of the batches."""
    torch.manual_seed(0)
    network = DeepLabV3("resnest14_tiny", 4).double().cuda()
    for name, module in list(network.named_modules()):
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            network.set_submodule(name, nn.Identity())
        elif isinstance(module, nn.BatchNorm2d) and world > 1:
            network.set_submodule(name, to_sync_batch_norm(module, "cuda").cuda())
    config = OptimConfig(lr=0.05)
    optimizer = build_optimizer(config, parameter_groups(network, 0.05, config))
    wrapped: Any = DistributedDataParallel(network, device_ids=[0]) if world > 1 else network
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        image = torch.randn(5, 3, 65, 49, generator=generator, dtype=torch.float64).split(SIZES[world])[rank].cuda()
        mask = torch.randint(0, 4, (5, 65, 49), generator=generator)
        mask[0] = 255
        own = mask.split(SIZES[world])[rank].cuda()

        def mean_count(count: Tensor) -> Tensor:
            total = count.clone()
            if world > 1:
                dist.all_reduce(total)
            return total / world

        optimizer.zero_grad()
        segmentation_loss(wrapped(image), own, LossConfig(), True, mean_count).backward()
        optimizer.step()
    return {name: value.cpu() for name, value in network.state_dict().items()}


def test_two_ranks_on_one_card_are_one_process(tmp_path: Path) -> None:
    alone = three_steps(0, 1)
    for state in run_function(2, three_steps, folder=tmp_path):
        for name, value in alone.items():
            torch.testing.assert_close(state[name], value, rtol=1e-8, atol=1e-9)


class Steps(DataLoader):
    """A few random batches."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        rows = [
            {
                "image": torch.randint(0, 256, (4, 3, 96, 96), generator=generator, dtype=torch.uint8),
                "mask": torch.randint(0, 4, (4, 96, 96), generator=generator, dtype=torch.uint8),
                "name": list("abcd"),
            }
            for _ in range(3)
        ]
        super().__init__(rows, batch_size=None)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_fit_in_every_precision_and_sharded(precision: str, strategy: str, tmp_path: Path) -> None:
    module = SegmentationModule(FCN("resnest14_tiny", 4), OptimConfig(reference_batch=0))
    trainer = pl.Trainer(accelerator="gpu", devices=1, strategy=strategy, precision=precision, max_steps=3,
                         logger=False, enable_progress_bar=False, default_root_dir=tmp_path)  # fmt: skip
    trainer.fit(module, Steps())
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


def test_checkpointed_stages_save_memory() -> None:
    peaks = []
    for stages in ((), (1, 2, 3, 4)):
        torch.cuda.empty_cache()
        network = FCN("resnest50", 19).cuda().train()
        if stages:
            checkpoint_stages(network.encoder, stages)
        torch.cuda.reset_peak_memory_stats()
        network(torch.randn(4, 3, 256, 256, device="cuda"))["out"].mean().backward()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 0.6 * peaks[0]


def test_the_probe_finds_a_batch_that_fits() -> None:
    module = SegmentationModule(FCN("resnest50", 19)).cuda()
    limit = int(SHARE * available_memory(module.device)) // 8
    rows = list(search_gpu(Prober(module, (256, 256), nullcontext), limit))
    assert rows and max(row.memory for row in rows) <= limit
