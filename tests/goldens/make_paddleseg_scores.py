# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["paddlepaddle==3.3.1", "paddleseg==2.8.0", "setuptools<81", "numpy"]
# [tool.uv]
# # What paddleseg asks for beside them is old, and its metrics need none of it.
# override-dependencies = [
#     "opencv-python; python_version < '0'", "visualdl; python_version < '0'", "scikit-learn; python_version < '0'",
#     "scipy; python_version < '0'", "prettytable; python_version < '0'", "filelock; python_version < '0'",
#     "tqdm; python_version < '0'",
# ]
# ///
"""Writes paddleseg_scores.npz: the scores that PaddleSeg 2.8.0's aug_inference (paddleseg/core/infer.py) gives.

Run: uv run --no-project tests/goldens/make_paddleseg_scores.py    (after make_resize.py: the weights are in its file)

The file is loaded without its package, which needs much that test-time augmentation does not. Scales and flip are
those of PaddleSeg's docs/evaluation; the network is that of make_resize.py, and upsamples its logits to its input as
PaddleSeg's networks do, with their default align_corners=False.
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F

FOLDER = Path(__file__).parent
WEIGHTS = np.load(FOLDER / "resize.npz")
IMAGES = {"small": (61, 83), "large": (530, 701), "tall": (93, 47)}


def make_image(height, width):
    """The image of make_resize.py, (H, W, 3) uint8."""
    y, x, c = np.mgrid[:height, :width, :3]
    return ((x * 3 + y * 5 + c * 40 + (x * y) // 37 + 90 * ((x // 11 + y // 7) % 2)) % 256).astype(np.uint8)


def network(x):
    """Its logits at the size of x, in a list as PaddleSeg's networks return them."""
    size = x.shape[-2:]
    layers = {name[7:]: paddle.to_tensor(WEIGHTS[name]) for name in WEIGHTS.files if name.startswith("weight_")}
    for name in "abc":
        x = F.relu(F.conv2d(x, layers[name], stride=2, padding=layers[name].shape[-1] // 2))
    x = F.conv2d(x, layers["mmseg_out"], layers["mmseg_out_bias"])
    return [F.interpolate(x, size, mode="bilinear", align_corners=False)]


def load_infer():
    """The module `paddleseg.core.infer`, without its package."""
    sys.modules["cv2"] = types.ModuleType("cv2")
    root = Path(importlib.util.find_spec("paddleseg").origin).parent
    spec = importlib.util.spec_from_file_location("paddleseg_infer", root / "core" / "infer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main():
    """Write the file."""
    infer, arrays = load_infer(), {}
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    step = int(WEIGHTS["step"])
    for name, size in IMAGES.items():
        image = ((make_image(*size).astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)[None]
        labels, scores = infer.aug_inference(
            network, paddle.to_tensor(image), [], scales=[0.75, 1.0, 1.25], flip_horizontal=True
        )
        arrays[f"paddleseg-ms_{name}"] = scores.numpy()[0, :, ::step, ::step]
        arrays[f"paddleseg-ms_{name}_labels"] = labels.numpy()[0, :, ::3, ::3].astype(np.uint8)
    np.savez_compressed(FOLDER / "paddleseg_scores.npz", **arrays)


if __name__ == "__main__":
    main()
