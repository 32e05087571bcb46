"""Precise batch norm against statistics computed by hand from what each norm is given."""

import copy
import math
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.models.segmentation import FCN
from segkit.training.precise_bn import recalibrate


def norms_of(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


def batches_of(count: int, size: int, pixels: int = 32) -> list[Tensor]:
    """Batches that differ in brightness and contrast, so that no one of them is like the average."""
    generator = torch.Generator().manual_seed(0)
    return [(1 + i) * torch.randn(size, 3, pixels, pixels, generator=generator) + i for i in range(count)]


def by_hand(network: nn.Module, batches: Iterable[Tensor], correction: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> mean of batch means, mean of batch variances with n - correction; float64, from the norms' inputs."""
    network = copy.deepcopy(network)
    seen: dict[str, list[Tensor]] = {}
    for name, norm in norms_of(network).items():
        norm.register_forward_pre_hook(lambda _, given, n=name: seen.setdefault(n, []).append(given[0].double()))
    network.train()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    found = {}
    for name, inputs in seen.items():
        values = [x.transpose(0, 1).flatten(1) for x in inputs]  # (B, C, H, W) -> (C, B*H*W)
        means = torch.stack([v.mean(1) for v in values])
        variances = torch.stack([v.var(1, correction=correction) for v in values])
        found[name] = (means.mean(0), variances.mean(0))
    return found


def plain_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
    )


@pytest.fixture(scope="module")
def resnest() -> FCN:
    torch.manual_seed(0)
    return FCN("resnest14_tiny", 3, output_stride=16)


def test_statistics_are_the_average_of_the_batches_of_every_norm(resnest: FCN) -> None:
    batches = batches_of(4, 3)
    result = recalibrate(resnest, iter(batches))
    expected = by_hand(resnest, batches, correction=1)
    norms = norms_of(result.network)
    assert norms.keys() == expected.keys() and any(name.startswith("aux_head.") for name in norms)
    for name, norm in norms.items():
        torch.testing.assert_close(norm.running_mean.double(), expected[name][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), expected[name][1], rtol=1e-5, atol=1e-5)
    assert (result.batches, result.images) == (4, 12)
    assert [change.layer for change in result.changes] == list(norms)
    # Of a norm after pooling to 1x1 the three values of a batch tell the unbiased variance from the biased one.
    pooled = by_hand(resnest, batches, correction=0)
    assert any((norm.running_var > 1.4 * pooled[name][1].clamp(min=1e-6)).all() for name, norm in norms.items())


def test_it_is_the_rule_of_pytorch_encoding(resnest: FCN) -> None:
    """Momentum 1 makes the statistics those of the last batch alone; their plain average is taken."""
    network, batches = copy.deepcopy(resnest).train(), batches_of(3, 2)
    norms = norms_of(network)
    for norm in norms.values():
        norm.momentum = 1.0
    means = {name: torch.zeros_like(norm.running_mean) for name, norm in norms.items()}
    variances = {name: torch.zeros_like(norm.running_var) for name, norm in norms.items()}
    with torch.no_grad():
        for batch in batches:
            network(batch)
            for name, norm in norms.items():
                means[name] += norm.running_mean / len(batches)
                variances[name] += norm.running_var / len(batches)
    for name, norm in norms_of(recalibrate(resnest, batches).network).items():
        torch.testing.assert_close(norm.running_mean, means[name], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variances[name], rtol=1e-5, atol=1e-5)


def test_scaled_statistics_are_repaired() -> None:
    network, (batch,) = plain_network(), batches_of(1, 8)
    network.train()
    with torch.no_grad():
        wanted = copy.deepcopy(network)(batch)  # with the statistics of the batch itself
        for norm in norms_of(network).values():
            norm.running_mean.add_(1).mul_(10)
            norm.running_var.mul_(10)
        network.eval()
        assert (network(batch) - wanted).norm() > 0.5 * wanted.norm()
        repaired = recalibrate(network, [batch]).network(batch)
    assert (repaired - wanted).norm() < 1e-3 * wanted.norm()


def test_the_given_network_and_all_modes_and_momenta_stay(resnest: FCN) -> None:
    network = copy.deepcopy(resnest).eval()
    network.head.train()
    norms_of(network)["encoder.layer1.0.bn1"].momentum = 0.3
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    fresh = recalibrate(network, batches_of(2, 2)).network
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [m.training for m in network.modules()] == modes == [m.training for m in fresh.modules()]
    momenta = [norm.momentum for norm in norms_of(network).values()]
    assert [norm.momentum for norm in norms_of(fresh).values()] == momenta and set(momenta) == {0.1, 0.3}
    assert {int(norm.num_batches_tracked) for norm in norms_of(fresh).values()} == {2}
    for name, parameter in fresh.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.requires_grad and parameter.grad is None


@pytest.mark.parametrize("kind", ["eval", "no gradients"])
def test_frozen_norms_keep_their_statistics_and_use_them(kind: str) -> None:
    network, batches = plain_network().train(), batches_of(3, 4)
    first, second = network[1], network[4]
    first.running_mean.fill_(0.5)
    first.running_var.fill_(4.0)
    if kind == "eval":
        first.eval()
    else:
        first.requires_grad_(False)
    result = recalibrate(network, batches)
    fresh = result.network
    assert torch.equal(fresh[1].running_mean, first.running_mean) and torch.equal(
        fresh[1].running_var, first.running_var
    )
    assert fresh[1].training == first.training and int(fresh[1].num_batches_tracked) == 0
    assert [change.layer for change in result.changes] == ["4"]
    with torch.no_grad():
        inputs = [network[3](network[2]((network[0](x) - 0.5) / (4 + first.eps) ** 0.5)) for x in batches]
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(fresh[4].running_mean, means, rtol=1e-5, atol=1e-5)
    assert not torch.equal(second.running_mean, fresh[4].running_mean)


def test_changes_are_relative_to_what_was_there() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False))
    network[0].running_mean.copy_(torch.tensor([3.0, 4.0]))  # of length 5
    network[0].running_var.copy_(torch.tensor([1.0, 0.0]))
    pixels = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]).view(2, 2, 1, 1).repeat(1, 1, 1, 2)
    batch = torch.stack((pixels[:, 0, 0], pixels[:, 1, 0])).transpose(0, 1).unsqueeze(2)  # (2, 2, 1, 2)
    first, second = recalibrate(network, [batch]).changes
    new = batch.mean((0, 2, 3))
    assert first.mean == pytest.approx(float((new - torch.tensor([3.0, 4.0])).norm()) / 5)
    assert first.variance == pytest.approx(
        float((batch.transpose(0, 1).flatten(1).var(1) - torch.tensor([1.0, 0.0])).norm())
    )
    assert second.layer == "1" and second.mean == 0.0  # from 0 to 0
    moved = recalibrate(nn.BatchNorm2d(2), [batch + 1])
    assert moved.changes[0].mean == math.inf and moved.changes[0].layer == ""


class _Overflow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * math.inf


@pytest.mark.parametrize(
    ("network", "count", "message"),
    [
        (nn.Conv2d(3, 2, 1), 1, "Conv2d: it has no batch norm"),
        (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), 1, "all its 1 batch norms are frozen"),
        (nn.Sequential(nn.BatchNorm2d(3)), 0, "no batch was given"),
        (nn.Sequential(_Overflow(), nn.BatchNorm2d(3)), 1, "1: its statistics over these batches are infinite or NaN"),
    ],
)
def test_what_would_leave_wrong_numbers_is_refused(network: nn.Module, count: int, message: str) -> None:
    with pytest.raises(InputError) as error:
        recalibrate(network, batches_of(count, 2, 8))
    assert message in str(error.value) and "\n" not in str(error.value)
