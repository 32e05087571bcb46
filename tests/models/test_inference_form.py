"""The inference form computes what its network computes, with less."""

import copy

import pytest
import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.models.inference_form import InferenceForm, convolution_dtype, inference_form
from segkit.models.segmentation import FCN, DeepLabV3, MMSegDeepLabV3, MMSegFCN
from segkit.ops.dispatch import plain_ops
from segkit.ops.winograd import WinogradConv2d

NETWORKS = {
    "deeplabv3": lambda: DeepLabV3("resnest14_tiny", 5),
    "fcn, timm's encoder": lambda: FCN("resnet18", 5),
    "timm's own norm with an activation": lambda: FCN("regnety_002", 5, output_stride=32),
    "mmseg's deeplabv3": lambda: MMSegDeepLabV3("resnest14_tiny", 5),
    "mmseg's fcn": lambda: MMSegFCN("resnest14_tiny", 5),
    "frozen pooled norms": lambda: DeepLabV3("resnest14_tiny", 5, pooled_norm="frozen"),
    "group norms": lambda: DeepLabV3("resnest14_tiny", 5, pooled_norm="group"),
    "radix 0": lambda: FCN("resnest14_tiny", 5, encoder_args={"radix": 0}),
    "dropblock": lambda: FCN("resnest14_tiny", 5, encoder_args={"dropblock_prob": 0.1}),
    "four bands": lambda: FCN("resnest14_tiny", 5, in_channels=4),
}


def with_statistics(network: nn.Module) -> nn.Module:
    """As if trained: norms that are not the identity."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
            ):
                assert tensor is not None
                tensor.data.uniform_(low, high, generator=generator)
    return network.eval()


def image(network: nn.Module, batch: int = 2) -> Tensor:
    channels = network.config.get("init_args", {}).get("in_channels", 3)
    return torch.randn(batch, channels, 65, 97, generator=torch.Generator().manual_seed(2))


def norms(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_float32_agrees_but_for_rounding(name: str) -> None:
    network = with_statistics(NETWORKS[name]())
    before = copy.deepcopy(network.state_dict())
    form = inference_form(network)
    expected, found = network(image(network))["out"], form(image(network))["out"]
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert form(image(network))["out"].shape == expected.shape
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[key])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deeplabv3", "fcn, timm's encoder", "mmseg's deeplabv3", "radix 0"])
def test_every_norm_is_gone(name: str) -> None:
    network = with_statistics(NETWORKS[name]())
    form = inference_form(network)
    assert norms(network) and not norms(form)
    assert not any(isinstance(module, nn.Dropout | nn.Dropout2d) for module in form.modules())
    assert not any(key.startswith("network.aux_head") for key in form.state_dict())


@torch.no_grad()
def test_bfloat16_keeps_its_logits_in_float32() -> None:
    network = with_statistics(DeepLabV3("resnest14_tiny", 5))
    form = inference_form(network, torch.bfloat16)
    found, expected = form(image(network))["out"], network(image(network))["out"]
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())  # more than eight bits
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


class Minimal(nn.Module):
    """What an inference form asks of a network."""

    def __init__(self, encoder: nn.Module, channels: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Conv2d(channels, 5, 1)
        self.num_classes, self.output_stride, self.align_corners, self.config = 5, 1, True, {}


class SharedConvolution(Minimal):
    """A convolution whose output goes to a norm and past it: folding the norm would change what goes past."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), 4)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.encoder(x)
        return {"out": self.head(self.norm(features) + features)}


@torch.no_grad()
def test_a_norm_that_cannot_be_folded_stays() -> None:
    network = with_statistics(SharedConvolution())
    form = inference_form(network)
    assert norms(form) == ["network.norm"]
    torch.testing.assert_close(form(image(network))["out"], network(image(network))["out"])


class Wide(Minimal):
    """A convolution with enough channels for Winograd's way, with a norm after it."""

    def __init__(self) -> None:
        wide = nn.Conv2d(128, 128, 3, padding=2, dilation=2, bias=False)
        encoder = nn.Sequential(nn.Conv2d(3, 128, 3, padding=1), nn.ReLU(), wide, nn.BatchNorm2d(128), nn.ReLU())
        super().__init__(encoder, 128)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(self.encoder(x))}


@torch.no_grad()
def test_float32_multiplies_less_in_wide_convolutions() -> None:
    torch.manual_seed(0)
    network = with_statistics(Wide())
    form, x = inference_form(network), image(network)
    assert [name for name, module in form.named_modules() if isinstance(module, WinogradConv2d)] == [
        "network.encoder.2"
    ]
    expected, found = network(x)["out"], form(x)["out"]
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (found.argmax(1) != expected.argmax(1)).float().mean() < 1e-3  # where two classes are nearly equal
    with plain_ops():
        direct = form(x)["out"]
    assert not torch.equal(found, direct)
    assert (direct - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not any(isinstance(module, WinogradConv2d) for module in inference_form(network, torch.bfloat16).modules())
    assert "network.encoder.2.weight" in form.state_dict() and "network.encoder.2.filters" not in form.state_dict()


def test_attributes_are_the_networks() -> None:
    network = MMSegFCN("resnest14_tiny", 7, output_stride=16)
    form = inference_form(network, torch.bfloat16)
    assert isinstance(form, InferenceForm)
    assert (form.num_classes, form.output_stride, form.align_corners) == (7, 16, False)
    assert form.config == network.config and not form.training


@pytest.mark.parametrize(("fast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bfloat16_where_the_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, fast: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr("segkit.models.inference_form.multiplies_bfloat16", lambda: fast)
    assert convolution_dtype("auto", torch.device("cpu")) == expected


def test_words_for_the_precision() -> None:
    cpu = torch.device("cpu")
    assert convolution_dtype("exact", cpu) is None
    assert convolution_dtype("float32", cpu) == torch.float32
    assert convolution_dtype("bfloat16", cpu) == torch.bfloat16
    with pytest.raises(InputError, match="precision='bf16' is not one of auto, exact, float32, bfloat16"):
        convolution_dtype("bf16", cpu)  # type: ignore[arg-type]
