"""Exported files give the labels of the network that they were made from, by every protocol."""

from pathlib import Path

import numpy as np
import pytest
import torch

import segkit
from segkit.inference import protocols
from segkit.inference.segmenter import Segmenter
from segkit.models.segmentation import SegmentationModel
from segkit.ops.normalize import IMAGENET


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
@pytest.mark.parametrize("protocol", ["whole", "ms-flip", "window"])
def test_labels_are_those_of_the_network(
    network: SegmentationModel, files: dict[str, Path], suffix: str, protocol: str
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (65, 131, 3), dtype=np.uint8)
    plain = Segmenter(network, None, IMAGENET, protocols.get(protocol), torch.device("cpu")).predict(image)
    assert np.mean(plain != segkit.load(files[suffix], protocol=protocol).predict(image)) < 1e-3
