"""`segkit weights inspect | convert` through the front door."""

import re
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file

import segkit
from segkit.cli import main
from segkit.models.encoders import build_encoder
from segkit.models.resnest import RESNEST_VARIANTS, ResNeSt
from segkit.models.segmentation import FCN, DeepLabV3
from segkit.models.weights import load_encoder_weights, read_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of three toolkits and of segkit itself."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    theirs = smp.DeepLabV3("tu-resnest14d", encoder_weights=None, classes=3)
    torch.save({"state_dict": theirs.state_dict()}, folder / "smp.ckpt")
    torch.save(ResNeSt(**RESNEST_VARIANTS["resnest14_tiny"], num_classes=10).state_dict(), folder / "imagenet.pth")
    network = FCN("resnest14_tiny", 3)
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    space = {"class_names": ["road", "tree", "sky"], "palette": [[0, 0, 0]] * 3, "table": [0, 1, 2, *[-1] * 252, 255]}
    parameters = {
        "network": network.config,
        "label_space": space,
        "normalization": {"mean": [0.5] * 3, "std": [0.2] * 3},
    }
    torch.save({"hyper_parameters": parameters, "state_dict": state}, folder / "own.ckpt")
    parameters["network"] = {"class_path": "my.module.Net", "init_args": {}}
    torch.save({"hyper_parameters": parameters, "state_dict": state}, folder / "users.ckpt")
    encoding = {
        name.replace("encoder.", "pretrained.").replace("aux_head.", "auxlayer.conv5."): value
        for name, value in DeepLabV3("resnest14_tiny", 3).state_dict().items()
    }
    torch.save(encoding, folder / "half_encoding.pth")  # the branches keep segkit's names
    return folder


def report(output: str) -> dict[str, str]:
    """First word(s) -> the rest, of the lines that begin with a word."""
    rows = (re.split(r" {2,}", line, maxsplit=1) for line in output.splitlines() if line and line[0] != " ")
    return {name: "".join(rest).strip() for name, *rest in rows}


@pytest.mark.slow
def test_inspect_another_toolkits_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "inspect", str(folder / "smp.ckpt")]) == 0
    output = capsys.readouterr().out
    rows = report(output)
    assert (
        rows["toolkit"] == "smp"
        and rows["network"] == "EncoderDecoder deeplabv3, no auxiliary head"
        and rows["encoder"] == "resnest14"
    )
    assert rows["classes"] == "3" and rows["align_corners"] == "True"
    assert rows["dilation"] == "timm convention (implied: smp dilates this way)"
    assert rows["output stride"] == "8 (not in the file: --output_stride)"
    assert (rows["matched"], rows["renamed"]) == ("194", "194 of these")
    assert rows["missing"] == rows["unexpected"] == rows["clashing"] == "0"
    words = " ".join(output.split())
    assert "encoder.model -> encoder (150)" in words and "segmentation_head -> head.segmentation_head (2)" in words


def test_inspect_an_encoder_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "inspect", str(folder / "imagenet.pth")]) == 0
    rows = report(capsys.readouterr().out)
    assert rows["encoder"] == "resnest14_tiny" and rows["dropped"] == "2 (ImageNet classifier, stages left out)"
    assert rows["dilation"].startswith("none implied") and rows["missing"] == "0" and rows["renamed"] == "0"


def test_inspect_and_convert_segkits_own(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "own.safetensors"
    assert main(["weights", "convert", str(folder / "own.ckpt"), "-o", str(output)]) == 0
    assert report(capsys.readouterr().out)["toolkit"] == "segkit (checkpoint of `segkit fit`)"
    assert main(["weights", "inspect", str(output)]) == 0
    rows = report(capsys.readouterr().out)
    assert rows["toolkit"] == "segkit (model file)" and rows["network"] == "FCN + auxiliary head"
    assert rows["classes"] == "3: road, tree, sky" and rows["normalisation"].startswith("mean [0.5")
    assert rows["written by"] == f"segkit {segkit.__version__}"


@pytest.mark.slow
def test_convert_a_network(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "model.safetensors"
    arguments = ["weights", "convert", str(folder / "smp.ckpt"), "-o", str(output)]
    assert main(arguments) == 0
    assert report(capsys.readouterr().out)["written"].startswith(str(output))
    direct, converted = read_checkpoint(folder / "smp.ckpt"), read_checkpoint(output)
    assert converted.network == direct.network and converted.normalization == direct.normalization
    assert converted.card["source"]["toolkit"] == "smp" and len(converted.card["source"]["sha256"]) == 64
    image = np.random.default_rng(0).integers(0, 256, (49, 65, 3), np.uint8)
    labels = [segkit.load(path, "cpu").predict(image) for path in (folder / "smp.ckpt", output)]
    assert np.array_equal(*labels) and labels[0].shape == (49, 65)
    before = output.read_bytes()
    assert main(arguments) == 2  # not written over silently
    assert "exists already" in capsys.readouterr().err and output.read_bytes() == before
    assert main([*arguments, "--overwrite", "--output_stride", "16", "--dilation_convention", "authors"]) == 0
    assert report(capsys.readouterr().out)["dilation"] == "authors convention (given; smp implies timm)"
    assert read_checkpoint(output).network["init_args"]["output_stride"] == 16


def test_convert_an_encoder(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "encoder.safetensors"
    assert main(["weights", "convert", str(folder / "imagenet.pth"), "-o", str(output)]) == 0
    assert load_file(output).keys() == build_encoder("resnest14_tiny").state_dict().keys()
    encoder = build_encoder("resnest14_tiny")
    load_encoder_weights(encoder, output)
    source = torch.load(folder / "imagenet.pth", weights_only=True)
    assert all(torch.equal(value, source[name]) for name, value in encoder.state_dict().items())


@pytest.mark.slow
def test_what_does_not_match_is_listed_and_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(folder / "smp.ckpt", weights_only=True)["state_dict"]
    broken = {name: value for name, value in state.items() if "layer4" not in name or "conv1" in name}
    torch.save(broken | {"extra": torch.ones(1)}, tmp_path / "broken.pth")
    arguments = ["weights", "inspect", str(tmp_path / "broken.pth"), "--encoder", "resnest14"]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert report(captured.out)["missing"] == "27" and "and 17 more (--all)" in captured.out
    assert captured.err.count("\n") == 1 and "27 missing (first: encoder.layer4.0.bn1.weight)" in captured.err
    assert main([*arguments, "--all"]) == 2 and "more (--all)" not in capsys.readouterr().out
    assert main([*arguments, "--allow_unmatched", "encoder.layer4.*", "extra"]) == 0
    convert = ["weights", "convert", *arguments[2:], "-o", str(tmp_path / "model.safetensors")]
    assert main(convert) == 2 and not (tmp_path / "model.safetensors").exists()
    assert main([*convert, "--allow_unmatched", "*"]) == 0
    assert read_checkpoint(tmp_path / "model.safetensors").build_network().num_classes == 3


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["inspect", "absent.pth"], "absent.pth: no such file"),
        (["inspect"], "the following arguments are required: file; see `segkit weights inspect --help`"),
        (["look", "x.pth"], "invalid choice: 'look'"),
        (["convert", "own.ckpt", "-o", "model.pt"], "a name that ends in .safetensors"),
        (["convert", "own.ckpt", "-o", "."], "a name that ends in .safetensors"),
        (["inspect", "own.ckpt", "--output_stride", "4"], "invalid choice: 4"),
        (["inspect", "users.ckpt"], "users.ckpt: network class 'my.module.Net' is not one of"),
        (["inspect", "users.ckpt"], "--network my.module.Net"),
        (["inspect", "own.ckpt", "--network", "torchvision.models.segmentation.fcn_resnet50"], "self.net = FUNCTION"),
        (["inspect", "half_encoding.pth"], "PyTorch-Encoding with a head that segkit does not have (head.aspp.convs.0"),
    ],
)
def test_wrong_input_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list, words: str
) -> None:
    monkeypatch.chdir(folder)
    assert main(["weights", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("segkit weights: error: ") and words in error and error.count("\n") == 1
