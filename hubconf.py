"""Entry points of torch.hub, for a clone of this repository and its dependencies (`pip install segkit-torch`).

import torch

segmenter = torch.hub.load("PATH/TO/CLONE", "segkit", "model.safetensors", source="local")
labels = segmenter.predict("image.jpg")  # uint8 (H, W)
"""

from segkit.inference.segmenter import load as segkit  # the entry point: see its docstring for the arguments

dependencies = ["torch", "torchvision", "segmentation_models_pytorch", "timm", "safetensors", "cv2", "numpy", "PIL"]

__all__ = ["dependencies", "segkit"]
