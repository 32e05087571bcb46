# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = [
#     "mmsegmentation==1.2.2", "mmcv-lite==2.1.0", "mmengine==0.10.7", "ftfy", "regex", "setuptools<81",
#     "torch", "torchvision", "numpy",
# ]
# ///
"""Writes photometric.npz: what mmsegmentation 1.2.2's PhotoMetricDistortion makes of an image for fixed draws.

Run: uv run --no-project tests/goldens/make_photometric.py

Keys: `image` uint8 RGB (H, W, 3), `draws` float64 (N, 5), and `images` uint8 RGB (N, H, W, 3). A row of `draws` is
brightness, contrast, contrast_first, saturation, hue; nan leaves a step out.
"""

# ruff: noqa: E402  (the stand-ins come before mmseg)

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import mmseg_stub

mmseg_stub.install()

import numpy as np
from mmseg.datasets.transforms import transforms

NO = math.nan

# brightness  contrast  contrast_first  saturation  hue
DRAWS = (
    (NO,       NO,       0, NO,      NO),
    (17.3,     NO,       0, NO,      NO),
    (-31.9,    NO,       1, NO,      NO),
    (NO,       1.4871,   0, NO,      NO),
    (NO,       0.5123,   1, NO,      NO),
    (NO,       NO,       0, 1.4999,  NO),
    (NO,       NO,       1, 0.5001,  NO),
    (NO,       NO,       0, NO,      17),
    (NO,       NO,       1, NO,      -18),
    (NO,       NO,       0, 1.2345,  -7),
    (31.7,     1.3333,   1, NO,      NO),
    (31.7,     1.3333,   0, NO,      NO),
    (-12.25,   0.7777,   0, 0.8765,  9),
    (-12.25,   0.7777,   1, 0.8765,  9),
    (28.0,     1.5,      0, 1.5,     -18),
    (-28.0,    1.5,      1, 1.5,     17),
)  # fmt: skip


class FixedDraws:
    """In the place of `numpy.random` in mmseg's file: yields what it is given, in the order of the calls."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def randint(self, *_: int) -> int:
        return int(self.values.pop(0))

    def uniform(self, *_: float) -> float:
        return float(self.values.pop(0))


def in_order(brightness: float, contrast: float, contrast_first: int, saturation: float, hue: float) -> list[float]:
    """The draws as mmseg's `transform` asks for them: whether, and then how much."""
    steps = {
        name: [0.0] if math.isnan(v) else [1.0, v]
        for name, v in zip("bcsh", (brightness, contrast, saturation, hue), strict=True)
    }
    late = [*steps["s"], *steps["h"]]
    return [*steps["b"], contrast_first, *([*steps["c"], *late] if contrast_first else [*late, *steps["c"]])]


def image() -> np.ndarray:
    """Greys, full colours and random ones, (16, 64, 3) RGB."""
    made = np.random.default_rng(0).integers(0, 256, (16, 64, 3), np.uint8)
    made[:4] = np.arange(256, dtype=np.uint8).reshape(4, 64, 1)
    made[4:6] = np.random.default_rng(1).choice(np.array([0, 255], np.uint8), (2, 64, 3))
    return made


def main() -> None:
    rgb, images = image(), []
    for draws in DRAWS:
        transforms.random = FixedDraws(in_order(*draws))
        out = transforms.PhotoMetricDistortion().transform({"img": rgb[..., ::-1].copy()})["img"]
        assert not transforms.random.values
        images.append(out[..., ::-1])
    path = Path(__file__).with_name("photometric.npz")
    np.savez_compressed(path, image=rgb, draws=np.array(DRAWS), images=np.stack(images))


if __name__ == "__main__":
    main()
