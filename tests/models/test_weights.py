"""Checkpoints and encoder files: what loads, and the one line for what does not."""

import pickle
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from segkit.errors import InputError
from segkit.models.encoders import build_encoder
from segkit.models.resnest import RESNEST_VARIANTS, ResNeSt
from segkit.models.segmentation import FCN, DeepLabV3
from segkit.models.weight_files import read_torch_file, write_model_file
from segkit.models.weights import load_encoder_weights, read_checkpoint


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


def save_as_mmengine(path: Path) -> None:
    """A checkpoint as mmengine's runner writes it: with objects of mmengine beside the weights."""
    package, module = ModuleType("mmengine.logging"), ModuleType("mmengine.logging.history_buffer")
    kind = type("HistoryBuffer", (), {"__module__": "mmengine.logging.history_buffer"})
    module.HistoryBuffer = kind
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("mmengine", ModuleType("mmengine")),
            (package.__name__, package),
            (kind.__module__, module),
        ):
            patch.setitem(sys.modules, name, value)
        torch.save({"state_dict": {"backbone.a": torch.ones(1)}, "message_hub": {"loss": kind()}}, path)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    network = DeepLabV3("resnest14_tiny", 5)
    data = {
        "hyper_parameters": {"network": network.config, "normalization": {"mean": [0.5] * 3, "std": [0.5] * 3}},
        "state_dict": {f"network.{name}": value for name, value in network.state_dict().items()},
    }
    torch.save(data, tmp_path / "good.ckpt")
    return tmp_path / "good.ckpt"


def test_round_trip(checkpoint: Path) -> None:
    read = read_checkpoint(checkpoint)
    network = read.build_network()
    assert not network.training and network.num_classes == 5 and read.label_space is None
    assert all(torch.equal(network.state_dict()[k], v) for k, v in read.state_dict.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, words",
    [
        ("absent.ckpt", "no such file"),
        ("folder", "is a folder"),
        ("empty.ckpt", "the file is empty"),
        ("truncated.ckpt", "truncated"),
        ("text.ckpt", "another kind of file"),
        ("code.ckpt", "would run code"),
        ("legacy_code.pkl", "not a torch checkpoint|would run code"),
        ("whole_module.pt", "would run code"),
        ("list.pt", "holds a list"),
        ("other.pt", "not from a toolkit that segkit knows"),
        (
            "mmengine.pth",
            r"would run code \(mmengine\.logging\.history_buffer\.HistoryBuffer\).*\{\"CLASSES\": \[\.\.\.\]",
        ),
        ("no_tensors.pth", r"holds no weights \(its keys: epoch"),
        ("encoder.pth", "an encoder without a head \\(resnest14_tiny\\)"),
        ("absent.safetensors", "no such file"),
        ("empty.safetensors", "the file is empty"),
        ("truncated.safetensors", "not a complete safetensors file"),
        ("text.safetensors", "not a complete safetensors file"),
        ("torch.safetensors", "not a complete safetensors file"),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_refused_in_one_line(tmp_path: Path, checkpoint: Path, name: str, words: str) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "truncated.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    (tmp_path / "text.ckpt").write_text("no weights here\n" * 50)
    torch.save({"state_dict": Payload(ran)}, tmp_path / "code.ckpt")
    (tmp_path / "legacy_code.pkl").write_bytes(pickle.dumps(Payload(ran)))
    torch.save(DeepLabV3("resnest14_tiny", 5), tmp_path / "whole_module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "other.pt")
    save_as_mmengine(tmp_path / "mmengine.pth")
    torch.save({"epoch": 3}, tmp_path / "no_tensors.pth")
    torch.save(build_encoder("resnest14_tiny").state_dict(), tmp_path / "encoder.pth")
    (tmp_path / "empty.safetensors").touch()
    whole = save(build_encoder("resnest14_tiny").state_dict())
    (tmp_path / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.safetensors").write_text("no weights here\n" * 50)
    (tmp_path / "torch.safetensors").write_bytes(checkpoint.read_bytes())
    with pytest.raises(InputError, match=words) as caught:
        read_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    assert not ran.exists()


def test_weights_of_another_network_are_refused(checkpoint: Path) -> None:
    data = torch.load(checkpoint, weights_only=True)
    data["hyper_parameters"]["network"]["init_args"]["num_classes"] = 6
    torch.save(data, checkpoint)
    with pytest.raises(InputError, match=r"of another shape \(first: aux_head\.4\.bias"):
        read_checkpoint(checkpoint).build_network()


def test_encoder_file_with_classifier(tmp_path: Path) -> None:
    source = ResNeSt(**RESNEST_VARIANTS["resnest14_tiny"], num_classes=10)
    torch.save(source.state_dict(), tmp_path / "imagenet.pth")
    encoder = build_encoder("resnest14_tiny")
    load_encoder_weights(encoder, tmp_path / "imagenet.pth")
    assert all(torch.equal(source.state_dict()[name], value) for name, value in encoder.state_dict().items())


def test_encoder_file_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    torch.save(build_encoder("resnest14").state_dict(), tmp_path / "wide.pth")
    encoder = build_encoder("resnest14_tiny")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.raises(InputError, match=r"wide\.pth: the weights do not fit ResNeSt: .* of another shape"):
        load_encoder_weights(encoder, tmp_path / "wide.pth")
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_encoder_of_segkit_files(tmp_path: Path, checkpoint: Path) -> None:
    """A whole checkpoint's encoder, a model file's, and a plain safetensors file."""
    read = read_checkpoint(checkpoint)
    write_model_file(tmp_path / "model.safetensors", read)
    source = read.build_network().encoder.state_dict()
    save_file(source, tmp_path / "encoder.safetensors")
    for path in (checkpoint, tmp_path / "model.safetensors", tmp_path / "encoder.safetensors"):
        encoder = build_encoder("resnest14_tiny")
        load_encoder_weights(encoder, path)
        assert all(torch.equal(source[name], value) for name, value in encoder.state_dict().items())
    assert read_checkpoint(tmp_path / "model.safetensors").network == read.network


@pytest.mark.slow
def test_encoder_of_a_timm_comparator(tmp_path: Path) -> None:
    """Its own state_dict and a network's; that of a deeper one is refused, though every name of ours is in it."""
    source = FCN("resnet18", 2)
    torch.save(source.encoder.state_dict(), tmp_path / "own.pth")
    save_file(source.encoder.encoder.model.state_dict(), tmp_path / "timm.safetensors")
    for name in ("own.pth", "timm.safetensors"):
        encoder = build_encoder("resnet18")
        load_encoder_weights(encoder, tmp_path / name)
        assert all(torch.equal(source.encoder.state_dict()[k], value) for k, value in encoder.state_dict().items())
    torch.save(build_encoder("resnet34").state_dict(), tmp_path / "deep.pth")
    with pytest.raises(InputError, match="do not fit TimmEncoder: 96 unexpected"):
        load_encoder_weights(build_encoder("resnet18"), tmp_path / "deep.pth")


def test_counters_may_be_absent(tmp_path: Path) -> None:
    state = build_encoder("resnest14_tiny").state_dict()
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    encoder = build_encoder("resnest14_tiny")
    load_encoder_weights(encoder, tmp_path / "old.pth")
    assert all(torch.equal(encoder.state_dict()[name], value) for name, value in old.items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_numpy_scalars_beside_the_weights_are_plain_data(tmp_path: Path, checkpoint: Path, kind: type) -> None:
    """PyTorch-Encoding's trainer stores its best score as one; nothing of theirs is run."""
    data = torch.load(checkpoint, weights_only=True) | {"best_pred": kind(1)}
    torch.save(data, checkpoint)
    assert read_checkpoint(checkpoint).network == data["hyper_parameters"]["network"]
    torch.save(data, checkpoint, _use_new_zipfile_serialization=False)  # as before PyTorch 1.6: names can be replaced
    checkpoint.write_bytes(checkpoint.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_torch_file(checkpoint)["best_pred"] == 1
