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
"""Writes metrics_paddleseg.npz: what PaddleSeg 2.8.0's paddleseg/utils/metrics.py makes of the images in metrics.npz.

Run: uv run --no-project tests/goldens/make_metrics_paddleseg.py

Keys are CASE/SCORE. Areas are summed over images as paddleseg/core/val.py does. The file of the release is loaded by
itself, with two stand-ins: an empty scikit-learn (it is for its area under the curve), and a `paddle.concat` that takes
the scalars that `paddle.sum` has given since 2.5, later than the release.
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import paddle

FOLDER = Path(__file__).parent


def load_metrics():
    """The module `paddleseg.utils.metrics`, without its package."""
    sys.modules["sklearn"], sys.modules["sklearn.metrics"] = types.ModuleType("sklearn"), types.ModuleType("metrics")
    sys.modules["sklearn"].metrics = sys.modules["sklearn.metrics"]
    root = Path(importlib.util.find_spec("paddleseg").origin).parent
    spec = importlib.util.spec_from_file_location("paddleseg_metrics", root / "utils" / "metrics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main():
    """Write the file."""
    concat = paddle.concat
    paddle.concat = lambda parts, *args: concat([part.reshape([1]) for part in parts], *args)
    metrics, arrays = load_metrics(), {}
    inputs = np.load(FOLDER / "metrics.npz")
    for case in sorted({key.split("/")[0] for key in inputs.files}):
        num_classes = int(inputs[f"{case}/num_classes"])
        total = [paddle.zeros([1], dtype="int64")] * 3
        for key in sorted(key for key in inputs.files if key.startswith(f"{case}/mask/")):
            mask, labels = (inputs[k].astype(np.int64) for k in (key, key.replace("/mask/", "/labels/")))
            areas = metrics.calculate_area(paddle.to_tensor(labels), paddle.to_tensor(mask), num_classes, 255)
            total = [a + b for a, b in zip(total, areas, strict=True)]
        arrays[f"{case}/IoU"], arrays[f"{case}/mIoU"] = metrics.mean_iou(*total)
        arrays[f"{case}/Acc"], arrays[f"{case}/precision"], _ = metrics.class_measurement(*total)
    np.savez_compressed(FOLDER / "metrics_paddleseg.npz", **arrays)


if __name__ == "__main__":
    main()
