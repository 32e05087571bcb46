"""Counts of where two label maps differ, worked by hand."""

import numpy as np
import pytest
import torch

from segkit.errors import InputError
from segkit.explain.disagreement import class_table, differences, joint_counts
from segkit.inference.protocols import get
from segkit.inference.segmenter import Segmenter
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.segmentation import FCN
from segkit.ops.normalize import IMAGENET


def segmenter(*names: str) -> Segmenter:
    space = LabelSpace(names, distinct_palette(len(names)), identity_table(len(names)))
    network = FCN("resnest14_tiny", num_classes=len(names), aux=False)
    return Segmenter(network, space, IMAGENET, get("whole"), torch.device("cpu"))


def test_pairs_by_hand() -> None:
    a = np.array([[0, 0, 0, 0], [1, 1, 1, 2]], np.uint8)
    b = np.array([[0, 1, 1, 255], [1, 0, 1, 2]], np.uint8)
    found = differences(joint_counts(a, b), ("road", "sky", "car"))
    assert (found["pixels"], found["different"], found["share"]) == (8, 4, 0.5)
    assert found["pairs"] == [
        {"first": "road", "second": "sky", "pixels": 2, "share": 0.25},
        {"first": "road", "second": "no class of the first", "pixels": 1, "share": 0.125},
        {"first": "sky", "second": "road", "pixels": 1, "share": 0.125},
    ]
    assert differences(joint_counts(a, a), ("road", "sky", "car"))["pairs"] == []


def test_classes_are_matched_by_name() -> None:
    first = segmenter("road", "sky", "car")
    assert class_table(first, segmenter("unlabelled", "car", "Sky", "road")).tolist() == [255, 2, 1, 0]
    with pytest.raises(InputError, match=r"its 2 classes cannot be matched by name with the 3 of the model"):
        class_table(first, segmenter("cat", "dog"))
