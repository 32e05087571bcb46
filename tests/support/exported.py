"""One tiny network, exported once to each format for all tests, whichever processes run them."""

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


def tiny_network() -> SegmentationModel:
    """A FCN of 5 classes in eval mode, with the same random weights each time, and no split attention to trace."""
    torch.manual_seed(0)
    return FCN("resnest14_tiny", 5, encoder_args={"radix": 0}).eval()


class Files(dict[str, Path]):
    """Files by suffix, made when one is asked for: an export takes seconds. Nobody writes to them.

    Args:
        temporary: Names the folder that the processes of a run share.
    """

    def __init__(self, temporary: pytest.TempPathFactory) -> None:
        super().__init__()
        base = temporary.getbasetemp()  # of the process, inside that of the run
        self.folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
        self.folder.mkdir(exist_ok=True)

    def __missing__(self, suffix: str) -> Path:
        file = self.folder / f"model{suffix}"
        with FileLock(self.folder / f"{suffix}.lock"):
            if not file.exists():
                network, space = tiny_network(), numbered_space(5).to_dict()
                parts = {"network": network.config, "normalization": IMAGENET.to_dict(), "label_space": space}
                deploy(file, Checkpoint(parts, network.state_dict()), network, Form())
        self[suffix] = file
        return file
