"""Checkpoints and encoder files: what loads, and the one line for what does not."""

import pickle
from pathlib import Path

import pytest
import torch

from segkit.errors import InputError
from segkit.models.encoders import build_encoder
from segkit.models.segmentation import DeepLabV3
from segkit.models.weights import load_encoder_weights, read_checkpoint


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    network = DeepLabV3("resnest14_tiny", 5)
    data = {
        "hyper_parameters": {"network": network.config, "normalization": {"mean": [0.5], "std": [0.5]}},
        "state_dict": {f"network.{name}": value for name, value in network.state_dict().items()},
    }
    torch.save(data, tmp_path / "good.ckpt")
    return tmp_path / "good.ckpt"


def test_round_trip(checkpoint: Path) -> None:
    read = read_checkpoint(checkpoint)
    network = read.build_network()
    assert not network.training and network.num_classes == 5 and read.label_space is None
    assert all(torch.equal(network.state_dict()[k], v) for k, v in read.state_dict.items())


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
        ("other.pt", "not a segkit checkpoint"),
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
    source = build_encoder("resnest14_tiny", overrides={"num_classes": 10})
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
