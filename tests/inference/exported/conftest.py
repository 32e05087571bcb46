"""One tiny network in every format, exported once for the tests of this folder."""

from pathlib import Path

import pytest
import torch

from segkit.metadata.label_space import numbered_space
from segkit.models.checkpoint import Checkpoint
from segkit.models.export.deploy import Form, deploy
from segkit.models.segmentation import FCN, SegmentationModel
from segkit.ops.normalize import IMAGENET

SUFFIXES = (".onnx", ".xml", ".pt2")


@pytest.fixture(scope="session")
def network() -> SegmentationModel:
    torch.manual_seed(0)
    return FCN("resnest14_tiny", 5).eval()


@pytest.fixture(scope="session")
def files(network: SegmentationModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By suffix; nobody writes to them."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("exported")
    parts = {
        "network": network.config,
        "normalization": IMAGENET.to_dict(),
        "label_space": numbered_space(5).to_dict(),
    }
    checkpoint = Checkpoint(parts, network.state_dict())
    for suffix in SUFFIXES:
        deploy(folder / f"model{suffix}", checkpoint, network, Form())
    return {suffix: folder / f"model{suffix}" for suffix in SUFFIXES}
