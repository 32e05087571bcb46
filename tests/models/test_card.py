"""What a segkit file may say, and the one line for what it may not: nothing is built, imported or allocated before."""

import copy
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint

import segkit
from segkit.cli import main
from segkit.errors import InputError
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.checkpoint import Checkpoint
from segkit.models.segmentation import FCN, SegmentationModel
from segkit.models.weight_files import write_model_file
from segkit.models.weights import read_checkpoint

SPACE = LabelSpace(("road", "tree", "sky"), distinct_palette(3), identity_table(3))


@pytest.fixture(scope="module")
def network() -> SegmentationModel:
    torch.manual_seed(0)
    return FCN("resnest14_tiny", 3, encoder_args={"planes": [4, 6, 8, 10], "stem_width": 4})


@pytest.fixture
def data(network: SegmentationModel, tmp_path: Path) -> dict[str, Any]:
    """A checkpoint's content, to be changed and saved."""
    path = write_checkpoint(tmp_path / "good.ckpt", network, SPACE)
    return copy.deepcopy(torch.load(path, weights_only=True))


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        segkit.load(path, "cpu")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


NETWORK = ("network", "init_args")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("network",), 3, "class_path and init_args"),
        (("network", "class_path"), ["FCN"], "is not one of segkit.models.segmentation.FCN"),
        (("network", "class_path"), "segkit.os.system", "'segkit.os.system' is not one of segkit"),
        ((*NETWORK, "num_classes"), "3", "network.num_classes is '3'; needed is int"),
        ((*NETWORK, "num_classes"), True, "network.num_classes is True"),
        ((*NETWORK, "num_classes"), 10**400, "network.num_classes is"),
        ((*NETWORK, "num_classes"), 0, "num_classes is 0; give 1 or more"),
        ((*NETWORK, "num_classes"), 4, "label_space has 3 classes, but the network has 4"),
        ((*NETWORK, "output_stride"), 7, "not 8, 16 or 32"),
        ((*NETWORK, "dilation_convention"), "mine", "one of authors, timm, mmseg"),
        ((*NETWORK, "in_channels"), 4, "normalization has 3 channels, but the network has 4"),
        ((*NETWORK, "encoder"), "resnet18", "encoder_args apply to ResNeSt only"),
        ((*NETWORK, "depth"), 3, "'depth' is no argument of FCN"),
        ((*NETWORK, 3), 3, "class_path and init_args"),
        ((*NETWORK, "encoder_args", "layers"), [10**6] * 4, "4000000 blocks, at most"),
        ((*NETWORK, "encoder_args", "layers"), [1, 1, 1, 400], "403 blocks, at most"),
        ((*NETWORK, "encoder_args", "planes"), [10**9] * 4, "planes=.* must be four positive numbers up to 65536"),
        ((*NETWORK, "encoder_args", "width"), {"class_path": "x.y"}, "encoder_args.width is .*; needed is float"),
        ((*NETWORK, "encoder_args", "width"), 1, "width=1 gives blocks of 4 planes no channel"),
        ((*NETWORK, "encoder_args", "radix"), 3, "cannot be divided into radix 3 x cardinality 1"),
        (("normalization",), {"mean": [0.5] * 3}, "must consist of mean and std"),
        (("normalization", "std"), [0.5, float("inf"), 0.5], "normalization.std is"),
        (("normalization", "std"), [0.5, 0.0, 0.5], "std is .* must be greater than 0"),
        (("normalization", "std"), [0.5, -1.0, 0.5], "std is .* must be greater than 0"),
        (("normalization", "std"), ["0.5"] * 3, "normalization.std is"),
        (("normalization", "mean"), [0.5, float("nan"), 0.5], "normalization.mean is"),
        (("normalization", "mean"), [0.5, 0.5], "2 means and 3 standard deviations"),
        (("normalization",), {"mean": [0.5], "std": [0.5]}, "has 1 channels, but the network has 3"),
        (("label_space",), 3, "label_space is not a mapping"),
        (("label_space", "class_names"), [1, 2, 3], "the label space's class_names has the wrong type"),
    ],
)
def test_hyper_parameters_that_cannot_be(
    data: dict[str, Any], tmp_path: Path, place: tuple[Any, ...], value: object, words: str
) -> None:
    owner = data["hyper_parameters"]
    for key in place[:-1]:
        owner = owner[key]
    owner[place[-1]] = value
    torch.save(data, tmp_path / "bad.ckpt")
    message = refusal(tmp_path / "bad.ckpt")
    assert re.search(words, message), message
    assert "damaged, or not a segkit file" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("protocol", "whole"),
        ("protocol", {"scales": [1]}),
        ("scores", [3]),
        ("scores", [{"mIoU": "high"}]),
        ("source", {"recalibrated": {"batches": 3}}),
        ("versions", [1]),
        ("segkit", 3),
        ("calibration", 3),
        ("calibration", {"data": "camvid"}),
        ("calibration", {"temperature": 0}),
        ("calibration", {"temperature": "2"}),
        ("calibration", {"temperature": 1e300}),
    ],
)
def test_cards_that_cannot_be(network: SegmentationModel, tmp_path: Path, part: str, value: object) -> None:
    parts = {"network": network.config, "normalization": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    write_model_file(tmp_path / "bad.safetensors", Checkpoint(parts, network.state_dict(), {part: value}))
    assert "damaged, or not a segkit file: the card's" in refusal(tmp_path / "bad.safetensors")
    assert main(["export", str(tmp_path / "bad.safetensors"), "-o", str(tmp_path / "x.safetensors")]) == 2


def test_what_is_left_out_of_a_network_is_its_default(data: dict[str, Any], tmp_path: Path) -> None:
    del data["hyper_parameters"]["network"]["init_args"]["align_corners"]
    torch.save(data, tmp_path / "old.ckpt")
    assert read_checkpoint(tmp_path / "old.ckpt").network["init_args"]["align_corners"] is True


def test_loading_draws_no_numbers_and_gives_the_networks_own(network: SegmentationModel, data: dict[str, Any]) -> None:
    before = torch.random.get_rng_state()
    built = Checkpoint(data["hyper_parameters"], network.state_dict()).build_network()
    assert torch.equal(torch.random.get_rng_state(), before)
    image = torch.rand(1, 3, 33, 49)
    with torch.no_grad():
        assert torch.equal(built(image)["out"], network.eval()(image)["out"])
        next(built.parameters()).zero_()
    assert next(network.parameters()).any()  # a copy


LARGE = {
    "repeated": torch.zeros(1).expand(2**40, 3, 3, 3),
    "of no values": torch.empty(2**40, device="meta"),
    "sparse": torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), (2**40,)),
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("toolkit", ["segkit", "other"])
def test_a_small_file_claims_no_gigabytes(data: dict[str, Any], tmp_path: Path, kind: str, toolkit: str) -> None:
    name = "network.encoder.conv1.0.weight" if toolkit == "segkit" else "layer1.0.conv1.weight"
    content = data if toolkit == "segkit" else {"state_dict": {}}
    content["state_dict"][name] = LARGE[kind]
    torch.save(content, tmp_path / "bomb.ckpt")
    assert re.search("its tensors claim|sparse, quantized or without values", refusal(tmp_path / "bomb.ckpt"))


def test_a_compressed_archive_is_refused_before_it_unpacks(data: dict[str, Any], tmp_path: Path) -> None:
    torch.save(data, tmp_path / "plain.ckpt")
    with zipfile.ZipFile(tmp_path / "plain.ckpt") as plain:
        members = {info.filename: plain.read(info) for info in plain.infolist()}
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in members.items():
            bomb.writestr(name, content)
    assert "a compressed archive" in refusal(tmp_path / "bomb.ckpt")


def test_a_file_of_segkit_leaves_no_choice(network: SegmentationModel, tmp_path: Path, capsys: Any) -> None:
    path = str(write_checkpoint(tmp_path / "own.ckpt", network, SPACE))
    for option in (["--encoder", "resnest50"], ["--output_stride", "16"], ["--dilation_convention", "timm"]):
        assert main(["weights", "inspect", path, *option]) == 2
        assert f"{option[0]} has no effect" in capsys.readouterr().err
