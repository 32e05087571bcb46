"""Areas of each class in each image: what confidence intervals and paired comparisons are computed from."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segkit.arrays import Int64Array
from segkit.errors import InputError
from segkit.files import write_bytes


@dataclass(frozen=True)
class ImageAreas:
    """Areas of each class in each image; what intervals and comparisons are computed from.

    Attributes:
        areas: int64 (N, 3, K), pixels in the intersection of truth and prediction, in the truth, in the prediction.
        names: N names of images, no name twice.

    Raises:
        InputError: the sizes disagree, there is no image, or a name occurs twice.
    """

    areas: Int64Array
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse sizes that disagree."""
        if self.areas.ndim != 3 or self.areas.shape[1] != 3 or self.areas.dtype != np.int64 or not self.areas.size:
            raise InputError(f"areas: {self.areas.dtype} {self.areas.shape}; int64 (N, 3, K), N and K above 0, needed")
        if len(self.names) != len(self.areas) or len(set(self.names)) != len(self.names):
            raise InputError(f"areas: {len(set(self.names))} different names for {len(self.areas)} images; one each")

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.areas.shape[2])

    def by_name(self) -> ImageAreas:
        """The same in the order of the names, so that what is drawn does not depend on the order of the files."""
        return self._picked(sorted(range(len(self.names)), key=self.names.__getitem__))

    def only(self, names: Iterable[str]) -> ImageAreas:
        """The images of these names, as far as there are any.

        Raises:
            InputError: there are none.
        """
        wanted = set(names)
        return self._picked([i for i, name in enumerate(self.names) if name in wanted])

    def _picked(self, indices: list[int]) -> ImageAreas:
        return ImageAreas(self.areas[indices], tuple(self.names[i] for i in indices))

    @classmethod
    def from_counts(cls, images: Iterable[tuple[str, Tensor]]) -> ImageAreas:
        """From name and `segkit.evaluation.confusion.confusion_counts`, int64 (K + 2, K + 1), of each image.

        Raises:
            InputError: there are no images, or a mask held ids that are neither classes nor ignored.
        """
        return cls.from_areas((name, image_areas(counts, name)) for name, counts in images)

    @classmethod
    def from_areas(cls, images: Iterable[tuple[str, Int64Array]]) -> ImageAreas:
        """From name and areas, int64 (3, K), of each image.

        Raises:
            InputError: there are no images.
        """
        rows = list(images)
        areas = np.stack([area for _, area in rows]) if rows else np.zeros((0, 3, 0), np.int64)
        return cls(areas, tuple(name for name, _ in rows))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file, atomically."""
        data = io.BytesIO()
        np.savez_compressed(data, areas=self.areas, names=np.array(self.names))
        write_bytes(path, data.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImageAreas:
        """Read what `save` wrote; nothing is unpickled.

        Raises:
            InputError: the file is absent or not of this kind.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                return cls(data["areas"], tuple(str(name) for name in data["names"]))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file of image areas; check the path") from None
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: not a file of image areas; ImageAreas.save writes them") from error


def image_areas(counts: Tensor, name: str) -> Int64Array:
    """(3, K) of one image's counts: predictions on ignored truth are nobody's, those of no class are missed."""
    table = torch.as_tensor(counts).cpu().numpy().astype(np.int64)
    undeclared = int(table[-1].sum())
    if undeclared:
        raise InputError(f"{name}: {undeclared} pixels of the mask are neither a class nor ignored; map them first")
    true = table[:-2]  # (K, K + 1)
    return np.stack([true.diagonal(), true.sum(axis=1), true[:, :-1].sum(axis=0)])
