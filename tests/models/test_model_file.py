"""Model files: every bit survives, the card too; and the one line for what is no model file."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from segkit.errors import InputError
from segkit.models.checkpoint import Checkpoint
from segkit.models.segmentation import FCN
from segkit.models.weight_files import is_model_file, read_model_file, write_model_file

NORMALIZATION = {"mean": [0.1, 1 / 3, 0.3], "std": [0.5, 0.25, 0.2]}
SPACE = {"class_names": ["a", "bäume"], "palette": [[1, 2, 3], [4, 5, 6]], "table": [0, 1, *[255] * 254]}
CARD = {
    "segkit": "9.9",
    "protocol": {"name": "whole", "scales": [0.5, 1.0], "window": None},
    "scores": [{"mIoU": 1 / 3, "pixel_accuracy": None}],
    "source": {"file": "last.ckpt"},
    "versions": {"torch": "2"},
    "license": "of one's own",
}


def checkpoint(state_dict: dict[str, torch.Tensor] | None = None) -> Checkpoint:
    network = FCN("resnest14_tiny", 2)
    parameters = {"network": network.config, "normalization": NORMALIZATION, "label_space": SPACE, "optim": {"lr": 1}}
    return Checkpoint(parameters, network.state_dict() if state_dict is None else state_dict, CARD)


def test_card_and_weights_come_back_as_they_went_in(tmp_path: Path) -> None:
    written = checkpoint()
    write_model_file(tmp_path / "new folder" / "a.safetensors", written)
    read = read_model_file(tmp_path / "new folder" / "a.safetensors")
    assert read.network == written.network and read.normalization == NORMALIZATION and read.label_space == SPACE
    assert read.card == CARD | {"format": 1}
    assert "optim" not in read.hyper_parameters  # how it was trained stays behind
    assert read.state_dict.keys() == written.state_dict.keys()
    assert all(torch.equal(read.state_dict[name], value) for name, value in written.state_dict.items())
    x = torch.randn(1, 3, 33, 49)
    with torch.no_grad():
        assert torch.equal(read.build_network()(x)["out"], written.build_network()(x)["out"])
    assert [p.name for p in (tmp_path / "new folder").iterdir()] == ["a.safetensors"]  # nothing temporary is left


def test_every_bit_survives_and_other_readers_see_the_same(tmp_path: Path) -> None:
    shared = torch.arange(12, dtype=torch.float32)
    tensors = {
        "float32": torch.tensor([0.1, -0.0, float("inf"), float("nan"), 1e-45]),
        "bfloat16": torch.randn(5).bfloat16(),
        "float16": torch.randn(5).half(),
        "float64": torch.randn(3, dtype=torch.float64),
        "num_batches_tracked": torch.tensor(2**53 + 1),
        "empty": torch.zeros(0, 3),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 4).t(),
        "expanded": torch.randn(1, 3).expand(4, 3),
        "first_view": shared[:8],
        "second_view": shared[4:],
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    write_model_file(tmp_path / "a.safetensors", checkpoint(tensors))
    for read in (read_model_file(tmp_path / "a.safetensors").state_dict, load_file(tmp_path / "a.safetensors")):
        assert read.keys() == tensors.keys()
        for name, value in tensors.items():
            assert read[name].dtype == value.dtype and read[name].shape == value.shape, name
            bits = value.detach().contiguous().reshape(-1).view(torch.uint8)
            assert torch.equal(read[name].contiguous().reshape(-1).view(torch.uint8), bits), name


def test_the_same_model_gives_the_same_bytes_and_replaces_the_old_file(tmp_path: Path) -> None:
    model = checkpoint()
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_text("old")
        write_model_file(tmp_path / f"{name}.safetensors", model)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_card_that_is_no_json_writes_nothing(tmp_path: Path) -> None:
    broken = Checkpoint(checkpoint().hyper_parameters, {}, {"scores": [{"mIoU": float("nan")}]})
    with pytest.raises(ValueError, match="JSON"):
        write_model_file(tmp_path / "a.safetensors", broken)
    assert not list(tmp_path.iterdir())


def with_card(path: Path, card: object) -> Path:
    save_file(
        {"x": torch.ones(3)},
        path,
        None if card is None else {"segkit": card if isinstance(card, str) else json.dumps(card)},
    )
    return path


GOOD = {"format": 1, "network": {"class_path": "x", "init_args": {}}, "normalization": NORMALIZATION}


@pytest.mark.parametrize(
    "card, words",
    [
        (None, "without segkit's card"),
        ("{", "its card is damaged"),
        ("[" * 100_000, "its card is damaged"),
        ("[1]", "its card is damaged"),
        ({}, "its card is damaged"),
        (GOOD | {"format": "1"}, "its card is damaged"),
        (GOOD | {"format": 2, "segkit": "7.0"}, "format 2, written by segkit 7.0; .* install a newer segkit"),
        ({"format": 1, "normalization": NORMALIZATION}, "no network with class_path and init_args"),
        (GOOD | {"normalization": {"mean": [0]}}, "no normalization with mean and std"),
    ],
)
def test_a_card_that_says_too_little_is_refused_in_one_line(tmp_path: Path, card: object, words: str) -> None:
    path = with_card(tmp_path / "a.safetensors", card)
    with pytest.raises(InputError, match=words) as caught:
        read_model_file(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert is_model_file(path) == (card is not None)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 3000, -1])
def test_a_truncated_file_is_refused_in_one_line(tmp_path: Path, kept: int) -> None:
    write_model_file(tmp_path / "whole.safetensors", checkpoint())
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:kept])
    with pytest.raises(
        InputError, match=r"cut\.safetensors: (not a complete safetensors file|the file is empty)"
    ) as caught:
        read_model_file(tmp_path / "cut.safetensors")
    assert "\n" not in str(caught.value)


def test_what_is_a_model_file(tmp_path: Path) -> None:
    write_model_file(tmp_path / "good.anything", checkpoint())
    assert is_model_file(tmp_path / "good.anything")
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    (tmp_path / "text").write_text("no weights here")
    (tmp_path / "empty").touch()
    (tmp_path / "huge").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    (tmp_path / "list").write_bytes(struct.pack("<Q", 2) + b"[]")
    for name in ("a.pt", "text", "empty", "huge", "list", "absent", "."):
        assert not is_model_file(tmp_path / name), name


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_model_file(tmp_path / "absent")
    with pytest.raises(InputError, match="is a folder"):
        read_model_file(tmp_path)


def test_a_card_whose_network_does_not_fit_the_weights(tmp_path: Path) -> None:
    good = checkpoint()
    network = {**good.network, "init_args": good.network["init_args"] | {"num_classes": 7}}
    write_model_file(
        tmp_path / "a.safetensors", Checkpoint(good.hyper_parameters | {"network": network}, good.state_dict)
    )
    with pytest.raises(InputError, match=r"the weights do not fit FCN: .* of another shape") as caught:
        read_model_file(tmp_path / "a.safetensors").build_network()
    assert "\n" not in str(caught.value)
