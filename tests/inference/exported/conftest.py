"""One tiny network, exported once to each format for the tests of this folder, whichever processes run them."""

import os
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from segkit.metadata.label_space import numbered_space
from segkit.models.checkpoint import Checkpoint
from segkit.models.export.deploy import Form, deploy
from segkit.models.segmentation import FCN, SegmentationModel
from segkit.ops.normalize import IMAGENET


@pytest.fixture(scope="session")
def network() -> SegmentationModel:
    torch.manual_seed(0)
    return FCN("resnest14_tiny", 5).eval()


class Files(dict[str, Path]):
    """Files by suffix, made when one is asked for: an export takes seconds."""

    def __init__(self, network: SegmentationModel, folder: Path) -> None:
        super().__init__()
        self.network, self.folder = network, folder

    def __missing__(self, suffix: str) -> Path:
        space, file = numbered_space(5).to_dict(), self.folder / f"model{suffix}"
        parts = {"network": self.network.config, "normalization": IMAGENET.to_dict(), "label_space": space}
        with FileLock(self.folder / f"{suffix}.lock"):
            if not file.exists():
                deploy(file, Checkpoint(parts, self.network.state_dict()), self.network, Form())
        self[suffix] = file
        return file


@pytest.fixture(scope="session")
def files(network: SegmentationModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By suffix; nobody writes to them."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    folder = tmp_path_factory.getbasetemp()  # of the process, inside that of the run
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "exported"
    folder.mkdir(exist_ok=True)
    return Files(network, folder)
