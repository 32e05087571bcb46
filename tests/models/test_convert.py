"""Other toolkits' networks, read from their checkpoints, give their logits: against the toolkits themselves.

PyTorch-Encoding cannot be installed: its names are restated here over our network, by hand from its files.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import Tensor, nn

from segkit.models.encoders import build_encoder
from segkit.models.segmentation import FCN, DeepLabV3, SegmentationModel
from segkit.models.toolkits.inspection import Choices
from segkit.models.weights import load_encoder_weights, read_checkpoint
from segkit.ops.upsample import upsample

TINY = "resnest14_tiny"


@pytest.fixture(scope="module")
def smp_network() -> nn.Module:
    return randomise(smp.DeepLabV3("tu-resnest14d", encoder_weights=None, encoder_output_stride=8, classes=4))


@pytest.fixture(scope="module")
def tv_deeplab() -> nn.Module:
    models = torchvision.models.segmentation
    return randomise(models.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=4, aux_loss=True))


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["encoder.model.", "encoder.", "module.encoder.model.", "model.encoder.model."])
def test_smp_deeplabv3_gives_its_logits(tmp_path: Path, smp_network: nn.Module, prefix: str) -> None:
    """New names, those up to smp 0.4, and both behind the prefix of a wrapper."""
    wrapper = prefix.partition("encoder.")[0]
    state = {wrapper + name: value for name, value in smp_network.state_dict().items()}
    if prefix == "encoder.":
        state = {old_smp_name(name): value for name, value in state.items()}
    network = read(tmp_path, {"state_dict": state})
    assert network.align_corners and network.aux_head is None
    assert network.config["init_args"]["dilation_convention"] == "timm"
    x = torch.randn(2, 3, 64, 96)  # smp takes multiples of 8 only
    close(full_size(network, x), smp_network(x))


@pytest.mark.slow
def test_smp_at_stride_16_keeps_its_rates(tmp_path: Path) -> None:
    theirs = randomise(smp.DeepLabV3("tu-resnet26", encoder_weights=None, encoder_output_stride=16, classes=3))
    network = read(tmp_path, theirs.state_dict(), Choices(output_stride=16))
    assert network.config["init_args"]["encoder"] == "resnet26"
    x = torch.randn(1, 3, 96, 64)
    close(full_size(network, x), theirs(x))


@pytest.mark.slow
def test_torchvision_deeplabv3_gives_its_logits(tmp_path: Path, tv_deeplab: nn.Module) -> None:
    network = read(tmp_path, {"model": tv_deeplab.state_dict(), "epoch": 3})
    assert isinstance(network, DeepLabV3) and not network.align_corners
    x = torch.randn(2, 3, 97, 65)
    theirs = tv_deeplab(x)
    close(full_size(network, x), theirs["out"])
    close(upsample(network.aux_head(network.encoder(x)[-2]), (97, 65), False), theirs["aux"])


@pytest.mark.slow
def test_torchvision_fcn_gives_its_logits(tmp_path: Path) -> None:
    theirs = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=4)
    randomise(theirs)
    network = read(tmp_path, theirs.state_dict())
    assert isinstance(network, FCN) and network.aux_head is None
    x = torch.randn(1, 3, 65, 97)
    close(full_size(network, x), theirs(x)["out"])


@pytest.mark.slow
@pytest.mark.parametrize("aux", [True, False])
@pytest.mark.parametrize("network_class", [DeepLabV3, FCN])
def test_pytorch_encoding_round_trip(tmp_path: Path, network_class, aux: bool) -> None:
    ours = randomise(network_class(TINY, 5, aux=aux))
    rename = deeplab_name if network_class is DeepLabV3 else fcn_name
    state = {f"module.{rename(name)}": value for name, value in ours.state_dict().items()}
    assert all(name.startswith(("module.pretrained.", "module.head.", "module.auxlayer.")) for name in state)
    network = read(tmp_path, {"epoch": 120, "state_dict": state, "optimizer": {}, "best_pred": 0.5})
    assert network.config == ours.config  # the authors' convention, align_corners and all
    assert_same_weights(network, ours)
    with torch.inference_mode():
        x = torch.randn(1, 3, 33, 65)
        assert torch.equal(network(x)["out"], ours(x)["out"])


@pytest.mark.slow
def test_pytorch_encoding_comparator_over_resnet50s(tmp_path: Path) -> None:
    """Its resnet50s is timm's: deep stem of 64, 64 and 128 channels, strided shortcuts."""
    ours = FCN("resnet50s", 3)
    state = {fcn_name(name.replace("encoder.encoder.model.", "encoder.")): v for name, v in ours.state_dict().items()}
    network = read(tmp_path, state)
    assert network.config["init_args"]["encoder"] == "resnet50s"
    assert_same_weights(network, ours)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnest14d", "resnet18", "convnext_atto"])
def test_encoder_files_of_timm(tmp_path: Path, name: str) -> None:
    theirs = randomise(timm.create_model(name))
    torch.save(theirs.state_dict(), tmp_path / "imagenet.pth")
    encoder = build_encoder({"resnest14d": "resnest14"}.get(name, name), output_stride=32)
    load_encoder_weights(encoder, tmp_path / "imagenet.pth")
    x = torch.randn(1, 3, 64, 64)
    reference = timm.create_model(name, features_only=True).eval()
    kept = theirs.state_dict() | {key.replace(".", "_", 1): value for key, value in theirs.state_dict().items()}
    reference.load_state_dict({key: kept[key] for key in reference.state_dict()})  # "stages_0." there, "stages.0." here
    with torch.inference_mode():
        assert torch.equal(encoder.eval()(x)[-1], reference(x)[-1])


@pytest.mark.slow
def test_encoder_of_whole_checkpoints(tmp_path: Path, smp_network: nn.Module, tv_deeplab: nn.Module) -> None:
    for theirs, name in ((smp_network, "resnest14"), (tv_deeplab, "resnet50")):
        torch.save(theirs.state_dict(), tmp_path / "whole.pth")
        encoder = build_encoder(name)
        load_encoder_weights(encoder, tmp_path / "whole.pth")
        network = read_checkpoint(tmp_path / "whole.pth").build_network()
        assert_same_weights(encoder, network.encoder)


def read(folder: Path, data: dict, choices: Choices = Choices()) -> SegmentationModel:  # noqa: B008  (frozen)
    torch.save(data, folder / "theirs.pth")
    return read_checkpoint(folder / "theirs.pth", choices).build_network()


def deeplab_name(name: str) -> str:
    """encoding/models/sseg/deeplab.py: branches b0 to b4, the last under `gap`."""
    for branch in range(4):
        name = name.replace(f"head.aspp.convs.{branch}.", f"head.aspp.b{branch}.")
    return encoding_name(name.replace("head.aspp.convs.4.", "head.aspp.b4.gap."))


def fcn_name(name: str) -> str:
    """encoding/models/sseg/fcn.py."""
    return encoding_name(f"head.conv5.{name.removeprefix('head.')}" if name.startswith("head.") else name)


def encoding_name(name: str) -> str:
    if name.startswith("aux_head."):
        return f"auxlayer.conv5.{name.removeprefix('aux_head.')}"
    return f"pretrained.{name.removeprefix('encoder.')}" if name.startswith("encoder.") else name


def old_smp_name(name: str) -> str:
    """smp up to 0.4: no `model.` in the encoder, and the decoder's parts by number."""
    name = name.replace("encoder.model.", "encoder.").replace("decoder.aspp.", "decoder.0.")
    return name.replace("decoder.conv.", "decoder.1.").replace("decoder.bn.", "decoder.2.")


def randomise(network: nn.Module) -> nn.Module:
    """Norms as after training: with the initial ones a missing or extra norm could go unseen."""
    torch.manual_seed(0)
    for module in norms(network):
        nn.init.normal_(module.weight, 1.0, 0.1)
        nn.init.normal_(module.bias, 0.0, 0.1)
        module.running_mean.normal_(0.0, 0.1)
        module.running_var.uniform_(0.5, 1.5)
    return network.eval().requires_grad_(False)


def norms(network: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))


def full_size(network: SegmentationModel, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return upsample(network(x)["out"], (x.shape[2], x.shape[3]), network.align_corners)


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


def assert_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
