# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = [
#     "mmsegmentation==1.2.2", "mmcv-lite==2.1.0", "mmengine==0.10.7", "ftfy", "regex", "setuptools<81",
#     "mit-semseg==1.0.0", "torch", "torchvision", "numpy", "pillow",
# ]
# ///
"""Writes resize.npz: what mmcv, mmsegmentation and CSAIL's mit_semseg themselves make of images at test time.

Run: uv run --no-project tests/goldens/make_resize.py    (uv must be allowed to build mit-semseg from source)

1. Sizes: mmcv's `Resize` and mit_semseg's `ValDataset` on hundreds of (height, width).
2. Pixels: the 8-bit images that they hand to the network.
3. Scores: mmsegmentation's own EncoderDecoder (whole, slide), SegTTAModel, and mit_semseg's SegmentationModule with the
   loop of its eval.py, around a network of a few weights, which are in the file too.
"""

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import mmseg_stub
import numpy as np
import torch
from PIL import Image
from torch import nn

mmseg_stub.install()

from mit_semseg.dataset import ValDataset  # noqa: E402
from mit_semseg.models.models import C1, SegmentationModule  # noqa: E402
from mmcv.transforms import Compose, Resize  # noqa: E402
from mmengine.config import ConfigDict  # noqa: E402
from mmengine.dataset import pseudo_collate  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402
from mmseg.utils import register_all_modules  # noqa: E402

RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
IMAGES = {"small": (61, 83), "large": (530, 701), "tall": (93, 47)}
STEP = 17  # scores are kept on a grid of pixels that far apart


def make_image(height: int, width: int) -> np.ndarray:
    """An image of edges and slopes, (H, W, 3) uint8; tests/inference/test_named_protocols.py makes the same."""
    y, x, c = np.mgrid[:height, :width, :3]
    return ((x * 3 + y * 5 + c * 40 + (x * y) // 37 + 90 * ((x // 11 + y // 7) % 2)) % 256).astype(np.uint8)


def weights() -> dict[str, torch.Tensor]:
    """Of a network with stride 8 and 4 classes: three convolutions, CSAIL's 3x3, the classifiers of both."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"a": (8, 3, 5, 5), "b": (8, 8, 3, 3), "c": (8, 8, 3, 3), "csail": (2, 8, 3, 3)}
    shapes |= {"mmseg_out": (4, 8, 1, 1), "csail_out": (4, 2, 1, 1)}
    made = {k: torch.randn(s, generator=generator) * 2 / (s[1] * s[2] * s[3]) ** 0.5 for k, s in shapes.items()}
    return made | {f"{name}_bias": torch.randn(4, generator=generator) for name in ("mmseg_out", "csail_out")}


@MODELS.register_module()
class TinyEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = weights()

    def forward(self, x: torch.Tensor, return_feature_maps: bool = False) -> list[torch.Tensor]:
        for name in "abc":
            x = torch.relu(
                nn.functional.conv2d(x, self.weights[name], stride=2, padding=self.weights[name].shape[-1] // 2)
            )
        return [x]


def mmcv_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """By (2048, 512), (2048, 1024), (2049, 1025), then by the six ratios of 1.x and, as 0.x, of (2048, 512)."""
    blank = np.zeros(size, np.uint8)
    rules = [{"scale": limits} for limits in ((2048, 512), (2048, 1024), (2049, 1025))]
    rules += [{"scale_factor": ratio} for ratio in RATIOS]
    rules += [{"scale": (int(2048 * ratio), int(512 * ratio))} for ratio in RATIOS]
    return [Resize(**rule, keep_ratio=True).transform({"img": blank})["img"].shape[:2] for rule in rules]


def csail_data(images: list[np.ndarray], folder: Path) -> ValDataset:
    records = []
    for i, rgb in enumerate(images):
        Image.fromarray(rgb).save(folder / f"{i}.png")
        Image.fromarray(np.ones(rgb.shape[:2], np.uint8)).save(folder / f"{i}_label.png")
        records.append({"fpath_img": f"{i}.png", "fpath_segm": f"{i}_label.png"})
    options = SimpleNamespace(imgSizes=(300, 375, 450, 525, 600), imgMaxSize=1000, padding_constant=8)
    return ValDataset(str(folder), records, options)


def csail_scores(dataset: ValDataset, index: int) -> torch.Tensor:
    """The loop of CSAIL's eval.py."""
    decoder = C1(num_class=4, fc_dim=8, use_softmax=True).eval()
    made = weights()
    decoder.cbr[0].weight.data, decoder.cbr[1].weight.data[:] = made["csail"], (1 + decoder.cbr[1].eps) ** 0.5
    decoder.conv_last.weight.data, decoder.conv_last.bias.data = made["csail_out"], made["csail_out_bias"]
    module = SegmentationModule(TinyEncoder(), decoder, None).eval()
    item = dataset[index]
    size = tuple(item["seg_label"].shape[-2:])
    total = torch.zeros(1, 4, *size)
    for resized in item["img_data"]:
        total = total + module({"img_data": resized}, segSize=size) / len(item["img_data"])
    return total[0]


def mmseg_model(test_cfg: dict, align_corners: bool) -> nn.Module:
    statistics = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
    head = {"type": "FCNHead", "in_channels": 8, "channels": 8, "num_convs": 0, "concat_input": False, "in_index": 0}
    config = {
        "type": "EncoderDecoder",
        "data_preprocessor": {"type": "SegDataPreProcessor", **statistics, "bgr_to_rgb": True},
        "backbone": {"type": "TinyEncoder"},
        "decode_head": head | {"num_classes": 4, "dropout_ratio": 0, "align_corners": align_corners},
        "test_cfg": test_cfg,
    }
    model = MODELS.build(ConfigDict(config)).eval()
    made = weights()
    model.decode_head.conv_seg.weight.data = made["mmseg_out"]
    model.decode_head.conv_seg.bias.data = made["mmseg_out_bias"]
    return model


def mmseg_scores(rgb: np.ndarray, limits: tuple[int, int], test_cfg: dict, align_corners: bool) -> torch.Tensor:
    """Single scale: the test_pipeline of the configs, then `test_step`; logits (4, H, W)."""
    steps = [{"type": "LoadImageFromNDArray"}, {"type": "Resize", "scale": limits, "keep_ratio": True}]
    data = Compose([*steps, {"type": "PackSegInputs"}])({"img": rgb[..., ::-1].copy()})
    return mmseg_model(test_cfg, align_corners).test_step(pseudo_collate([data]))[0].seg_logits.data


def mmseg_tta(rgb: np.ndarray, resizes: list[dict], align_corners: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The tta_pipeline of the configs through SegTTAModel: its labels, and the mean softmax that it forms them of."""
    flips = [{"type": "RandomFlip", "prob": p, "direction": "horizontal"} for p in (0.0, 1.0)]
    resizes = [{"type": "Resize", "keep_ratio": True, **resize} for resize in resizes]
    augment = {"type": "TestTimeAug", "transforms": [resizes, flips, [{"type": "PackSegInputs"}]]}
    data = Compose([{"type": "LoadImageFromNDArray"}, augment])({"img": rgb[..., ::-1].copy(), "img_path": None})
    module = mmseg_model({"mode": "whole"}, align_corners)
    merged = MODELS.build({"type": "SegTTAModel", "module": module}).test_step(pseudo_collate([data]))
    views = zip(data["inputs"], data["data_samples"], strict=True)
    outputs = [module.test_step({"inputs": [i], "data_samples": [s]})[0].seg_logits.data for i, s in views]
    return merged[0].pred_sem_seg.data, torch.stack([o.softmax(0) for o in outputs]).mean(0)


def main() -> None:
    register_all_modules()
    init_default_scope("mmseg")
    generator = np.random.default_rng(0)
    sizes = np.unique(
        np.concatenate([generator.integers(1, 3000, (250, 2)), generator.integers(1, 40, (40, 2))]), axis=0
    )
    found: dict[str, np.ndarray] = {"sizes": sizes, "step": np.array(STEP)}
    found["mmcv_sizes"] = np.array([mmcv_sizes(tuple(size)) for size in sizes.tolist()])
    found |= {f"weight_{name}": value.numpy() for name, value in weights().items()}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        usable = [size for size in sizes.tolist() if min(size) * 60 > max(size)]  # Pillow refuses sides of 0
        dataset = csail_data([np.zeros((*size, 3), np.uint8) for size in usable], Path(folder))
        dataset.img_transform = lambda image: torch.zeros(1, *image.size[::-1])
        found["csail_from"] = np.array(usable)
        found["csail_sizes"] = np.array([[v.shape[-2:] for v in dataset[i]["img_data"]] for i in range(len(usable))])
        record_images(found, Path(folder))
    np.savez_compressed(Path(__file__).with_name("resize.npz"), **{k: narrow(v) for k, v in found.items()})
    print(json.dumps({k: list(v.shape) for k, v in found.items()}))


def record_images(found: dict[str, np.ndarray], folder: Path) -> None:
    dataset = csail_data([make_image(*size) for size in IMAGES.values()], folder)
    for i, (name, size) in enumerate(IMAGES.items()):
        rgb = make_image(*size)
        found[f"csail-ms_{name}"] = csail_scores(dataset, i)[:, ::STEP, ::STEP].numpy()
        whole, slide = {"mode": "whole"}, {"mode": "slide", "crop_size": (769, 769), "stride": (513, 513)}
        singles = {"mmseg-ss": ((2048, 512), whole, False), "mmseg-ss-cityscapes": ((2048, 1024), whole, False)}
        for rule, arguments in (singles | {"mmseg-slide": ((2049, 1025), slide, True)}).items():
            found[f"{rule}_{name}"] = mmseg_scores(rgb, *arguments)[:, ::STEP, ::STEP].numpy()
        for rule, resizes in {
            "mmseg-ms": [{"scale_factor": ratio} for ratio in RATIOS],
            "mmseg-0x-ms": [{"scale": (int(2048 * ratio), int(512 * ratio))} for ratio in RATIOS],
        }.items():
            labels, mean = mmseg_tta(rgb, resizes, align_corners=False)
            found[f"{rule}_{name}"] = mean[:, ::STEP, ::STEP].numpy()
            found[f"{rule}_{name}_labels"] = labels[..., ::3, ::3].numpy()
    rgb = make_image(*IMAGES["small"])
    for scale in (0.75, 1.25):
        found[f"opencv_{scale}"] = Resize(scale_factor=scale, keep_ratio=True).transform({"img": rgb})["img"]
    dataset.imgSizes = (32, 70)
    dataset.img_transform = lambda image: torch.from_numpy(np.array(image))
    for i, resized in enumerate(dataset[0]["img_data"]):
        found[f"pillow_{i}"] = resized[0].numpy()


def narrow(values: np.ndarray) -> np.ndarray:
    """Integers as small as they fit, floats as they are."""
    if values.dtype.kind not in "iu":
        return values
    return values.astype(np.uint8 if values.max() < 256 else np.uint16 if values.max() < 2**16 else np.int32)


if __name__ == "__main__":
    main()
