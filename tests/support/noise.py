"""A data set of noise, in the layout of a user's own folder."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from segkit.files import write_text

CLASSES = ("a", "b", "c")


def write_noise(root: Path, counts: Mapping[str, int]) -> Path:
    """`counts[split]` images of 56x40 with labels of three classes in each split."""
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        for i in range(count):
            for kind, array in (
                ("images", generator.integers(0, 256, (40, 56, 3), np.uint8)),
                ("labels", generator.integers(0, len(CLASSES), (40, 56), np.uint8)),
            ):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / kind / split / f"{i}.png"), array)
    write_text(root / "classes.txt", "\n".join(CLASSES) + "\n")
    return root
