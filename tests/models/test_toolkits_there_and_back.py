"""smp's decoders and EfficientNet-PyTorch are read, and networks given back to smp, timm and torchvision, by name.

The references are the toolkits themselves: their networks load what is written strictly, and give equal values.
"""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from segkit.cli import main
from segkit.errors import InputError
from segkit.models.checkpoint import Checkpoint
from segkit.models.classifier import Classifier
from segkit.models.decoders import Decoder, EncoderDecoder
from segkit.models.encoders import build_encoder
from segkit.models.export.model_file import write_given_back
from segkit.models.segmentation import FCN, DeepLabV3, SegmentationModel
from segkit.models.toolkits.inspection import Choices
from segkit.models.toolkits.timm_names import timm_encoder_name
from segkit.models.weight_files import write_model_file
from segkit.models.weights import inspect, load_encoder_weights, read_checkpoint
from segkit.ops.meta import ShapesOnly
from segkit.ops.upsample import upsample
from tests.models.test_convert import randomise

SMP = {name.lower(): kind for name, kind in vars(smp).items() if isinstance(kind, type)}
LITE0 = "tf_efficientnet_lite0"
VIT = "tu-vit_tiny_patch16_224"
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    *((name, "tu-resnet18", {}) for name in get_args(Decoder) if name != "dpt"),
    (
        "dpt",
        VIT,
        {"dynamic_img_size": True, "decoder_fusion_channels": 16, "decoder_intermediate_channels": [8, 16, 24, 32]},
    ),
    ("unet", "resnet18", {"decoder_attention_type": "scse", "decoder_use_norm": False}),
    ("unet", "tu-resnest14d", {"encoder_depth": 4, "decoder_channels": (32, 24, 16, 8)}),
    ("fpn", "tu-resnet18", {"decoder_merge_policy": "cat", "decoder_pyramid_channels": 32}),
    ("pspnet", "resnet18", {"psp_out_channels": 64}),
    ("pspnet", "tu-resnet18", {"encoder_depth": 4, "upsampling": 16}),
    ("deeplabv3", "tu-resnest14d", {"decoder_aspp_separable": True, "decoder_channels": 32}),
    ("upernet", "tu-resnest14d", {"decoder_channels": 16, "encoder_depth": 4}),
]  # fmt: skip
QUICK = ("fpn",)


@pytest.mark.parametrize(
    ("decoder", "encoder", "options"),
    [pytest.param(*v, marks=() if v[0] in QUICK and not v[2] else pytest.mark.slow) for v in VARIANTS],
)
def test_smp_is_read_and_given_back(decoder: str, encoder: str, options: dict[str, Any], tmp_path: Path) -> None:
    theirs = randomise(SMP[decoder](encoder, encoder_weights=None, classes=4, **options))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    network = built(tmp_path / "theirs.pth")
    assert network.config["init_args"]["decoder"] == decoder
    image = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        expected = theirs(image)
        close(upsample(network(image)["out"], (128, 160), network.align_corners), expected)

    line = given_back(network, tmp_path, "smp")
    again = eval(line, {"smp": smp}).eval()
    again.load_state_dict(load_file(tmp_path / "back.safetensors"))
    with torch.no_grad():
        close(again(image), expected)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Classifier("resnest14", 7), "timm.create_model(model_name='resnest14d', num_classes=7)"),
        (lambda: FCN("resnet10t", 4), "timm.create_model(model_name='resnet10t', features_only=True, output_stride=8)"),
        pytest.param(
            lambda: EncoderDecoder("tf_efficientnet_lite0", 4, "fpn"),
            "timm.create_model(model_name='tf_efficientnet_lite0', features_only=True)",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["classifier", "dilated", "efficientnet"],
)
@pytest.mark.slow
def test_timm_takes_encoder_or_classifier(make: Any, line: str, tmp_path: Path) -> None:
    network = randomise(make())
    assert given_back(network, tmp_path, "timm") == line
    theirs = eval(line, {"timm": timm}).eval()
    theirs.load_state_dict(load_file(tmp_path / "back.safetensors"))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        whole = isinstance(network, Classifier)
        close(network(image) if whole else network.encoder(image)[-1], theirs(image) if whole else theirs(image)[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [lambda: FCN("resnet50", 4, align_corners=False), lambda: DeepLabV3("resnet50", 4, align_corners=False, aux=False)],
)
def test_torchvision_takes_its_networks(make: Any, tmp_path: Path) -> None:
    network: Any = randomise(make())
    theirs = eval(given_back(network, tmp_path, "torchvision"), {"torchvision": torchvision}).eval()
    theirs.load_state_dict(load_file(tmp_path / "back.safetensors"))
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        close(upsample(network(image)["out"], (65, 97), False), theirs(image)["out"])


@pytest.mark.parametrize(
    ("make", "toolkit", "words"),
    [
        (lambda: FCN("resnest14", 4), "timm", "dilated to output stride 8 as authors does"),
        (lambda: FCN("resnest14_tiny", 4), "timm", "timm has no resnest14_tiny"),
        (lambda: FCN("resnet10t", 4), "smp", "smp has no FCN"),
        (lambda: DeepLabV3("resnet10t", 4, align_corners=False), "smp", "upsamples logits with align_corners"),
        (lambda: EncoderDecoder("resnet10t", 4, "pspnet", output_stride=16), "smp", "output stride 32 only"),
        (lambda: FCN("resnet10t", 4), "torchvision", "this is another network"),
        (lambda: Classifier("tf_efficientnet_lite0", 4), "timm", "differs in .* parameters"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_given_back_is_said_in_one_line(make: Any, toolkit: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as error:
        given_back(make(), tmp_path, toolkit)
    assert "\n" not in str(error.value) and not (tmp_path / "back.safetensors").exists()


@pytest.mark.slow
def test_deeplabv3_of_segkit_is_smps(tmp_path: Path) -> None:
    network: Any = randomise(DeepLabV3("resnet26", 4, output_stride=16))
    theirs = eval(given_back(network, tmp_path, "smp"), {"smp": smp}).eval()
    theirs.load_state_dict(load_file(tmp_path / "back.safetensors"))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        close(upsample(network(image)["out"], (64, 96), True), theirs(image))


@pytest.fixture(scope="module")
def lite0() -> nn.Module:
    return randomise(timm.create_model(LITE0, num_classes=3))


@pytest.mark.slow
def test_efficientnet_pytorch_is_timms_to_the_bit(
    lite0: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The names of EfficientNet-PyTorch are restated here from its model.py, in timm's order."""
    named = {_numbered(name, lite0): tensor for name, tensor in lite0.state_dict().items()}
    stem = named["_conv_stem.weight"]
    named["_conv_stem.weight"] = stem.to(memory_format=torch.channels_last)  # as in the package's file
    file, output = tmp_path / "lite0.pth", tmp_path / "lite0.safetensors"
    torch.save(named, file)
    assert main(["weights", "convert", str(file), "-o", str(output)]) == 0
    assert re.search(r"EfficientNet-PyTorch.*tf_efficientnet_lite0.*matched +296", capsys.readouterr().out, re.DOTALL)
    theirs = timm.create_model(LITE0, num_classes=3).eval()
    theirs.load_state_dict(load_file(output))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(theirs(image), lite0(image))
    for path in (file, output):
        encoder = build_encoder(LITE0, 32).eval()
        left_out = load_encoder_weights(encoder, path)
        assert {"conv_head.weight", "classifier.weight"} <= set(left_out)
        with torch.no_grad():
            assert torch.equal(encoder(image)[-1], lite0.blocks(lite0.bn1(lite0.conv_stem(image))))
    assert inspect(output, Choices(encoder=LITE0)).config["name"] == LITE0


def test_smps_preprocessing_is_the_encoders(tmp_path: Path) -> None:
    theirs = smp.FPN(f"tu-{LITE0}", encoder_weights=None, classes=2)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    expected = smp.encoders.get_preprocessing_params(f"tu-{LITE0}", pretrained=None)
    found = inspect(tmp_path / "theirs.pth", Choices(encoder=f"tu-{LITE0}")).normalization
    assert found == {"mean": list(expected["mean"]), "std": list(expected["std"])} and found["mean"] == [0.5] * 3


def test_what_shapes_leave_open_is_asked_for(lite0: nn.Module, tmp_path: Path) -> None:
    torch.save(lite0.state_dict(), tmp_path / "timm.pth")
    with pytest.raises(
        InputError, match=r"pad images differently; name the one it is: --encoder tf_efficientnet_lite0"
    ):
        inspect(tmp_path / "timm.pth")
    with pytest.raises(InputError, match="did you mean tf_efficientnet_lite"):
        inspect(tmp_path / "timm.pth", Choices(encoder="tf_efficientnet_lite"))
    unnamed = {f"{part}.a.weight": torch.zeros(1) for part in ("encoder.stem_0", "decoder.p5", "segmentation_head.0")}
    torch.save(unnamed, tmp_path / "unnamed.pth")
    with pytest.raises(InputError, match=r"cannot be recognised from its parameters \(stem_0.*--encoder convnext_tiny"):
        inspect(tmp_path / "unnamed.pth")
    torch.save({**unnamed, "encoder._conv_stem.weight": torch.zeros(1)}, tmp_path / "own.pth")
    with pytest.raises(InputError, match="smp's own EfficientNet, whose features differ"):
        inspect(tmp_path / "own.pth")


@pytest.mark.slow
def test_every_efficientnet_is_recognised_by_its_shapes() -> None:
    for kind in [*(f"lite{i}" for i in range(5)), *(f"b{i}" for i in range(8))]:
        name = f"tf_efficientnet_{kind}"
        with ShapesOnly():
            network = timm.create_model(name)
        shapes = {_numbered(key, network): tuple(value.shape) for key, value in network.state_dict().items()}
        assert timm_encoder_name(shapes) == name


def _numbered(name: str, network: Any) -> str:
    outside = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    if not name.startswith("blocks."):
        layer, _, end = name.partition(".")
        return f"{outside[layer]}.{end}"
    _, stage, block, layer, end = name.split(".", 4)
    number = sum(len(network.blocks[i]) for i in range(int(stage))) + int(block)
    if layer == "se":
        return f"_blocks.{number}._{end.replace('conv_', 'se_', 1)}"
    separable = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    inverted = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    inverted |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    return f"_blocks.{number}.{(separable if stage == '0' else inverted)[layer]}.{end}"


def built(path: Path) -> SegmentationModel:
    checkpoint = read_checkpoint(path)
    network = checkpoint.build_network()
    network.load_state_dict(checkpoint.state_dict)
    return network.eval()


def given_back(network: Any, folder: Path, toolkit: Any) -> str:
    """Write the network as a model file of segkit, and that for the toolkit."""
    known = {"network": network.config, "normalization": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    write_model_file(folder / "ours.safetensors", Checkpoint(known, network.state_dict()))
    ours = folder / "ours.safetensors"
    return write_given_back(folder / "back.safetensors", inspect(ours), ours, toolkit)


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()
