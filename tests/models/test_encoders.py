"""Encoders by name: ours, timm's, and the ones that are refused."""

from collections.abc import Callable

import pytest
import timm
import torch

from segkit.errors import InputError
from segkit.models.encoders import build_encoder
from segkit.models.resnest import ResNeSt
from segkit.models.segmentation import FCN, DeepLabV3, SegmentationModel
from segkit.training.losses import LossConfig
from segkit.training.module import SegmentationModule


def test_resnest_by_name() -> None:
    encoder = build_encoder("resnest50", output_stride=16, dilation_convention="timm", in_channels=4)
    assert isinstance(encoder, ResNeSt)
    assert encoder.output_stride == 16 and encoder.channels == (4, 64, 256, 512, 1024, 2048)


@pytest.mark.slow
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["resnet18", "seresnet50", "skresnet18", "convnext_atto", "tu-resnet18"])
def test_timm_encoders_dilate(name: str, output_stride: int) -> None:
    encoder = build_encoder(name, output_stride).eval()
    for size in [(97, 65), (1, 1), (64, 96)]:
        with torch.inference_mode():
            features = encoder(torch.randn(1, 3, *size))
        strides = [min(s, output_stride) for s in (4, 8, 16, 32)]
        cells = [tuple(-(-side // s) for side in size) for s in strides]
        assert [tuple(f.shape[2:]) for f in features[-4:]] == cells
        assert [f.shape[1] for f in features] == list(encoder.channels)


@pytest.mark.parametrize("kind", [FCN, DeepLabV3])
@pytest.mark.parametrize(("name", "output_stride"), [("test_efficientnet", 8), ("mobilenetv3_small_050", 16)])
def test_networks_over_mobile_encoders_see_timms_features(
    kind: type[SegmentationModel], name: str, output_stride: int
) -> None:
    network = kind(name, 5, output_stride=output_stride).eval()
    theirs = timm.create_model(name, features_only=True, output_stride=output_stride).eval()
    weights = {n.removeprefix("encoder.model."): v for n, v in network.encoder.state_dict().items()}
    theirs.load_state_dict(weights)
    image = torch.randn(2, 3, 97, 65)
    with torch.no_grad():
        features, expected = network.encoder(image), theirs(image)
        assert all(torch.equal(*pair) for pair in zip(features[1:], expected, strict=True))
        logits = network(image)["out"]
        assert torch.equal(logits, network.head(expected[-1]))
    assert logits.shape == (2, 5, -(-97 // output_stride), -(-65 // output_stride))


@pytest.mark.slow
def test_a_comparator_trains_by_changing_one_word() -> None:
    outputs = DeepLabV3("skresnet18", 7).train()(torch.randn(2, 3, 65, 65))
    assert outputs["out"].shape == outputs["aux"].shape == (2, 7, 9, 9)


@pytest.mark.parametrize(
    "name, words",
    [
        ("vgg16", "cannot be dilated to output stride 8"),
        ("swin_tiny_patch4_window7_224", "cannot be dilated to output stride 8"),
        ("resnet5", "did you mean resnet50"),
        ("resnest50d", "timm's ResNeSt differs from the paper's"),
        ("tu-resnest101e", "timm's ResNeSt differs from the paper's"),
        ("no such thing", "neither a ResNeSt of segkit nor a timm model"),
    ],
)
def test_refused(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        build_encoder(name, output_stride=8)
    assert "\n" not in str(caught.value)


def test_overrides() -> None:
    encoder = build_encoder("resnest14", overrides={"planes": (8, 16, 32, 64), "stem_width": 8})
    assert encoder.channels == (3, 16, 32, 64, 128, 256)
    with pytest.raises(InputError, match=r"'widht' is no argument of ResNeSt"):
        build_encoder("resnest14", overrides={"widht": 32})
    with pytest.raises(InputError, match="leave them out for a timm encoder"):
        build_encoder("resnet18", overrides={"radix": 2})


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"encoder_args": {"in_channels": 4}}, "'in_channels' is an argument of the network itself"),
        ({"encoder_args": {"output_stride": 32}}, "'output_stride' is an argument of the network itself"),
        ({"encoder_args": {"dilation_convention": "timm"}}, "'dilation_convention' is an argument of the network"),
        ({"encoder_args": {"num_classes": 10}}, "'num_classes' is of the ImageNet classifier"),
        ({"encoder_args": {"final_drop": 0.2}}, "'final_drop' is of the ImageNet classifier"),
        ({"encoder_args": {"avd": False, "avd_first": True}}, "avd_first has no effect without avd"),
        ({"encoder": "resnet18", "dilation_convention": "mmseg"}, "dilation_convention=mmseg has no effect"),
        ({"encoder_args": {"radix": 0}, "pooled_norm": "group"}, "pooled_norm=group has no effect"),
    ],
)
def test_an_argument_of_a_network_that_changes_nothing_is_refused(arguments: dict, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        FCN(**({"encoder": "resnest14_tiny", "num_classes": 2} | arguments))
    assert "\n" not in str(caught.value)


def test_the_convention_that_a_timm_encoder_has_anyway_may_be_named() -> None:
    FCN("resnet18", 2, dilation_convention="timm")


@pytest.mark.parametrize(
    "network, options, words",
    [
        (lambda: FCN("resnest14_tiny", 2, aux=False), {"loss": LossConfig(aux_weight=0.4)}, "aux_weight=0.4 has no"),
        (
            lambda: FCN("resnest14_tiny", 2, aux=False),
            {"loss": LossConfig(cross_entropy=0, dice=1.0, label_smoothing=0.1)},
            "label_smoothing=0.1 has no effect",
        ),
        (lambda: FCN("convnext_atto", 2), {"norm_eval": True}, "norm_eval=true has no effect"),
    ],
)
def test_training_refuses_what_changes_nothing_of_its_network(network: Callable, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        SegmentationModule(network(), **options)
    assert "\n" not in str(caught.value)
