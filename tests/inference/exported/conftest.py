"""One tiny network and the files that it is exported to, for the tests of this folder."""

from pathlib import Path

import pytest
from exported import Files, tiny_network

from segkit.models.segmentation import SegmentationModel


@pytest.fixture(scope="session")
def network() -> SegmentationModel:
    return tiny_network()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By suffix."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    return Files(tmp_path_factory)
