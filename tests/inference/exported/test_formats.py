"""Exported files give the labels of the network that they were made from, by every protocol."""

from pathlib import Path

import numpy as np
import pytest
import torch

import segkit
from segkit.inference import protocols
from segkit.inference.segmenter import Segmenter
from segkit.metadata.label_space import numbered_space
from segkit.models.checkpoint import Checkpoint
from segkit.models.export.deploy import Form, deploy
from segkit.models.segmentation import FCN, SegmentationModel
from segkit.ops.normalize import IMAGENET

SUFFIXES = (".onnx", ".xml", ".pt2")


@pytest.fixture(scope="module")
def network() -> SegmentationModel:
    torch.manual_seed(0)
    return FCN("resnest14_tiny", 5).eval()


@pytest.fixture(scope="module")
def files(network: SegmentationModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
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


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("protocol", ["whole", "ms-flip", "window"])
def test_labels_are_those_of_the_network(
    network: SegmentationModel, files: dict[str, Path], suffix: str, protocol: str
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (65, 131, 3), dtype=np.uint8)
    plain = Segmenter(network, None, IMAGENET, protocols.get(protocol), torch.device("cpu")).predict(image)
    assert np.mean(plain != segkit.load(files[suffix], protocol=protocol).predict(image)) < 1e-3
