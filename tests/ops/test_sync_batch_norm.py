"""Batch norm over gloo processes on the CPU is batch norm of the joined batch."""

from pathlib import Path

import pytest
import torch
from gloo import run_function
from torch import Tensor, nn

from segkit.ops.sync_batch_norm import SyncBatchNorm2d, TorchSyncBatchNorm, to_batch_norm, to_sync_batch_norm

SIZES = {2: (3, 2), 3: (1, 4, 2)}  # images of each process: uneven, one of them with a single one


def batch(count: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(count, 4, 3, 5, generator=generator, dtype=torch.float64) * 2 + 30).to(dtype)


def norm(dtype: torch.dtype, momentum: float | None) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    made = nn.BatchNorm2d(4, momentum=momentum).to(dtype)
    nn.init.normal_(made.weight), nn.init.normal_(made.bias)
    return made


def passes(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Two passes (the second one with other running statistics before it); output, gradients, buffers."""
    for _ in range(2):
        layer.zero_grad()
        x = x.detach().requires_grad_()
        y = layer(x)
        (y.double().cos() * torch.arange(y[0].numel()).view_as(y[0])).sum().backward()
    found = {"y": y.detach(), "x": x.grad}
    return found | {f"d{k}": v.grad for k, v in layer.named_parameters()} | dict(layer.named_buffers())


def of_a_process(rank: int, world: int, dtype: torch.dtype, momentum: float | None) -> dict[str, Tensor]:
    parts = batch(sum(SIZES[world]), dtype).split(SIZES[world])
    return passes(to_sync_batch_norm(norm(dtype, momentum)), parts[rank])


@pytest.mark.slow
@pytest.mark.parametrize(
    "world, dtype, momentum", [(2, torch.float64, 0.1), (3, torch.float64, None), (2, torch.float32, 0.1)]
)
def test_processes_are_the_joined_batch(world: int, dtype: torch.dtype, momentum: float | None, tmp_path: Path) -> None:
    ranks = run_function(world, of_a_process, dtype, momentum, folder=tmp_path)
    joined = passes(norm(dtype, momentum), batch(sum(SIZES[world]), dtype))
    tolerance = {"rtol": 1e-12, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-4}
    for name in ("y", "x"):
        torch.testing.assert_close(torch.cat([r[name] for r in ranks]), joined[name], **tolerance)
    for name in ("dweight", "dbias"):  # which DDP adds up
        torch.testing.assert_close(sum(r[name] for r in ranks), joined[name], **tolerance)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        for r in ranks:
            torch.testing.assert_close(r[name], joined[name], **tolerance)


def on_1x1_maps(rank: int, world: int) -> dict[str, Tensor]:
    torch.manual_seed(rank)
    layer = to_sync_batch_norm(nn.BatchNorm2d(6))
    x = torch.randn(1, 6, 1, 1).bfloat16()
    y = layer(x)
    layer.eval()
    with torch.no_grad():
        evaluated = layer(x.float())
    return {"x": x, "y": y.detach(), "evaluated": evaluated, "var": layer.running_var}


@pytest.mark.slow
def test_one_image_a_process_on_1x1_maps_in_bfloat16(tmp_path: Path) -> None:
    ranks = run_function(2, on_1x1_maps, folder=tmp_path)
    x = torch.cat([r["x"] for r in ranks]).float()
    y = torch.cat([r["y"] for r in ranks])
    assert y.dtype == torch.bfloat16
    expected = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(y.float(), expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(ranks[0]["var"], 0.9 + 0.1 * x.var(0).flatten(), rtol=1e-5, atol=1e-6)
    assert torch.equal(ranks[0]["evaluated"], ranks[0]["evaluated"].detach()) and ranks[1]["evaluated"].isfinite().all()


def test_alone_it_is_a_batch_norm_and_shares_its_tensors() -> None:
    own = norm(torch.float32, 0.1)
    synced = to_sync_batch_norm(own)
    assert isinstance(synced, SyncBatchNorm2d) and synced.weight is own.weight
    assert synced.running_mean is own.running_mean and list(synced.state_dict()) == list(own.state_dict())
    x = batch(5, torch.float32)
    torch.testing.assert_close(synced(x), nn.functional.batch_norm(x, None, None, own.weight, own.bias, True))
    synced.weight = nn.Parameter(torch.full((4,), 2.0))
    assert to_batch_norm(synced, own) is own and torch.equal(own.weight, torch.full((4,), 2.0))


def test_timms_activation_goes_along() -> None:
    from timm.layers import BatchNormAct2d

    layer = BatchNormAct2d(4)
    synced = to_sync_batch_norm(layer)
    x = batch(5, torch.float32)
    torch.testing.assert_close(synced(x), layer(x))
    assert float(synced(x).min()) == 0 and isinstance(to_sync_batch_norm(layer, "cuda"), TorchSyncBatchNorm)
