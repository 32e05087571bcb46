"""ResNeSt against the authors' release (`resnest` wheel), and against timm for the conventions that differ from it."""

import pytest
import timm
import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.models.resnest import RESNEST_VARIANTS, ResNeSt

resnest = pytest.importorskip("resnest.torch.resnet", reason="the authors' wheel is not installed")

# Every (radix, cardinality, width, avd_first) of the paper's networks.
KINDS = sorted(
    {(v["radix"], v["cardinality"], v["width"], v.get("avd_first", False)) for v in RESNEST_VARIANTS.values()}
)
LAYERS = (2, 2, 2, 2)  # a first block and one behind it in each stage
AUTHORS_DILATION = {8: {"dilated": True}, 16: {"dilation": 2}, 32: {}}

# Parameters with the 1000-class classifier: counted on the authors' classes and, for -14 and -26, on timm's.
PARAMETERS = {
    "resnest14": 10_611_688,
    "resnest26": 17_069_448,
    "resnest50": 27_483_240,
    "resnest101": 48_275_016,
    "resnest200": 70_201_544,
    "resnest269": 110_929_480,
    "resnest50_fast_1s1x64d": 26_217_896,
    "resnest50_fast_2s1x64d": 27_483_240,
    "resnest50_fast_4s1x64d": 31_912_712,
    "resnest50_fast_1s2x40d": 25_946_680,
    "resnest50_fast_2s2x40d": 26_943_792,
    "resnest50_fast_4s2x40d": 30_417_592,
    "resnest50_fast_1s4x24d": 25_677_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_features_equal_the_authors_bit_for_bit(kind: tuple, output_stride: int) -> None:
    reference = authors_network(LAYERS, kind, output_stride)
    radix, cardinality, width, avd_first = kind
    ours = ResNeSt(LAYERS, radix, cardinality, width, 32, avd_first=avd_first, output_stride=output_stride)
    randomise(reference)
    ours.load_state_dict(reference.state_dict())  # as it is, classifier and all
    compare(ours, reference, authors_features)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.slow
def test_radix_zero_and_training_statistics_equal_the_authors(train: bool) -> None:
    for kind in [(0, 1, 64, False), (2, 2, 40, True)]:
        reference = authors_network((1, 2, 1, 1), kind, 8)
        ours = ResNeSt((1, 2, 1, 1), *kind[:3], 32, avd_first=kind[3], num_classes=1000)
        randomise(reference)
        ours.load_state_dict(reference.state_dict())
        ours.train(train), reference.train(train)
        x = torch.randn(2, 3, 65, 97)
        assert torch.equal(ours.classify(x), reference(x))
        assert all(torch.equal(ours.state_dict()[k], v) for k, v in reference.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize(
    "ours, theirs",
    [("resnest14", "resnest14d"), ("resnest26", "resnest26d"), ("resnest50_fast_4s2x40d", "resnest50d_4s2x40d")],
)
def test_timm_convention_equals_timm(ours: str, theirs: str, output_stride: int) -> None:
    reference = timm.create_model(theirs, features_only=True, output_stride=output_stride)
    network = ResNeSt(**RESNEST_VARIANTS[ours], output_stride=output_stride, dilation_convention="timm")
    randomise(reference)
    network.load_state_dict(reference.state_dict())
    compare(network, reference, lambda net, x: net(x))


def test_timm_becomes_the_authors_by_two_repairs() -> None:
    """The pool put back and the shortcut's pool taken out: bit-equal, without the authors' wheel."""
    reference = timm.create_model("resnest14d", features_only=True, output_stride=8)
    randomise(reference)
    ours = ResNeSt(**RESNEST_VARIANTS["resnest14"])
    ours.load_state_dict(reference.state_dict())
    for stage in ("layer3", "layer4"):
        block = reference[stage][0]
        block.avd_last = nn.AvgPool2d(3, 1, 1)
        block.downsample[0] = nn.Identity()
    compare(ours, reference, lambda net, x: net(x))


@pytest.mark.slow
@pytest.mark.parametrize("output_stride", [8, 16])
def test_mmseg_convention_is_the_authors_without_the_dilated_pools(output_stride: int) -> None:
    """mmseg 1.2.2 drops the average pool of dilated first blocks and leaves the shortcut alone."""
    reference = authors_network((1, 2, 2, 1), (2, 1, 64, False), output_stride)
    for stage in (reference.layer3, reference.layer4):
        if stage[0].avd_layer.stride == 1:
            stage[0].avd_layer = nn.Identity()
    ours = ResNeSt((1, 2, 2, 1), output_stride=output_stride, dilation_convention="mmseg")
    randomise(reference)
    ours.load_state_dict(reference.state_dict())
    compare(ours, reference, authors_features)


@pytest.mark.slow
def test_conventions_differ_when_dilated_only() -> None:
    x = torch.randn(1, 3, 97, 65)
    state = ResNeSt((1, 1, 1, 1)).state_dict()
    last = {}
    for convention in ("authors", "timm", "mmseg"):
        for output_stride in (8, 32):
            net = ResNeSt((1, 1, 1, 1), output_stride=output_stride, dilation_convention=convention).eval()
            net.load_state_dict(state)
            last[convention, output_stride] = net(x)[-1]
    for other in ("timm", "mmseg"):
        assert torch.equal(last["authors", 32], last[other, 32])
        assert not torch.allclose(last["authors", 8], last[other, 8], rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        ours = ResNeSt(**RESNEST_VARIANTS[name], num_classes=1000)
        variant = RESNEST_VARIANTS[name]
        kind = (variant["radix"], variant["cardinality"], variant["width"], variant.get("avd_first", False))
        reference = authors_network(variant["layers"], kind, 32, variant["stem_width"])
    assert count(ours) == PARAMETERS[name] == count(reference)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in reference.state_dict().items()}


def test_tiny_member_is_small() -> None:
    assert 200_000 < count(ResNeSt(**RESNEST_VARIANTS["resnest14_tiny"])) < 500_000


@pytest.mark.parametrize("size", [(1, 1), (97, 65), (64, 32)])
@pytest.mark.parametrize(
    "output_stride, strides", [(8, (1, 2, 4, 8, 8, 8)), (16, (1, 2, 4, 8, 16, 16)), (32, (1, 2, 4, 8, 16, 32))]
)
def test_feature_sizes_and_channels(size: tuple[int, int], output_stride: int, strides: tuple[int, ...]) -> None:
    net = ResNeSt(**RESNEST_VARIANTS["resnest14_tiny"], output_stride=output_stride).eval()
    features = net(torch.randn(1, 3, *size))
    expected = [(1, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(net.channels, strides, strict=True)]
    assert [tuple(f.shape) for f in features] == expected


def test_options() -> None:
    tiny = RESNEST_VARIANTS["resnest14_tiny"]
    zero = ResNeSt(**tiny, zero_init_last_gamma=True)
    assert all(block.bn3.weight.abs().sum() == 0 for stage in (zero.layer1, zero.layer4) for block in stage)
    dropped = ResNeSt(**tiny, dropblock_prob=0.5)
    assert dropped.state_dict().keys() == zero.state_dict().keys()
    x = torch.randn(2, 3, 64, 64)
    assert not torch.equal(dropped(x)[-1], dropped(x)[-1])  # random while training
    assert torch.equal(dropped(x)[2], dropped(x)[2])  # stages 3 and 4 only
    assert torch.equal(dropped.eval()(x)[-1], dropped(x)[-1])
    assert ResNeSt(**tiny, in_channels=5)(torch.randn(2, 5, 32, 32))[-1].shape[1] == 4 * 96
    final = ResNeSt(**tiny, num_classes=7, final_drop=0.9)
    assert final.classify(x).shape == (2, 7)
    with pytest.raises(InputError, match="num_classes=1000"):
        zero.classify(x)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"output_stride": 4}, "8, 16 or 32"),
        ({"dilation_convention": "smp"}, "authors, timm, mmseg"),
        ({"layers": (3, 4, 6)}, "four positive"),
        ({"radix": -1}, "radix"),
        ({"planes": (64, 128)}, "four positive"),
    ],
)
def test_wrong_arguments(wrong: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ResNeSt(**({"layers": (1, 1, 1, 1)} | wrong))


def authors_network(layers: tuple[int, ...], kind: tuple, output_stride: int, stem_width: int = 32) -> nn.Module:
    radix, cardinality, width, avd_first = kind
    return resnest.ResNet(
        resnest.Bottleneck,
        list(layers),
        radix=radix,
        groups=cardinality,
        bottleneck_width=width,
        deep_stem=True,
        stem_width=stem_width,
        avg_down=True,
        avd=True,
        avd_first=avd_first,
        **AUTHORS_DILATION[output_stride],
    )


def authors_features(net: nn.Module, x: Tensor) -> list[Tensor]:
    x = net.relu(net.bn1(net.conv1(x)))
    features = [x.clone()]
    x = net.maxpool(x)
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = stage(x)
        features.append(x)
    return features


def randomise(net: nn.Module) -> None:
    """Norms as after training: with the initial ones a missing or extra norm could go unseen."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.1)
            nn.init.normal_(module.bias, 0.0, 0.1)
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)


@torch.inference_mode()
def compare(ours: nn.Module, reference: nn.Module, features_of) -> None:
    x = torch.randn(2, 3, 97, 65)
    expected = features_of(reference.eval(), x)
    actual = ours.eval()(x)[1:]
    assert len(actual) == len(expected) == 5
    for got, want in zip(actual, expected, strict=True):
        assert torch.equal(got, want)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())
