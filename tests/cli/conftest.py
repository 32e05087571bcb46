"""What tests of `segkit benchmark` and `segkit infer` share: tiny images, networks with random weights, the command."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint, write_tiny

from segkit.cli import main
from segkit.files import write_text
from segkit.io import write_png
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.segmentation import FCN

NAMES = ("road", "tree", "sky", "boat")  # of which no truth has a boat
OTHERS = ("void", "cat", "dog", "cow", "road")
IMAGES = 5


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network with random weights and three classes."""
    return write_tiny(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def benchmark_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.yaml with its data, and checkpoints: a (never predicts a boat), b, wide (one class more), other (others)."""
    folder = tmp_path_factory.mktemp("benchmark")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        height, width = 40 + 3 * i, 56 + 5 * (i % 2)
        write_png(folder / f"data/images/test/{i}.png", rng.integers(0, 256, (height, width, 3), np.uint8))
        labels = np.where(rng.random((height, width)) < 0.1, 255, rng.integers(0, 3, (height, width)))
        write_png(folder / f"data/labels/test/{i}.png", labels.astype(np.uint8))
    write_text(folder / "data/classes.txt", "\n".join(NAMES) + "\n")
    write_text(
        folder / "data.yaml",
        f"class_path: FolderDataModule\ninit_args: {{root: {folder / 'data'}, num_workers: 0}}\n",
    )
    for name, seed, classes in (("a", 0, NAMES), ("b", 1, NAMES), ("wide", 2, ("void", *NAMES)), ("other", 3, OTHERS)):
        _save_checkpoint(folder / f"{name}.ckpt", seed, classes)
    return folder


def _save_checkpoint(path: Path, seed: int, classes: tuple[str, ...]) -> None:
    torch.manual_seed(seed)
    network = FCN("resnest14_tiny", num_classes=len(classes), output_stride=16)
    for module in network.modules():  # so that untrained networks differ in what they predict
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight)
    if seed == 0:
        network.state_dict()["head.4.bias"][-1] = -1e4
    write_checkpoint(path, network, LabelSpace(classes, distinct_palette(len(classes)), identity_table(len(classes))))


@pytest.fixture
def run_benchmark(benchmark_folder: Path, tmp_path: Path) -> Callable[..., int]:
    """Runs `segkit benchmark ARGUMENTS` on that data (or without), and writes into tmp_path/table."""

    def call(*arguments: str, output: str = "table", data: bool = True) -> int:
        shared = ["--output", str(tmp_path / output), "--device", "cpu", "--size", "32", "64"]
        given = ["--data", str(benchmark_folder / "data.yaml")] if data else []
        return main(["benchmark", *shared, *given, *arguments])  # the last one wins

    return call
