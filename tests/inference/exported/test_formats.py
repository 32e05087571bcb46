"""Exported files give the labels of the network that they were made from, by every protocol."""

import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import Conv2dSame

import segkit
from segkit.benchmark.cost import flops, parameters
from segkit.errors import InputError
from segkit.inference import protocols
from segkit.inference.segmenter import Segmenter
from segkit.models.export.deployable import SamePadding, with_traceable_padding
from segkit.models.export.formats import write_pt2
from segkit.models.segmentation import SegmentationModel
from segkit.ops.normalize import IMAGENET


def slow_but(first: str, *others: str) -> list[Any]:
    return [first, *(pytest.param(other, marks=pytest.mark.slow) for other in others)]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", slow_but(".onnx", ".xml", ".pt2"))
@pytest.mark.parametrize("protocol", slow_but("whole", "ms-flip", "window"))
def test_labels_are_those_of_the_network(
    network: SegmentationModel, files: dict[str, Path], suffix: str, protocol: str
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (65, 131, 3), dtype=np.uint8)
    plain = Segmenter(network, None, IMAGENET, protocols.get(protocol), torch.device("cpu")).predict(image)
    assert np.mean(plain != segkit.load(files[suffix], protocol=protocol).predict(image)) < 1e-3


def test_padding_of_tensorflow_is_as_timm_pads() -> None:
    torch.manual_seed(0)
    for kernel in (3, 5):
        theirs = torch.nn.Sequential(Conv2dSame(4, 6, kernel, stride=2), Conv2dSame(6, 6, kernel, stride=2, groups=6))
        ours = with_traceable_padding(theirs)
        assert sum(isinstance(module, SamePadding) for module in ours.modules()) == 2
        for height, width in ((8, 9), (33, 66), (1, 5), (10, 2)):
            image = torch.randn(1, 4, height, width)
            assert torch.equal(ours(image), theirs(image))


class Ceil(torch.nn.Module):
    """Has an operation on a size that .pt2 cannot store (torch 2.15)."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(image, (0, math.ceil(image.shape[3] / 4)))


@pytest.mark.slow
def test_an_operation_that_pt2_cannot_store_is_one_line(tmp_path: Path) -> None:
    width = {"image": {3: torch.export.Dim("width", min=8, max=64)}}
    program = torch.export.export(Ceil(), (torch.zeros(1, 3, 8, 12),), dynamic_shapes=width)
    with pytest.raises(
        InputError, match=r"a\.pt2: torch.export cannot store this network \(.*\); choose \.onnx"
    ) as error:
        write_pt2(tmp_path / "a.pt2", program, {})
    assert "\n" not in str(error.value) and not (tmp_path / "a.pt2").exists()


@pytest.mark.slow
def test_pt2_holds_no_paths_of_the_machine(files: dict[str, Path]) -> None:
    with zipfile.ZipFile(files[".pt2"]) as archive:
        graph = archive.read("model/models/model.json").decode()
    assert str(Path(segkit.__file__).parents[1]) not in graph and "deployable.py" not in graph


@pytest.mark.slow
def test_cost_is_that_of_the_network(network: SegmentationModel, files: dict[str, Path]) -> None:
    found = segkit.load(files[".onnx"]).network
    assert parameters(found) == parameters(network) and flops(found, (64, 96)) == flops(network, (64, 96))


@pytest.mark.parametrize(
    ("suffix", "device", "said"),
    [
        (".onnx", "cpu", None),
        (".onnx", "cuba", "ONNX Runtime has no such provider here"),
        (".xml", "auto", None),
        (".xml", "cuda:7", "OpenVINO has none such here"),
        (".pt2", "cpu", None),
        (".pt2", "cuba", "cannot be used here"),
    ],
)
@pytest.mark.slow
def test_device(files: dict[str, Path], suffix: str, device: str, said: str | None) -> None:
    image = np.random.default_rng(0).integers(0, 256, (65, 131, 3), dtype=np.uint8)
    if said is None:
        assert (
            np.mean(segkit.load(files[suffix], device).predict(image) != segkit.load(files[suffix]).predict(image))
            < 1e-3
        )
    else:
        with pytest.raises(InputError, match=f"device '{device}'.*{said}"):
            segkit.load(files[suffix], device)


_SIGNALS = """
import os, signal, sys
from segkit.inference.exported.files import open_exported
from pathlib import Path

signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
first, second = (open_exported(Path(sys.argv[1])) for _ in range(2))
del first
del second
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.slow
def test_signals_are_handled_after_two_openvino_files(files: dict[str, Path]) -> None:
    done = subprocess.run([sys.executable, "-c", _SIGNALS, str(files[".xml"])], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
