"""Recognition: which toolkit, network and encoder a file is of, and the one line for what is none of them."""

from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor

from segkit.errors import InputError
from segkit.models.encoders import build_encoder
from segkit.models.resnest import RESNEST_VARIANTS
from segkit.models.segmentation import FCN, DeepLabV3
from segkit.models.toolkits.inspection import Choices
from segkit.models.toolkits.recognise import recognise_encoder
from segkit.models.weights import inspect, read_checkpoint

TINY = "resnest14_tiny"


def shapes(name: str, **overrides) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        encoder = build_encoder(name, overrides=overrides)
    return {key.removeprefix("encoder.model."): tuple(v.shape) for key, v in encoder.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESNEST_VARIANTS)
def test_every_resnest_is_found_by_its_shapes(name: str) -> None:
    guess = recognise_encoder(shapes(name), "weights.pth")
    expected = "resnest50" if name == "resnest50_fast_2s1x64d" else name
    assert (guess.name, guess.overrides, guess.is_resnest) == (expected, {}, True)
    if expected == "resnest50":
        assert guess.notes == ("resnest50_fast_2s1x64d has the same shapes (--encoder)",)
        assert recognise_encoder(shapes(name), "resnest50_fast_2s1x64d-44938639.pth").name == "resnest50_fast_2s1x64d"


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet26", "resnet50", "resnet101c", "resnet50s", "resnet34d", "resnext50_32x4d"]
)
@pytest.mark.slow
def test_resnets_are_found_by_their_shapes(name: str) -> None:
    assert recognise_encoder(shapes(name)).name == name


def test_other_widths_and_depths_become_arguments() -> None:
    """mmseg has a ResNeSt-152, PyTorch-Encoding a fast -101; anyone may have a narrow one."""
    guess = recognise_encoder(shapes("resnest101", layers=(3, 8, 36, 3)))
    assert (guess.name, guess.overrides) == ("resnest101", {"layers": [3, 8, 36, 3]})
    guess = recognise_encoder(shapes("resnest101"), "resnest101_fast.pth")
    assert (guess.name, guess.overrides) == ("resnest101", {"avd_first": True})
    guess = recognise_encoder(shapes("resnest14", planes=(8, 16, 32, 64)) | {"conv1.0.weight": (32, 5)})
    assert (guess.overrides, guess.in_channels) == ({"planes": [8, 16, 32, 64]}, 5)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"layer1.0.conv3.weight": None}, r"cannot be recognised without layer1\.0\.conv3\.weight; name it"),
        ({"layer1.0.conv2.conv.weight": (24,)}, "cannot be recognised from parameters of these shapes"),
    ],
)
def test_shapes_that_say_nothing(change: dict, words: str) -> None:
    broken = {name: shape for name, shape in (shapes(TINY) | change).items() if shape is not None}
    with pytest.raises(InputError, match=words):
        recognise_encoder(broken)


@pytest.fixture(scope="module")
def encoding() -> dict[str, Tensor]:
    """A PyTorch-Encoding FCN, by its names."""
    state = {}
    for name, value in FCN(TINY, 5).state_dict().items():
        name = name.replace("aux_head.", "auxlayer.conv5.").replace("encoder.", "pretrained.")
        state[f"head.conv5.{name.removeprefix('head.')}" if name.startswith("head.") else name] = value
    return state


@pytest.fixture(scope="module")
def smp_state() -> dict[str, dict[str, Tensor]]:
    return {
        "native": smp.DeepLabV3("resnet34", encoder_weights=None, classes=2).state_dict(),
        "unknown": {
            f"{part}.mine.weight": torch.zeros(1) for part in ("encoder.layer1", "decoder", "segmentation_head")
        },
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, words",
    [
        ("native", r"a deeplabv3 over smp's own resnet34, .* supports only the one that smp calls tu-resnet34"),
        ("unknown", r"cannot be recognised"),
    ],
)
def test_smp_networks_that_segkit_does_not_build(tmp_path: Path, smp_state: dict, kind: str, words: str) -> None:
    assert_refused(tmp_path, smp_state[kind], words)


@pytest.mark.slow
def test_networks_of_other_toolkits_that_segkit_does_not_build(tmp_path: Path, encoding: dict) -> None:
    pooled = {f"backbone.{name}": torch.zeros(shape) for name, shape in shapes("resnet26d").items()}
    heads = ("convs.0.conv.weight", "conv_cat.conv.weight", "conv_seg.weight")
    pooled |= {f"decode_head.{name}": torch.zeros(2, 1, 1, 1) for name in heads}
    assert_refused(tmp_path, pooled, "mmsegmentation over resnet26d, whose dilated shortcuts have no pool there")
    pspnet = {f"decode_head.{name}": torch.zeros(1) for name in ("psp_modules.0.1.conv.weight", "conv_seg.weight")}
    assert_refused(
        tmp_path, pspnet | {"backbone.stem.0.weight": torch.zeros(1)}, r"does not have \(decode_head\.psp_modules"
    )
    deep = encoding | {"pretrained.conv1.0.weight": torch.zeros(8, 5, 3, 3)}
    assert_refused(tmp_path, deep, "a network for 5 input channels, whose normalisation is unknown")
    odd = {name: tensor for name, tensor in timm.create_model("resnet10t").state_dict().items()}
    assert_refused(tmp_path, odd, r"does not build: basic blocks \(1, 1, 1, 1\), stem of \(24, 32, 64\) channels")
    vit = {"patch_embed.proj.weight": torch.zeros(1), "blocks.0.attn.qkv.weight": torch.zeros(1)}
    assert_refused(
        tmp_path, vit, r"not from a toolkit that segkit knows .* its 2 parameters are patch_embed\.proj\.weight"
    )
    assert_refused(tmp_path, {"lr": 0.1}, r"holds no weights \(its keys: lr, \.\.\.\)")


def test_tampered_checkpoints(tmp_path: Path, encoding: dict) -> None:
    def changed(**change: Tensor | None) -> dict[str, Tensor]:
        new = encoding | {name.replace("__", "."): value for name, value in change.items()}
        return {name: value for name, value in new.items() if value is not None}

    last = "head__conv5__4__weight"
    assert_refused(tmp_path, changed(auxlayer__conv5__4__bias=None), r"1 missing \(first: aux_head\.4\.bias\)")
    assert_refused(tmp_path, changed(pretrained__extra=torch.zeros(1)), r"1 unexpected \(first: pretrained\.extra\)")
    clash = changed(head__conv5__4__bias=torch.zeros(6))
    assert_refused(tmp_path, clash, r"1 of another shape \(first: head\.conv5\.4\.bias \(6,\) where \(5,\) is needed")
    assert_refused(tmp_path, changed(**{last: None}), r"without the head's last convolution \(head\.4\.weight\)")


@pytest.mark.slow
def test_what_the_user_allows_passes(tmp_path: Path, encoding: dict) -> None:
    broken = {name: value for name, value in encoding.items() if not name.startswith("auxlayer.conv5.4")}
    broken |= {"extra": torch.zeros(1), "head.conv5.4.bias": torch.zeros(6)}
    torch.save(broken, tmp_path / "broken.pth")
    choices = Choices(allow_unmatched=("aux_head.4.*", "extra", "head.conv5.4.bias"))
    first, again = (read_checkpoint(tmp_path / "broken.pth", choices).build_network() for _ in range(2))
    expected = encoding["head.conv5.4.weight"]
    assert torch.equal(first.head[4].weight, expected) and torch.equal(first.head[4].bias, again.head[4].bias)
    with pytest.raises(InputError, match=r": 1 unexpected \(first: extra\);"):
        read_checkpoint(tmp_path / "broken.pth", Choices(allow_unmatched=("aux_head.*", "head.*")))


def test_choices_beat_what_the_file_implies(tmp_path: Path, encoding: dict) -> None:
    torch.save({name: value.half() for name, value in encoding.items()}, tmp_path / "fast_fcn.pth")
    choices = Choices(encoder=TINY, output_stride=16, dilation_convention="mmseg")
    checkpoint = read_checkpoint(tmp_path / "fast_fcn.pth", choices)
    assert (
        checkpoint.network["init_args"] | {"output_stride": 8, "dilation_convention": "authors"}
        == (FCN(TINY, 5).config["init_args"])
    )
    assert checkpoint.network["init_args"]["output_stride"] == 16
    assert checkpoint.card["source"]["dilation_convention"] == "mmseg"
    assert checkpoint.build_network().head[0].weight.dtype == torch.float32
    assert inspect(tmp_path / "fast_fcn.pth").config["init_args"]["encoder_args"] == {"avd_first": True}


def test_counters_of_old_files_are_filled_in(tmp_path: Path, encoding: dict) -> None:
    old = {name: value for name, value in encoding.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    found = inspect(tmp_path / "old.pth").keys
    assert len(found.filled) == len(encoding) - len(old) and not found.missing
    assert read_checkpoint(tmp_path / "old.pth").build_network().num_classes == 5


@pytest.mark.parametrize("meta_key, inner", [("CLASSES", False), ("classes", True)])
def test_classes_of_mmseg_files(tmp_path: Path, encoding: dict, meta_key: str, inner: bool) -> None:
    names = tuple("abcde")
    meta = {"dataset_meta": {meta_key: names}} if inner else {meta_key: names}
    torch.save({"state_dict": encoding, "meta": meta}, tmp_path / "named.pth")
    space = read_checkpoint(tmp_path / "named.pth").label_space
    assert space is not None and space["class_names"] == list("abcde") and len(space["palette"]) == 5
    torch.save({"state_dict": encoding, "meta": {meta_key: names[:3]}}, tmp_path / "few.pth")
    assert read_checkpoint(tmp_path / "few.pth").label_space is None
    assert "names 3 classes, but the network has 5" in inspect(tmp_path / "few.pth").notes[0]


def test_a_segkit_network_is_no_other_toolkit(tmp_path: Path) -> None:
    """Its bare state_dict has the names of nobody, and no config: it is refused, not guessed."""
    assert_refused(tmp_path, DeepLabV3(TINY, 3).state_dict(), "not from a toolkit that segkit knows")


def assert_refused(folder: Path, data: dict, words: str) -> None:
    torch.save(data, folder / "theirs.pth")
    with pytest.raises(InputError, match=words) as caught:
        read_checkpoint(folder / "theirs.pth")
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{folder / 'theirs.pth'}: ")
