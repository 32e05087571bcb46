# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = [
#     "mmsegmentation==1.2.2", "mmcv-lite==2.1.0", "mmengine==0.10.7", "ftfy", "regex", "setuptools<81",
#     "torch", "torchvision", "numpy",
# ]
# ///
"""Writes mmseg_networks.npz: what mmsegmentation 1.2.2's ResNeSt, ResNet and whole networks give for formula weights.

    uv run --no-project tests/goldens/make_mmseg_networks.py

The file has outputs and names only. Weights and images are made from `formula`, here and in the test, from each
parameter's name. The networks are small (a quarter of the published widths, few blocks); their code is mmseg's own.
"""

# ruff: noqa: E402  (the stand-ins come before mmseg)

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import mmseg_stub

mmseg_stub.install()

import numpy as np
import torch
from formula import formula_weights, image
from mmseg.models.backbones import resnest
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules

STRIDES = {
    8: {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)},
    16: {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)},
}
ASPP_DILATIONS = {8: (1, 12, 24, 36), 16: (1, 6, 12, 18)}


class SmallResNeSt(resnest.ResNeSt):
    """mmseg's own, with a depth of six blocks."""

    arch_settings = {14: (resnest.Bottleneck, (1, 2, 2, 1))}  # noqa: RUF012


def backbone(output_stride: int, **arguments) -> dict:
    common = {"norm_cfg": {"type": "BN"}, "out_indices": (0, 1, 2, 3), "contract_dilation": True, "style": "pytorch"}
    return common | STRIDES[output_stride] | arguments


def small_resnest(output_stride: int) -> dict:
    """As mmseg's configs (resnest_s101-d8_*), at a quarter of the width."""
    return backbone(
        output_stride, type="SmallResNeSt", depth=14, base_channels=16, stem_channels=16, radix=2, reduction_factor=4,
        avg_down_stride=True,
    )  # fmt: skip


def network(head: str, encoder: dict, channels: int, output_stride: int) -> dict:
    """As mmseg's configs/_base_/models/{deeplabv3,fcn}_r50-d8.py."""
    common = {"dropout_ratio": 0.1, "num_classes": 5, "norm_cfg": {"type": "BN"}, "align_corners": False}
    heads = {
        "ASPPHead": {"type": "ASPPHead", "dilations": ASPP_DILATIONS[output_stride]},
        "FCNHead": {"type": "FCNHead", "num_convs": 2, "concat_input": True},
    }
    return {
        "type": "EncoderDecoder",
        "backbone": encoder,
        "decode_head": {"in_channels": channels, "in_index": 3, "channels": channels // 4, **heads[head], **common},
        "auxiliary_head": {
            "type": "FCNHead", "in_channels": channels // 2, "in_index": 2, "channels": channels // 8, "num_convs": 1,
            "concat_input": False, **common,
        },
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }  # fmt: skip


def load_formula(module: torch.nn.Module) -> None:
    own = module.state_dict()
    weights = formula_weights({name: tuple(value.shape) for name, value in own.items()})
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    module.eval()


@torch.inference_mode()
def main() -> None:
    MODELS.register_module(module=SmallResNeSt)
    register_all_modules()
    x = torch.from_numpy(image())
    golden: dict[str, np.ndarray] = {}
    for output_stride in (8, 16):
        encoder = MODELS.build(small_resnest(output_stride))
        load_formula(encoder)
        features = encoder(x)
        golden |= {f"stage{i + 1}_os{output_stride}": features[i].numpy() for i in (2, 3)}
        for head in ("ASPPHead", "FCNHead"):
            golden |= whole(
                network(head, small_resnest(output_stride), 512, output_stride), f"{head}_os{output_stride}", x
            )
    resnet = backbone(8, type="ResNetV1c", depth=50)
    golden |= whole(network("FCNHead", resnet, 2048, 8), "FCNHead_resnet50c", x)
    np.savez_compressed(Path(__file__).parent / "mmseg_networks.npz", **golden)


def whole(config: dict, name: str, x: torch.Tensor) -> dict[str, np.ndarray]:
    """Logits of head and auxiliary head, and the names and shapes of the checkpoint."""
    model = MODELS.build(config)
    load_formula(model)
    features = model.extract_feat(x)
    shapes = [f"{key} {' '.join(map(str, value.shape))}" for key, value in model.state_dict().items()]
    return {
        f"{name}_logits": model.decode_head(features).numpy(),
        f"{name}_aux": model.auxiliary_head(features).numpy(),
        f"{name}_names": np.frombuffer("\n".join(shapes).encode(), np.uint8),
    }


if __name__ == "__main__":
    main()
