"""The receptive field against the support of the gradient: which pixels a cell of the logits really depends on."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from segkit.errors import InputError
from segkit.inference.tiling.receptive_field import receptive_field
from segkit.models.segmentation import FCN, DeepLabV3, MMSegFCN


class Wrapped(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.layers(x)}


class Branches(nn.Module):
    """A dilated branch, a short one, and a shortcut, as in a pyramid of dilations."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(4, 4, 3, padding=6, dilation=6)
        self.narrow = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.wide(x), self.narrow(x) + x], dim=1)


NETWORKS = {
    "strides": lambda: Wrapped(nn.Conv2d(3, 4, 5, 2, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3, 2, 1)),
    "no padding": lambda: Wrapped(nn.Conv2d(3, 4, 5, 2), nn.Conv2d(4, 2, 3)),
    "anisotropic": lambda: Wrapped(nn.Conv2d(3, 4, (3, 7), 2, (1, 3)), nn.Conv2d(4, 2, (5, 1), padding=(2, 0))),
    "pools": lambda: Wrapped(
        nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(3, 2, 1), nn.Conv2d(4, 4, 1), nn.AvgPool2d(2, 2, ceil_mode=True)
    ),
    "one-sided padding": lambda: Wrapped(nn.Conv2d(3, 4, 1, 2), nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 1)),
    "branches": lambda: Wrapped(nn.Conv2d(3, 4, 3, 2, 1), Branches(), nn.Conv2d(8, 2, 3, 2, 1)),
    "resnet": lambda: plain_resnet("authors"),
    "resnet, timm's dilation": lambda: plain_resnet("timm"),
    "resnet, mmseg's dilation": lambda: plain_resnet("mmseg"),
}


def plain_resnet(convention: str) -> nn.Module:
    """Without split attention; its max pool averages, because a gradient goes through one of nine values."""
    network = FCN("resnest14_tiny", 2, dilation_convention=convention, encoder_args={"radix": 0})
    network.encoder.maxpool = nn.AvgPool2d(3, 2, 1)
    return network


def support(network: nn.Module, side: int, stride: int) -> tuple[int, int]:
    """How far before and after its own pixel the middle cell of the logits depends on pixels, the more of both axes."""
    torch.manual_seed(0)
    network = network.double().eval()
    for module in network.modules():  # positive weights and no bias: no pixel's influence is rectified away
        if isinstance(module, nn.Conv2d):
            module.weight.data = (torch.rand_like(module.weight) + 0.1) / module.weight[0].numel()
            module.bias = None
    x = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    out = network(x)["out"]
    cell = out.shape[-1] // 2
    out[0, 0, cell, cell].backward()
    rows, columns = (x.grad[0].abs().sum((0, axis)).nonzero().flatten() for axis in (2, 1))
    own = stride * cell
    return int(own - min(rows.min(), columns.min())), int(max(rows.max(), columns.max()) - own)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_support_of_the_gradient(name: str) -> None:
    network = NETWORKS[name]()
    field = receptive_field(network)
    assert not field.sees_all
    before, after = support(network, 256 if "resnet" in name else 96, field.stride)
    assert (field.before, field.after) == (max(0, before), max(0, after))


def test_max_pools_count() -> None:
    field = receptive_field(Wrapped(nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2), nn.Conv2d(3, 2, 3, padding=1, stride=1)))
    assert (field.stride, field.step, field.before, field.after) == (4, 4, 1 + 4, 1 + 2 + 4)


@pytest.mark.parametrize(
    ("network", "sees_all"),
    [
        (lambda: FCN("resnest14_tiny", num_classes=2), True),  # split attention
        (lambda: DeepLabV3("resnet18", num_classes=2), True),  # the pooled branch of ASPP
        (lambda: MMSegFCN("resnet18", num_classes=2), False),
        (lambda: Wrapped(nn.Conv2d(3, 2, 1), nn.GroupNorm(1, 2)), True),
        (lambda: Wrapped(nn.Conv2d(3, 2, 3, 2, 1), nn.Upsample(scale_factor=2)), True),
    ],
)
def test_what_sees_the_whole_image_is_told(network, sees_all: bool) -> None:
    assert receptive_field(network()).sees_all is sees_all


@pytest.fixture(params=[None, False, True], ids=["any", "deterministic", "warns"])
def algorithms(request: pytest.FixtureRequest) -> Iterator[bool | None]:
    """PyTorch's deterministic mode, in which a resizing is made of many operations: off, on, and on with warnings."""
    torch.use_deterministic_algorithms(request.param is not None, warn_only=bool(request.param))
    yield request.param
    after = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    assert after == (request.param is not None, bool(request.param))  # as it was


@pytest.mark.usefixtures("algorithms")
def test_the_strides_of_the_head_and_of_the_inside() -> None:
    plain = receptive_field(FCN("resnest14_tiny", num_classes=2, output_stride=32))
    assert (plain.stride, plain.step) == (32, 32)
    decoder = receptive_field(Wrapped(nn.Conv2d(3, 2, 3, 4, 1), nn.Upsample(scale_factor=4, mode="bilinear")))
    assert (decoder.stride, decoder.step, decoder.sees_all) == (1, 4, True)


def test_dilation_reaches_eight_times_36_pixels_in_aspp() -> None:
    fcn, deeplab = receptive_field(FCN("resnet18")), receptive_field(DeepLabV3("resnet18"))
    assert deeplab.before - fcn.before == 8 * 36  # the widest 3x3 of ASPP; both heads have one more of rate 1


def test_a_network_without_places_is_refused() -> None:
    with pytest.raises(InputError, match="no single integer stride"):
        receptive_field(Wrapped(nn.Conv2d(3, 2, 3, (1, 2), 1)))
    with pytest.raises(InputError, match="no single integer stride"):
        receptive_field(Wrapped(nn.AdaptiveAvgPool2d(1)))
