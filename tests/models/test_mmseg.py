"""mmsegmentation's networks: whole checkpoints under its names give what mmsegmentation itself computes.

mmsegmentation runs here, as itself: `uv run --group mmseg pytest tests/models/test_mmseg.py`.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segkit.metadata.label_space import LabelSpace, identity_table
from segkit.models.resnest import ResNeSt
from segkit.models.segmentation import MMSegDeepLabV3, MMSegFCN, SegmentationModel
from segkit.models.toolkits.inspection import Choices
from segkit.models.weights import read_checkpoint

pytest.importorskip("mmseg", reason="mmsegmentation is not installed: uv run --group mmseg pytest")
import mmseg_networks

CLASSES = ("road", "tree", "sky", "car", "lamp")
PALETTE = [[128, 64, 128], [107, 142, 35], [70, 130, 180], [0, 0, 142], [153, 153, 153]]
IMAGE = torch.randn(1, 3, 65, 49, generator=torch.Generator().manual_seed(1))  # odd sides


def read(theirs: nn.Module, output_stride: int, folder: Path) -> SegmentationModel:
    """segkit's network, read from the checkpoint file that mmseg would write."""
    path = folder / "iter_160000.pth"
    meta = {"CLASSES": CLASSES, "PALETTE": PALETTE, "epoch": 1}
    torch.save({"meta": meta, "state_dict": theirs.state_dict(), "optimizer": {}}, path)
    checkpoint = read_checkpoint(path, Choices(output_stride=output_stride))
    assert checkpoint.label_space == LabelSpace(CLASSES, tuple(map(tuple, PALETTE)), identity_table(5)).to_dict()
    return checkpoint.build_network()


@torch.inference_mode()
def assert_same(ours: SegmentationModel, theirs: nn.Module) -> None:
    features, expected = ours.encoder(IMAGE), theirs.extract_feat(IMAGE)
    close(features[-2], expected[-2])
    close(features[-1], expected[-1])
    close(ours.head(features[-1]), theirs.decode_head(expected))
    close(ours.aux_head(features[-2]), theirs.auxiliary_head(expected))


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("head, network_class", [("ASPPHead", MMSegDeepLabV3), ("FCNHead", MMSegFCN)])
def test_whole_resnest_networks_equal_mmseg(head: str, network_class: type, output_stride: int, tmp_path: Path) -> None:
    theirs = mmseg_networks.build(head, mmseg_networks.resnest_backbone(output_stride), 512, output_stride)
    ours = read(theirs, output_stride, tmp_path)
    assert type(ours) is network_class and not ours.align_corners
    assert ours.config["init_args"]["dilation_convention"] == "mmseg"
    assert_same(ours, theirs)


def test_the_authors_network_is_another_one() -> None:
    """mmseg drops the pools of dilated stages, under the same names of parameters."""
    theirs = mmseg_networks.build("FCNHead", mmseg_networks.resnest_backbone(8), 512, 8)
    features = {}
    for convention in ("mmseg", "authors"):
        encoder = ResNeSt((1, 2, 2, 1), stem_width=8, planes=(16, 32, 64, 128), dilation_convention=convention)
        weights = {name: theirs.backbone.state_dict()[mmseg_name(name)] for name in encoder.state_dict()}
        encoder.load_state_dict(weights)
        with torch.inference_mode():
            features[convention] = encoder.eval()(IMAGE)[-1]
    with torch.inference_mode():
        expected = theirs.extract_feat(IMAGE)[-1]
    close(features["mmseg"], expected)
    assert (features["authors"] - expected).abs().max() > 0.1 * expected.abs().max()


def test_fcn_over_resnet50c_equals_mmseg(tmp_path: Path) -> None:
    """The comparator of mmseg's zoo: its ResNetV1c is timm's resnet50c."""
    theirs = mmseg_networks.build("FCNHead", mmseg_networks.resnet_backbone(), 2048, 8)
    ours = read(theirs, 8, tmp_path)
    assert ours.config["init_args"]["encoder"] == "resnet50c"
    assert_same(ours, theirs)
    for head in (ours.head, ours.aux_head):
        assert [m.p for m in head.modules() if isinstance(m, nn.Dropout2d)] == [theirs.decode_head.dropout_ratio]


def mmseg_name(name: str) -> str:
    if name.startswith("bn1."):
        return f"stem.7.{name.removeprefix('bn1.')}"
    return name.replace("conv1.", "stem.", 1) if name.startswith("conv1.") else name


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
