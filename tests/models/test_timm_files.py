"""timm's own published files as encoder weights: what stands behind the last feature is left out, nothing else is."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import timm
import torch
from torch import Tensor, nn

from segkit.errors import InputError
from segkit.models.segmentation import FCN
from segkit.models.timm_encoder import TimmEncoder
from segkit.models.weights import load_encoder_weights
from segkit.ops.meta import ShapesOnly
from segkit.training.module import SegmentationModule
from segkit.training.network import InitialWeights

# The smallest model of each family (module) of timm that can be dilated, and what is behind its last feature.
FAMILIES = {
    "halonet_h1": {"head"},
    "test_byobnet": {"head"},
    "test_convnext": {"head"},
    "cs3darknet_s": {"head"},
    "cspnext_tiny": {"head"},
    "test_efficientnet": {"conv_head", "bn2", "classifier"},
    "tf_efficientnet_lite0": {"conv_head", "bn2", "classifier"},
    "hardcorenas_b": {"conv_head", "classifier"},
    "inception_next_atto": {"head"},
    "lcnet_035": {"conv_head", "classifier"},
    "mobilenetv4_conv_small_035": {"conv_head", "norm_head", "classifier"},
    "mobilevit_xxs": {"head"},
    "test_nfnet": {"head"},
    "regnetx_002": {"head"},
    "res2next50": {"fc"},
    "test_resnet": {"fc"},
    "resnetv2_18": {"norm", "head"},
    "rexnet_100": {"features", "head"},
    "skresnet18": {"fc"},
}


def whole(name: str) -> dict[str, Tensor]:
    """A whole network's parameters, as timm publishes them, with random numbers."""
    generator = torch.Generator().manual_seed(0)
    with ShapesOnly():
        shapes = timm.create_model(name).state_dict()
    return {
        name: torch.rand(t.shape, generator=generator) if t.is_floating_point() else torch.tensor(3)
        for name, t in shapes.items()
    }


def unfilled(name: str) -> nn.Module:
    with ShapesOnly():
        return TimmEncoder(name, 8).to_empty(device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_timms_file(name: str, tmp_path: Path) -> None:
    file, encoder = whole(name), unfilled(name)
    torch.save(file, tmp_path / "timm.pth")
    left_out = load_encoder_weights(encoder, tmp_path / "timm.pth")
    assert {tensor.split(".")[0] for tensor in left_out} == FAMILIES[name]
    assert len(encoder.state_dict()) + len(left_out) == len(file)
    taken = {name: tensor for name, tensor in file.items() if name not in left_out}
    for ours, theirs in zip(encoder.state_dict().values(), taken.values(), strict=True):
        assert torch.equal(ours, theirs)


NAME = "test_efficientnet"
INSIDE = "blocks.2.0.conv_pwl.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({INSIDE: None}, f"1 missing .first: encoder.model.{INSIDE}"),
        ({INSIDE: torch.ones(2)}, f"1 of another shape .first: encoder.model.{INSIDE}"),
        ({"blocks.2.9.conv.weight": torch.ones(2)}, "1 unexpected .first: encoder.model.blocks.2.9.conv.weight"),
        ({"elsewhere": torch.ones(2)}, "1 unexpected .first: encoder.model.elsewhere"),
        ({INSIDE: torch.full((), torch.nan)}, "cannot be computed with: 1 .first: encoder.model.blocks"),
    ],
)
def test_what_is_wrong_with_the_encoder_itself_is_an_error(
    change: dict[str, Tensor | None], words: str, tmp_path: Path
) -> None:
    file = whole(NAME) | change
    torch.save({name: tensor for name, tensor in file.items() if tensor is not None}, tmp_path / "timm.pth")
    encoder = unfilled(NAME)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(InputError, match=words) as caught:
        load_encoder_weights(encoder, tmp_path / "timm.pth")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[n], t) or t.isnan().any() for n, t in encoder.state_dict().items())


def test_training_says_in_one_line_what_it_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(whole(NAME), tmp_path / "timm.pth")
    weights = InitialWeights(str(tmp_path / "timm.pth"))
    with caplog.at_level("INFO"):
        weights.setup(pl.Trainer(logger=False), SegmentationModule(FCN(NAME, 2)), "fit")
    (line,) = [record.getMessage() for record in caplog.records if "timm.pth" in record.getMessage()]
    assert line.endswith(
        "timm.pth; 8 tensors behind the last feature left out (conv_head.weight, bn2.weight, bn2.bias, ...)"
    )
