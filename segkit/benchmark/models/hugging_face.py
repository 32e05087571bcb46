"""A model of transformers' `AutoModelForSemanticSegmentation` with its image processor: a folder, or an id of the hub.

No code of the model's repository runs, and of weights only safetensors, which hold none, are read.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segkit.bands import BandArray
from segkit.benchmark.models.base import Altered, JudgedModel
from segkit.errors import InputError, import_extra, one_line

_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = (".ckpt", ".pth", ".pt", ".safetensors", ".onnx", ".xml", ".pt2", ".yaml")  # a path of these is no id


class HuggingFaceModel(JudgedModel):
    """The processor prepares an image, the network is timed with the resizing of its logits to the image's size.

    As `post_process_semantic_segmentation` of the processors does it: bilinear, `align_corners` False.

    Raises:
        InputError: transformers is not installed, or the folder holds no such model with all its weights.
    """

    def __init__(self, name: str, folder: Path, device: str) -> None:
        auto = import_extra("transformers", "hf")
        if not any(folder.glob("*.safetensors")):
            raise InputError(
                f"{name}: has no weights in safetensors, and others are not read, as they can hold code; "
                "save it again with save_pretrained"
            )
        try:
            self._processor = auto.AutoImageProcessor.from_pretrained(folder, **_LOCAL)
            network, told = auto.AutoModelForSemanticSegmentation.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, **_LOCAL
            )
        except Exception as error:  # the library has a class for each of its many reasons
            raise InputError(
                f"{name}: transformers cannot load it for semantic segmentation: {_said(error)}"
            ) from error
        missing = sorted(map(str, told.get("missing_keys", ())))
        if missing:
            raise InputError(f"{name}: lacks {len(missing)} weights ({missing[0]}, ...): it was saved for another task")
        super().__init__(name, _preprocessing(self._processor.to_dict()), device)
        self.network = network.to(self.device).eval()
        named = network.config.id2label
        self.class_names, self.num_classes = tuple(str(named[i]) for i in sorted(named)), len(named)
        self.options: dict[str, Any] = {}

    def prepare(self, image: BandArray, name: str) -> Tensor:
        """See base class."""
        asked = {"return_tensors": "pt", "input_data_format": "channels_last"} | self.options
        try:
            pixels: Tensor = self._processor(images=image, **asked)["pixel_values"]
        except Exception as error:
            raise InputError(f"{self.name}: its image processor refuses {name}: {_said(error)}") from error
        return pixels.to(self.device)

    def label(self, prepared: Tensor, size: tuple[int, int]) -> Tensor:
        """See base class."""
        assert self.network is not None
        try:
            with torch.inference_mode():
                logits = self.network(prepared).logits
        except Exception as error:
            raise InputError(f"{self.name}: raised {type(error).__name__}: {_said(error)}") from error
        return self.read(logits, size)

    def variants(self) -> dict[str, JudgedModel]:
        """See base class."""
        other, rescales = copy.copy(self), bool(getattr(self._processor, "do_rescale", False))
        other.options = {"do_rescale": not rescales}
        return {"BGR": Altered(self), f"values 0..{255 if rescales else 1} before mean and std": other}


def is_id(given: str) -> bool:
    """Whether this may be `owner/name` of the hub."""
    return _ID.fullmatch(given) is not None and not given.endswith(_WEIGHTS)


def folder_of(given: str) -> Path:
    """The folder of a model by its id, downloaded into Hugging Face's cache where it is not there yet.

    Raises:
        InputError: There is neither such a model nor a connection.
    """
    hub = import_extra("huggingface_hub", "hf")
    try:
        return Path(hub.snapshot_download(given, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        raise InputError(
            f"{given}: no such file, and not had from Hugging Face ({one_line(error, 80)}); correct the "
            "path or id, or give the folder of a copy"
        ) from error


def _preprocessing(processor: dict[str, Any]) -> dict[str, Any]:
    """What a processor says of itself, in the words of a row."""
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale") else 1
    normalizes = processor.get("do_normalize")
    return {
        "mean": list(np.atleast_1d(processor["image_mean"])) if normalizes else [0.0],
        "std": list(np.atleast_1d(processor["image_std"])) if normalizes else [1.0],
        "channels": "BGR" if processor.get("do_flip_channel_order") else "RGB",
        "range": [0, round(255 * factor, 6)],
        "size": _size_rule(processor),
    }


def _size_rule(processor: dict[str, Any]) -> str:
    parts = []
    for switch, key in (("do_resize", "size"), ("do_center_crop", "crop_size"), ("do_pad", "pad_size")):
        if processor.get(switch):
            given = processor.get(key) or {}
            parts.append(f"{switch[3:]} to " + (" x ".join(f"{k} {v}" for k, v in given.items() if v) or "its rule"))
    return " and ".join(parts) or "as the image"


def _said(error: Exception) -> str:
    return one_line(error, 200)


# That no code of the model's is run is said aloud, as the library would else ask at the terminal.
_LOCAL = {"local_files_only": True, "trust_remote_code": False}
