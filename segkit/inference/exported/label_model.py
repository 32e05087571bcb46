"""Labels images by an ONNX or OpenVINO file alone, without PyTorch, as the protocol whole does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from segkit.bands import Bands
from segkit.inference.exported.files import ExportedFile, check_own, label_space_of, open_exported
from segkit.inference.images import IMAGE_BYTES, ImageLike, as_bands, as_rgb
from segkit.inference.protocols import Protocol
from segkit.machine import SHARE, free_memory

_FEATURES = 2000  # bytes per pixel: three times what PyTorch takes for a ResNeSt-50 DeepLabV3
_OF_CLASS = 8  # likewise, for each class: logits at full size, and what the upsampling makes first


class LabelModel:
    """Has of a `Segmenter` what `segkit infer` needs; an image that may not fit into memory is left to that.

    Args:
        file: With the output "labels".
        device: As given to `open_exported`.
        memory: Bytes that one image may take; None: `SHARE` of the memory that is free for each.

    Raises:
        InputError: The file was not written by `segkit export`.
    """

    def __init__(self, file: ExportedFile, device: str | None = None, memory: int | None = None) -> None:
        check_own(file.card, file.path)
        self._file, self._memory = file, memory
        self.device = device or "cpu"
        card, classes = file.card, int(file.card["num_classes"])
        self.label_space, bands = label_space_of(file), card["normalization"].get("bands")
        self.bands = None if bands is None else Bands.from_dict(bands)
        self.protocol = Protocol("whole").resolved(bool(card["align_corners"]))
        self.precision = str(card["precision"])
        self.pixel_bytes = IMAGE_BYTES + _FEATURES + _OF_CLASS * classes
        self.class_names, self.palette = self.label_space.class_names, self.label_space.palette

    @property
    def budget(self) -> int:
        """The number of bytes that an image may take now."""
        return self._memory or int(SHARE * free_memory())

    def read(self, image: ImageLike) -> np.ndarray:
        """An image (H, W, C) as `queue` needs it.

        Raises:
            InputError: It cannot be read, or has other bands.
        """
        return as_rgb(image) if self.bands is None else as_bands(image, self.bands)

    def queue(self, images: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        """Label images of one size; the result returns the labels, uint8 (B, H, W).

        Raises:
            InputError: The runtime refuses them.
        """
        batch = np.stack(images).transpose(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
        labels = self._file.run(np.ascontiguousarray(batch, self._file.input_dtype), "labels")
        return lambda: labels


def open_label_model(path: Path, device: str | None, memory: int | None) -> LabelModel | None:
    """Open a file for its labels; None where it has only logits, or is for PyTorch.

    Raises:
        InputError: See `open_exported` and `LabelModel`.
    """
    if path.suffix.lower() == ".pt2":
        return None
    file = open_exported(path, device)
    return LabelModel(file, device, memory) if "labels" in file.outputs else None
