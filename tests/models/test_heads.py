"""Heads against torchvision's with copied weights, and the whole networks."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead as TorchvisionFCNHead

from segkit.errors import InputError
from segkit.models.heads import ASPP_RATES, DeepLabV3Head, FCNHead, MMSegASPPHead, MMSegAuxHead
from segkit.models.segmentation import FCN, DeepLabV3, MMSegDeepLabV3, MMSegFCN, build_network

TINY = "resnest14_tiny"
HEADED = (FCN, DeepLabV3, MMSegFCN, MMSegDeepLabV3)


def copy_in_order(ours: nn.Module, theirs: nn.Module) -> None:
    """The layers come in the same order under other names."""
    values = list(theirs.state_dict().values())
    assert [v.shape for v in ours.state_dict().values()] == [v.shape for v in values]
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))


@torch.inference_mode()
def compare(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    copy_in_order(ours, theirs.eval())
    torch.testing.assert_close(ours.eval()(x), theirs(x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stride", ASPP_RATES)
def test_deeplabv3_head_equals_torchvision(stride: int) -> None:
    compare(
        DeepLabV3Head(2048, 19, ASPP_RATES[stride]),
        DeepLabHead(2048, 19, ASPP_RATES[stride]),
        torch.randn(2, 2048, 9, 7),
    )


def test_fcn_head_equals_torchvision() -> None:
    compare(FCNHead(2048, 19), TorchvisionFCNHead(2048, 19), torch.randn(2, 2048, 9, 7))


def test_the_authors_dropouts_and_biases() -> None:
    head = DeepLabV3Head(2048, 19)
    drops = [(type(m), m.p) for m in head.modules() if isinstance(m, (nn.Dropout, nn.Dropout2d))]
    assert drops == [(nn.Dropout2d, 0.5), (nn.Dropout, 0.1)]
    assert [m.p for m in FCNHead(2048, 19) if isinstance(m, nn.Dropout)] == [0.1]
    for network_head in (head, FCNHead(2048, 19)):
        convs = [m for m in network_head.modules() if isinstance(m, nn.Conv2d)]
        assert [c.bias is not None for c in convs] == [False] * (len(convs) - 1) + [True]


@pytest.mark.slow
def test_head_parameter_counts() -> None:
    """As counted on PyTorch-Encoding's and torchvision's heads at 19 classes."""
    with torch.device("meta"):
        deeplab, fcn = DeepLabV3(num_classes=19), FCN(num_classes=19)
    assert count(deeplab.head) == 16_130_323
    assert count(fcn.head) == 9_447_955
    assert count(fcn.aux_head) == 2_364_691
    assert count(deeplab.encoder) + count(deeplab.head) == pytest.approx(41.56e6, abs=5e3)
    with torch.device("meta"):
        deeplab, fcn = MMSegDeepLabV3(num_classes=19), MMSegFCN(num_classes=19)
    assert count(deeplab.head) == pytest.approx(42.221e6, abs=1e3)
    assert count(fcn.head) == pytest.approx(23.606e6, abs=1e3)
    assert count(fcn.aux_head) == 2_364_691


def test_mmsegs_dropouts_and_classifier() -> None:
    for head in (MMSegASPPHead(256, 19), MMSegAuxHead(256, 19)):
        assert [(type(m), m.p) for m in head.modules() if isinstance(m, (nn.Dropout, nn.Dropout2d))] == [
            (nn.Dropout2d, 0.1)
        ]
        classifier = head.classify[1]
        assert 0.008 < float(classifier.weight.std()) < 0.012 and not classifier.bias.any()


@pytest.mark.slow
@pytest.mark.parametrize("network_class", HEADED)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(97, 65), (1, 1), (64, 96)])
def test_any_size_in_logits_at_the_network_stride_out(network_class, output_stride: int, size: tuple[int, int]) -> None:
    network = network_class(TINY, 5, output_stride=output_stride)
    x = torch.randn(2, 3, *size)
    cells = tuple(-(-side // output_stride) for side in size)
    outputs = network.eval()(x)
    assert outputs.keys() == {"out"} and outputs["out"].shape == (2, 5, *cells)


def test_auxiliary_logits_only_while_training() -> None:
    x = torch.randn(2, 3, 64, 64)
    assert DeepLabV3(TINY, 5).train()(x)["aux"].shape == (2, 5, 8, 8)
    assert MMSegFCN(TINY, 5).train()(x)["aux"].shape == (2, 5, 8, 8)
    assert "aux" not in DeepLabV3(TINY, 5, aux=False).train()(x)


@pytest.mark.parametrize("network_class", HEADED)
def test_config_is_plain_and_rebuilds_the_network(network_class) -> None:
    network = network_class(TINY, 5, output_stride=16, dilation_convention="mmseg", encoder_args={"radix": 1})
    again = build_network(network.config)
    assert type(again) is network_class and again.config == network.config
    again.load_state_dict(network.state_dict())
    x = torch.randn(1, 3, 33, 33)
    assert torch.equal(network.eval()(x)["out"], again.eval()(x)["out"])


def test_upsampling_and_rates_are_arguments() -> None:
    assert [cls(TINY, 2).align_corners for cls in HEADED] == [True, True, False, False]
    network = build_network(DeepLabV3(TINY, 2, output_stride=16, align_corners=False, aspp_rates=(12, 24, 36)).config)
    assert not network.align_corners
    assert [conv[0].dilation[0] for conv in network.head.aspp.convs[:4]] == [1, 12, 24, 36]


def test_a_config_cannot_name_other_classes_or_arguments() -> None:
    with pytest.raises(InputError, match=r"'os\.system' is not one of segkit\.models\.segmentation\.FCN"):
        build_network({"class_path": "os.system", "init_args": {}})
    with pytest.raises(InputError, match="depth"):
        build_network({"class_path": "segkit.models.segmentation.FCN", "init_args": {"depth": 3}})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_a_head_of_another_signature_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneArgument(nn.Conv2d):
        def __init__(self, in_channels: int) -> None:
            super().__init__(in_channels, 2, 1)

    monkeypatch.setattr(FCN, "head_class", OneArgument)
    with pytest.raises(InputError, match=r"OneArgument: .*constructed with \(in_channels, num_classes\)"):
        FCN(TINY, 2)
