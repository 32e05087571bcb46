"""mmsegmentation's networks: whole checkpoints under its names, against what mmsegmentation 1.2.2 itself computes.

`tests/goldens/make_mmseg_networks.py` made the golden file, with mmseg's own code; weights come from a formula there
and here, from each parameter's name, so that the file holds outputs and names only.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segkit.metadata.label_space import LabelSpace, identity_table
from segkit.models.resnest import ResNeSt
from segkit.models.segmentation import MMSegDeepLabV3, MMSegFCN, SegmentationModel
from segkit.models.toolkits.foreign import Choices
from segkit.models.weights import read_checkpoint

GOLDENS = Path(__file__).parents[1] / "goldens"
CLASSES = ("road", "tree", "sky", "car", "lamp")
PALETTE = [[128, 64, 128], [107, 142, 35], [70, 130, 180], [0, 0, 142], [153, 153, 153]]


@pytest.fixture(scope="module")
def formula() -> ModuleType:
    spec = importlib.util.spec_from_file_location("formula", GOLDENS / "formula.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDENS / "mmseg_networks.npz"))


@pytest.fixture(scope="module")
def network_of(formula, golden, tmp_path_factory: pytest.TempPathFactory):
    """The network read from a checkpoint file with the names and shapes that mmseg gave."""

    def read(name: str, output_stride: int) -> SegmentationModel:
        lines = golden[f"{name}_names"].tobytes().decode().split("\n")
        parts = [line.partition(" ") for line in lines]
        shapes = {key: tuple(map(int, sides.split())) for key, _, sides in parts}
        weights = {key: torch.from_numpy(value) for key, value in formula.formula_weights(shapes).items()}
        path = tmp_path_factory.mktemp("mmseg") / "iter_160000.pth"
        meta = {"CLASSES": CLASSES, "PALETTE": PALETTE, "epoch": 1}
        torch.save({"meta": meta, "state_dict": weights, "optimizer": {}}, path)
        checkpoint = read_checkpoint(path, Choices(output_stride=output_stride))
        space = LabelSpace(CLASSES, tuple(map(tuple, PALETTE)), identity_table(5))
        assert checkpoint.label_space == space.to_dict()
        return checkpoint.build_network()

    return read


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("head, network_class", [("ASPPHead", MMSegDeepLabV3), ("FCNHead", MMSegFCN)])
def test_whole_resnest_networks_equal_mmseg(
    formula, golden, network_of, head: str, network_class: type, output_stride: int
) -> None:
    network = network_of(f"{head}_os{output_stride}", output_stride)
    assert type(network) is network_class and not network.align_corners
    assert network.config["init_args"]["dilation_convention"] == "mmseg"
    with torch.inference_mode():
        features = network.encoder(torch.from_numpy(formula.image()))
        close(network.head(features[-1]), golden[f"{head}_os{output_stride}_logits"])
        close(network.aux_head(features[-2]), golden[f"{head}_os{output_stride}_aux"])


@pytest.mark.parametrize("output_stride", [8, 16])
def test_encoder_features_equal_mmseg(formula, golden, output_stride: int) -> None:
    """mmseg's encoder alone: what its features are called there does not matter here, only its weights' names."""
    encoder = ResNeSt(
        (1, 2, 2, 1), stem_width=8, planes=(16, 32, 64, 128), output_stride=output_stride, dilation_convention="mmseg"
    )
    theirs = {mmseg_name(name): name for name in encoder.state_dict()}
    weights = formula.formula_weights({t: tuple(encoder.state_dict()[o].shape) for t, o in theirs.items()})
    encoder.load_state_dict({theirs[name]: torch.from_numpy(value) for name, value in weights.items()})
    with torch.inference_mode():
        features = encoder.eval()(torch.from_numpy(formula.image()))
    close(features[-2], golden[f"stage3_os{output_stride}"])
    close(features[-1], golden[f"stage4_os{output_stride}"])


def test_fcn_over_resnet50c_equals_mmseg(formula, golden, network_of) -> None:
    """The comparator of mmseg's zoo: its ResNetV1c is timm's resnet50c."""
    network = network_of("FCNHead_resnet50c", 8)
    assert network.config["init_args"]["encoder"] == "resnet50c"
    with torch.inference_mode():
        features = network.encoder(torch.from_numpy(formula.image()))
        close(network.head(features[-1]), golden["FCNHead_resnet50c_logits"])
        close(network.aux_head(features[-2]), golden["FCNHead_resnet50c_aux"])


def test_heads_drop_channels_as_mmseg_does(network_of) -> None:
    network = network_of("FCNHead_resnet50c", 8)
    for head in (network.head, network.aux_head):
        assert [m.p for m in head.modules() if isinstance(m, nn.Dropout2d)] == [0.1]


def mmseg_name(name: str) -> str:
    if name.startswith("bn1."):
        return f"stem.7.{name.removeprefix('bn1.')}"
    return name.replace("conv1.", "stem.", 1) if name.startswith("conv1.") else name


def close(ours: Tensor, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    difference = np.abs(ours.numpy() - theirs).max()
    assert difference <= 1e-5 * np.abs(theirs).max()
