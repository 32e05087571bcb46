"""A network begun from another one's file: tensors by name and shape, rows of the classifier by class name."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from segkit.bands import Bands
from segkit.errors import InputError
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table, numbered_space
from segkit.models.checkpoint import Checkpoint
from segkit.models.encoders import build_encoder
from segkit.models.finetune import load_matching
from segkit.models.resnest import RESNEST_VARIANTS, ResNeSt
from segkit.models.segmentation import FCN, DeepLabV3, MMSegDeepLabV3, MMSegFCN, SegmentationModel
from segkit.models.weight_files import write_model_file
from segkit.ops.normalize import Normalization

TINY = "resnest14_tiny"
THEIRS = ("road", "tree", "sky", "car")
OURS = ("Sky", "lamp", " road ", "CAR", "person")
X = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(5))


def save(network: SegmentationModel, path: Path, names: Sequence[str] | None) -> Path:
    """As `segkit fit` writes it, or a model file."""
    space = names and LabelSpace(tuple(names), distinct_palette(len(names)), identity_table(len(names))).to_dict()
    channels = network.config["init_args"]["in_channels"]
    names_of_bands = tuple(f"band {i}" for i in range(channels))
    bands = None if channels == 3 else Bands(names_of_bands, "uint8", (0.0,) * channels, (255.0,) * channels)
    normalization = Normalization((0.5,) * channels, (0.5,) * channels, bands)
    known = {
        "network": network.config,
        "normalization": normalization.to_dict(),
        "label_space": space,
    }
    if path.suffix == ".safetensors":
        write_model_file(path, Checkpoint(known, network.state_dict()))
    else:
        weights = {f"network.{name}": value for name, value in network.state_dict().items()}
        torch.save({"hyper_parameters": known, "state_dict": weights}, path)
    return path


def randomise(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * (0.5 if name.endswith("var") else 0.1))
    return network


@torch.inference_mode()
def logits(network: SegmentationModel) -> tuple[Tensor, Tensor | None]:
    features = network.eval().encoder(X)
    return network.head(features[-1]), network.aux_head and network.aux_head(features[-2])


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(network.state_dict())


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in second)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("network_class", [DeepLabV3, MMSegFCN])
def test_rows_go_to_the_classes_of_their_name(tmp_path: Path, network_class: type, suffix: str) -> None:
    theirs, ours = randomise(network_class(TINY, 4)), randomise(network_class(TINY, 5))
    before = weights_of(ours)
    report = load_matching(ours, save(theirs, tmp_path / f"x{suffix}", THEIRS), OURS)
    for mine, other in zip(logits(ours), logits(theirs), strict=True):
        torch.testing.assert_close(mine[:, [0, 2, 3]], other[:, [2, 0, 3]], rtol=0, atol=1e-6)
    layer = "head.block.4" if network_class is DeepLabV3 else "head.classify.1"
    for part in ("weight", "bias"):
        assert torch.equal(ours.state_dict()[f"{layer}.{part}"][[1, 4]], before[f"{layer}.{part}"][[1, 4]])
    assert report.kept == ("Sky", " road ", "CAR") and report.fresh == ("lamp", "person") and not report.missing
    lines = str(report).split("\n")
    assert len(lines) == 2 and lines[0].endswith(f"{report.total - 4} of {report.total} tensors taken")
    assert lines[1] == "classifier: 3 of 5 classes kept by name (Sky,  road , CAR); 2 start afresh (lamp, person)"


@pytest.mark.slow
def test_the_same_classes_give_the_same_network(tmp_path: Path) -> None:
    theirs, ours = randomise(DeepLabV3(TINY, 4)), DeepLabV3(TINY, 4)
    report = load_matching(ours, save(theirs, tmp_path / "x.ckpt", THEIRS), THEIRS)
    assert equal(ours.state_dict(), theirs.state_dict())
    assert report.taken == report.total and report.kept == THEIRS and not report.warnings


@pytest.mark.slow
@pytest.mark.parametrize(
    "theirs, ours, reason",
    [
        (None, THEIRS, "the file has no class names"),
        (numbered_space(4).class_names, numbered_space(4).class_names, "the file has no class names"),
        (THEIRS, None, "the network's classes have no names"),
        (THEIRS, ("a", "b", "c", "d"), r"none of them is among the file's \(road, tree, sky, ...\)"),
    ],
)
def test_without_common_names_the_classifier_starts_anew(tmp_path: Path, theirs, ours, reason: str) -> None:
    source, network = randomise(DeepLabV3(TINY, 4)), DeepLabV3(TINY, 4)
    before = weights_of(network)
    report = load_matching(network, save(source, tmp_path / "x.ckpt", theirs), ours)
    for name, value in network.state_dict().items():
        anew = name.startswith(("head.block.4.", "aux_head.4."))
        assert torch.equal(value, before[name] if anew else source.state_dict()[name]), name
    assert not report.kept and len(report.fresh) == 4 and report.taken == report.total - 4
    assert re.search(f"all 4 classes start afresh: {reason}", str(report))


def test_auxiliary_head_absent_in_the_file_or_the_network(tmp_path: Path) -> None:
    with_aux, without = randomise(DeepLabV3(TINY, 4)), randomise(DeepLabV3(TINY, 4, aux=False))
    network = DeepLabV3(TINY, 4)
    before = weights_of(network.aux_head)
    report = load_matching(network, save(without, tmp_path / "a.ckpt", THEIRS), THEIRS)
    assert equal(network.aux_head.state_dict(), before) and torch.equal(logits(network)[0], logits(without)[0])
    assert report.kept == THEIRS and report.missing[0] == "aux_head.0.weight" and not report.unused
    report = load_matching(without, save(with_aux, tmp_path / "b.ckpt", THEIRS), THEIRS)
    assert torch.equal(logits(without)[0], logits(with_aux)[0])
    assert not report.missing and report.unused[0] == "aux_head.0.weight"
    assert "of the file are not used (aux_head.0.weight, aux_head.1.weight, aux_head.1.bias, ...)" in str(report)


def test_a_classifier_over_other_features_starts_anew(tmp_path: Path) -> None:
    """mmseg's two heads end in a classifier of one name and shape: its rows mean nothing over the other's features."""
    source, network = randomise(MMSegFCN(TINY, 4)), MMSegDeepLabV3(TINY, 4)
    before = weights_of(network.head)
    report = load_matching(network, save(source, tmp_path / "x.ckpt", THEIRS), THEIRS)
    assert equal(network.head.state_dict(), before)
    assert equal(network.encoder.state_dict(), source.encoder.state_dict())
    assert equal(network.aux_head.state_dict(), source.aux_head.state_dict())  # its rows are still good
    assert report.reason == f"the file's head is a different one (MMSegFCN over {TINY})"
    assert {name.split(".")[0] for name in report.missing} == {"head"}


def test_another_toolkits_checkpoint(tmp_path: Path) -> None:
    """mmsegmentation's, with its names of layers and classes, restated by hand."""
    source, network = randomise(MMSegFCN(TINY, 4)), MMSegFCN(TINY, 5)
    meta = {"CLASSES": THEIRS, "PALETTE": [[i, i, i] for i in range(4)]}
    renamed = {mmseg_name(name): value for name, value in source.state_dict().items()}
    torch.save({"meta": meta, "state_dict": renamed}, tmp_path / "iter.pth")
    report = load_matching(network, tmp_path / "iter.pth", OURS)
    torch.testing.assert_close(logits(network)[0][:, [0, 2, 3]], logits(source)[0][:, [2, 0, 3]], rtol=0, atol=1e-6)
    assert report.kept == ("Sky", " road ", "CAR") and not report.missing and not report.unused


def test_pure_encoder_files(tmp_path: Path) -> None:
    source = randomise(ResNeSt(**RESNEST_VARIANTS[TINY], num_classes=10))
    torch.save(source.state_dict(), tmp_path / "imagenet.pth")
    encoder = {name: value for name, value in source.state_dict().items() if not name.startswith("fc.")}
    for network in (DeepLabV3(TINY, 4), FCN(TINY, 4, pooled_norm="frozen")):
        head = weights_of(network.head)
        report = load_matching(network, tmp_path / "imagenet.pth", THEIRS)
        assert equal(network.encoder.state_dict(), encoder) and equal(network.head.state_dict(), head)
        assert report.reason == "the file holds only an encoder" and not report.unused and not report.warnings
    grouped = DeepLabV3(TINY, 4, pooled_norm="group")
    report = load_matching(grouped, tmp_path / "imagenet.pth", THEIRS)
    assert all(torch.equal(value, encoder[name]) for name, value in grouped.encoder.state_dict().items())
    assert not report.unused


@pytest.mark.slow
@pytest.mark.parametrize("name, stride", [("resnet18", 8), ("convnext_atto", 32)])
def test_encoder_files_of_timm(tmp_path: Path, name: str, stride: int) -> None:
    """One that is recognised, and one that is not."""
    source, network = randomise(build_encoder(name, stride)), FCN(name, 4, output_stride=stride)
    torch.save(source.encoder.model.state_dict(), tmp_path / "timm.pth")
    report = load_matching(network, tmp_path / "timm.pth")
    assert equal(network.encoder.state_dict(), source.state_dict())
    assert report.taken == len([n for n, _ in source.state_dict().items() if not n.endswith("tracked")])


def test_another_number_of_input_channels(tmp_path: Path) -> None:
    """RGB weights are adapted to other bands as by timm, and it is said; of other bands' weights nothing is guessed."""
    source = randomise(DeepLabV3(TINY, 4))
    path, name = save(source, tmp_path / "x.ckpt", THEIRS), "encoder.conv1.0.weight"
    for channels in (1, 4, 5):
        network = DeepLabV3(TINY, 4, in_channels=channels)
        report = load_matching(network, path, THEIRS)
        expected = adapt_input_conv(channels, source.state_dict()[name].clone())
        torch.testing.assert_close(network.state_dict()[name], expected, rtol=0, atol=1e-6)
        assert report.taken == report.total and report.kept == THEIRS and not report.unused
        assert f"weights of RGB adapted to {channels} band" in str(report).split("\n")[2]
    back = load_matching(source, save(network, tmp_path / "5.ckpt", THEIRS), THEIRS)
    assert back.missing == back.unused == (name,) and not back.adapted
    assert str(back).count("1 of the ") == 2


@pytest.mark.slow
def test_an_imagenet_encoder_is_adapted_to_other_bands(tmp_path: Path) -> None:
    source, network = ResNeSt(**RESNEST_VARIANTS[TINY], num_classes=10), DeepLabV3(TINY, 4, in_channels=4)
    torch.save(source.state_dict(), tmp_path / "imagenet.pth")
    report = load_matching(network, tmp_path / "imagenet.pth", THEIRS)
    expected = adapt_input_conv(4, source.state_dict()["conv1.0.weight"].clone())
    torch.testing.assert_close(network.state_dict()["encoder.conv1.0.weight"], expected, rtol=0, atol=1e-6)
    assert len(report.adapted) == 1 and report.fresh == THEIRS


def test_a_file_without_class_names_may_be_told_them(tmp_path: Path) -> None:
    source, network = randomise(DeepLabV3(TINY, 4)), DeepLabV3(TINY, 5)
    path = save(source, tmp_path / "x.ckpt", None)
    assert load_matching(DeepLabV3(TINY, 5), path, OURS, THEIRS[:3]).reason == "the file has no class names"
    report = load_matching(network, path, OURS, THEIRS)
    assert report.kept == ("Sky", " road ", "CAR")
    torch.testing.assert_close(logits(network)[0][:, [0, 2, 3]], logits(source)[0][:, [2, 0, 3]], rtol=0, atol=1e-6)


def test_another_dilation_is_said(tmp_path: Path) -> None:
    path = save(DeepLabV3(TINY, 4, dilation_convention="timm"), tmp_path / "x.ckpt", THEIRS)
    report = load_matching(DeepLabV3(TINY, 4), path, THEIRS)
    assert report.taken == report.total
    assert (
        str(report)
        .split("\n")[-1]
        .startswith("warning: the file's encoder was dilated with the convention 'timm' and the network's")
    )
    assert not load_matching(DeepLabV3(TINY, 4, output_stride=32), path, THEIRS).warnings  # nothing is dilated


@pytest.mark.slow
def test_refused_and_nothing_changed(tmp_path: Path) -> None:
    wide = save(DeepLabV3("resnest14", 4), tmp_path / "wide.ckpt", THEIRS)
    torch.save(build_encoder("resnest14").state_dict(), tmp_path / "wide.pth")
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "other.pt")
    network = DeepLabV3(TINY, 4)
    before = weights_of(network)
    for path, words in (
        (
            wide,
            rf"wide\.ckpt: holds DeepLabV3 over resnest14, none of whose convolutions fits .* encoder, {TINY}; give",
        ),
        (tmp_path / "wide.pth", r"holds an encoder \(resnest14\), none of whose convolutions fits"),
        (tmp_path / "other.pt", "not from a toolkit that segkit knows"),
        (tmp_path / "absent.ckpt", "no such file"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            load_matching(network, path, THEIRS)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="5 names for a network of 4 classes"):
        load_matching(network, wide, OURS)
    assert equal(network.state_dict(), before)


def mmseg_name(name: str) -> str:
    for ours, theirs in (
        ("encoder.conv1.", "backbone.stem."),
        ("encoder.bn1.", "backbone.stem.7."),
        ("encoder.", "backbone."),
        ("aux_head.classify.1.", "auxiliary_head.conv_seg."),
        ("aux_head.convs.0.0.", "auxiliary_head.convs.0.conv."),
        ("aux_head.convs.0.1.", "auxiliary_head.convs.0.bn."),
        ("head.classify.1.", "decode_head.conv_seg."),
        ("head.convs.0.0.", "decode_head.convs.0.conv."),
        ("head.convs.0.1.", "decode_head.convs.0.bn."),
        ("head.convs.1.0.", "decode_head.convs.1.conv."),
        ("head.convs.1.1.", "decode_head.convs.1.bn."),
        ("head.join.0.", "decode_head.conv_cat.conv."),
        ("head.join.1.", "decode_head.conv_cat.bn."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise AssertionError(name)
