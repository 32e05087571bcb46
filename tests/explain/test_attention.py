"""What is read of attention, against hooks on the modules of others with the same weights, and on planted networks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm.layers
import torch
from torch import Tensor, nn

from segkit.explain.attention import ClassShares, Reading, reading
from segkit.models.resnest import SplitAttention
from segkit.models.segmentation import FCN
from segkit.ops.dispatch import plain_ops

X = torch.randn(2, 16, 9, 7, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def read(module: nn.Module, x: Tensor) -> Reading:
    """The only reading of a module; its result must be the same as without."""
    network = nn.Sequential(module).eval()
    expected = network(x)
    with reading(network) as found:
        assert torch.equal(network(x), expected)
    assert list(found) == ["0"] and not module._forward_hooks
    return found["0"]


@torch.no_grad()
def hooked(module: nn.Module, part: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of a part of a module in one forward."""
    seen: list[Any] = []
    part.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].clone(), output.clone())))
    module.eval()(x)
    return seen[0]


def randomised(module: nn.Module) -> nn.Module:
    """Norms that do something, and biases."""
    generator = torch.Generator().manual_seed(2)
    for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
        tensor.data = torch.rand(tensor.shape, generator=generator) - (0.5 if tensor.ndim > 1 else 0)
    return module


@pytest.mark.parametrize("radix, cardinality", [(1, 1), (2, 1), (2, 2), (4, 2)])
def test_split_attention_is_the_authors(radix: int, cardinality: int) -> None:
    splat = pytest.importorskip("resnest.torch.splat", reason="the authors' wheel is not installed")
    theirs = randomised(
        splat.SplAtConv2d(16, 16, 3, padding=1, groups=cardinality, bias=False, radix=radix, norm_layer=nn.BatchNorm2d)
    )
    ours = SplitAttention(16, radix, cardinality)
    ours.load_state_dict(theirs.state_dict())
    logits, weights = hooked(theirs, theirs.rsoftmax, X)
    found = read(ours, X).weights
    torch.testing.assert_close(found.flatten(1), weights.flatten(1))
    if radix == 1:
        torch.testing.assert_close(found.flatten(1), logits.flatten(1).sigmoid())
    else:
        torch.testing.assert_close(found.sum(1), torch.ones(2, 16))


def test_squeeze_and_excitation_is_timms_gate() -> None:
    module = randomised(timm.layers.SEModule(16))
    _, gates = hooked(module, module.gate, X)
    found = read(module, X)
    assert torch.equal(found.weights, gates.flatten(1)[:, None])
    by_hand = (gates * X.abs()).sum(1) / X.abs().sum(1)
    torch.testing.assert_close(found.share[:, 0], by_hand)


def test_selective_kernels_are_timms_softmax() -> None:
    module = randomised(timm.layers.SelectiveKernel(16, 16))
    paths, weights = hooked(module, module.attn, X)
    found = read(module, X)
    assert torch.equal(found.weights, weights.flatten(2))
    attended = (weights * paths).abs().sum(2)  # (B, R, h, w)
    torch.testing.assert_close(found.share, attended / attended.sum(1, keepdim=True))


def planted(prefer: float = 0) -> SplitAttention:
    """Split 0 sees the first half of the channels, split 1 the second; the attention has a bias for split 0."""
    module = SplitAttention(4, radix=2)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(module.bn0.weight)
    module.conv.weight.data[:, 0, 1, 1] = 1  # of each group of two input channels the first
    module.fc2.bias.data[:4] = prefer
    return module


def test_a_split_that_sees_one_class_only_is_that_classs() -> None:
    x = torch.zeros(1, 4, 8, 8)
    x[:, 0, :, :3], x[:, 2, :, 3:6] = 1, 1  # left, middle; nothing at the right
    labels = np.zeros((16, 16), np.uint8)
    labels[:, 6:12], labels[:, 12:] = 1, 3
    found = read(planted(), x)
    assert torch.equal(found.weights, torch.full((1, 2, 4), 0.5))
    shares = ClassShares(5)
    shares.add({"block": found}, labels, (16, 16))
    assert shares.pixels.tolist() == [96, 96, 0, 64, 0]
    expected = [[1, 0], [0, 1], [np.nan] * 2, [0.5, 0.5], [np.nan] * 2]
    np.testing.assert_allclose(shares.means()["block"], expected)


def test_a_split_that_wins_everywhere_is_seen_to() -> None:
    found = read(planted(prefer=30), torch.ones(1, 4, 8, 8))
    assert (found.weights[:, 0] > 0.999).all() and (found.share[:, 0] > 0.999).all()


def test_cells_of_the_padding_count_for_no_class() -> None:
    share = torch.tensor([0.25, 0.25, 0.75, 1.0]).view(1, 1, 1, 4)
    shares = ClassShares(1)
    for _ in range(2):  # images
        shares.add({"block": Reading(torch.ones(1, 1, 1), share)}, np.zeros((8, 24), np.uint8), (8, 32))
    assert shares.means()["block"].item() == pytest.approx((0.25 + 0.25 + 0.75) / 3)


@pytest.mark.parametrize(
    "encoder, blocks, radix", [("resnest14_tiny", 4, 2), ("senet14_tiny", 4, 1), ("sknet14_tiny", 4, 2)]
)
def test_whole_networks_with_and_without_fused_operations(encoder: str, blocks: int, radix: int) -> None:
    torch.manual_seed(0)
    network, x = FCN(encoder, num_classes=3).eval(), torch.randn(1, 3, 40, 56)
    readings: list[dict[str, Reading]] = []
    with torch.no_grad():
        expected = network(x)["out"]
        for run in (network, plainly(network)):
            with reading(network) as found:
                torch.testing.assert_close(run(x)["out"], expected)
            readings.append(found)
    fused, plain = readings
    assert len(fused) == blocks and list(fused) == list(plain)
    assert {one.weights.shape[1] for one in fused.values()} == {radix}
    for name, one in fused.items():
        torch.testing.assert_close(one.weights, plain[name].weights)
        torch.testing.assert_close(one.share, plain[name].share)


def plainly(network: nn.Module) -> Callable[[Tensor], Any]:
    def run(x: Tensor) -> Any:
        with plain_ops():
            return network(x)

    return run
