"""A file that `segkit.load` reads: of segkit, of another toolkit, or exported."""

from __future__ import annotations

import torch
from torch import Tensor

from segkit.bands import BandArray
from segkit.benchmark.models.base import JudgedModel
from segkit.inference.engine import predict
from segkit.inference.protocols import Protocol
from segkit.inference.segmenter import Segmenter, load
from segkit.ops.normalize import normalize


class SegkitModel(JudgedModel):
    """A segmenter, which sees images by any protocol. Normalisation is timed with the network."""

    def __init__(self, name: str, segmenter: Segmenter) -> None:
        values = segmenter.normalization
        channels = "RGB" if values.bands is None else str(values.bands)
        plain = {"mean": list(values.mean), "std": list(values.std), "channels": channels, "range": [0, 1]}
        super().__init__(name, plain | {"size": f"protocol {segmenter.protocol.name}"}, segmenter.device)
        self.segmenter, self.network = segmenter, segmenter.network
        self.class_names, self.num_classes = segmenter.class_names, segmenter.label_space.num_classes

    def prepare(self, image: BandArray, name: str) -> Tensor:
        """See base class."""
        return torch.from_numpy(image).permute(2, 0, 1)[None]  # (H, W, C) -> (1, C, H, W)

    def label(self, prepared: Tensor, size: tuple[int, int]) -> Tensor:
        """See base class."""
        assert self.segmenter is not None
        with torch.inference_mode():
            normalized = normalize(prepared.to(self.device), self.segmenter.normalization)
            protocol, values = self.segmenter.protocol, self.segmenter.normalization
            return predict(self.segmenter.network, normalized, protocol, normalization=values)[0]


def open_segkit(path: str, device: str, protocol: Protocol) -> SegkitModel:
    """Load the file with its weights as they were trained.

    Raises:
        InputError: See `segkit.inference.segmenter.load`.
    """
    return SegkitModel(path, load(path, device, protocol, precision="exact"))
