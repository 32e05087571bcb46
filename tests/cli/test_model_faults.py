"""Every command that reads weights: what it says of those that nothing can be computed with, and of hostile files."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint

from segkit.cli import main
from segkit.errors import InputError
from segkit.models.checkpoint import Checkpoint
from segkit.models.finetune import load_matching
from segkit.models.segmentation import FCN, SegmentationModel
from segkit.models.weight_files import write_model_file
from segkit.models.weights import read_checkpoint

DATA = ["--data", "SyntheticDataModule", "--data.root", "absent"]


@pytest.fixture(scope="module")
def network() -> SegmentationModel:
    torch.manual_seed(0)
    return FCN("resnest14_tiny", 3)


def changed(folder: Path, network: SegmentationModel, change: dict[str, Any]) -> str:
    """A checkpoint with other tensors."""
    path = write_checkpoint(folder / "weights.ckpt", network, None)
    data = torch.load(path, weights_only=True)
    data["state_dict"] |= {f"network.{name}": tensor for name, tensor in change.items()}
    torch.save(data, path)
    return str(path)


@pytest.fixture
def broken(network: SegmentationModel, tmp_path: Path) -> str:
    state = network.state_dict()
    nan, inf = state["encoder.layer1.0.conv1.weight"].clone(), state["head.1.running_var"].clone()
    nan.view(-1)[:3], inf[0] = torch.nan, torch.inf
    return changed(tmp_path, network, {"encoder.layer1.0.conv1.weight": nan, "head.1.running_var": inf})


FIRST = "cannot be computed with: 2 (first: encoder.layer1.0.conv1.weight, 3 of 192 values NaN or infinite)"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["infer", "x.png", "--output", "labels", "--checkpoint"],
        ["export"],
        ["weights", "convert", "-o", "new.safetensors"],
        ["weights", "recalibrate", "--data", "data.yaml", "-o", "new.safetensors"],
        ["test", *DATA, "--ckpt_path"],
        ["predict", *DATA, "--ckpt_path"],
        ["validate", *DATA, "--ckpt_path"],
        ["fit", *DATA, "--ckpt_path"],
    ],
    ids=lambda command: command[0] if command[0] != "weights" else command[1],
)
def test_nan_is_refused_by_whatever_computes(
    command: list[str], broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert main([*command, broken]) == 2
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1 and FIRST in captured
    assert set(tmp_path.iterdir()) == before  # nothing was written


def test_inspect_lists_what_is_unusable(broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "inspect", broken]) == 1
    rows = capsys.readouterr().out.splitlines()
    at = next(i for i, row in enumerate(rows) if row.startswith("unusable"))
    assert rows[at].split() == ["unusable", "2"]
    assert rows[at + 1].endswith("encoder.layer1.0.conv1.weight: 3 of 192 values NaN or infinite")
    assert rows[at + 2].endswith("head.1.running_var: 1 of 96 values NaN or infinite")


def test_fine_tuning_does_not_begin_from_nan(broken: str) -> None:
    with pytest.raises(InputError, match="cannot be computed with: 2"):
        load_matching(FCN("resnest14_tiny", 3), broken)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint8])
def test_other_types_are_no_weights(dtype: torch.dtype, network: SegmentationModel, tmp_path: Path) -> None:
    path = changed(tmp_path, network, {"head.4.bias": network.state_dict()["head.4.bias"].to(dtype)})
    with pytest.raises(InputError, match=f"1 .first: head.4.bias, of {str(dtype)[6:]}, not floating point"):
        read_checkpoint(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_all_floating_types_and_integer_counters_are(
    dtype: torch.dtype, network: SegmentationModel, tmp_path: Path
) -> None:
    halves = {name: t.to(dtype) for name, t in network.state_dict().items() if t.is_floating_point()}
    counter = {"head.1.num_batches_tracked": torch.tensor(3, dtype=torch.int32)}
    built = read_checkpoint(changed(tmp_path, network, halves | counter)).build_network()
    assert {p.dtype for p in built.parameters()} == {torch.float32}
    assert built.state_dict()["head.1.num_batches_tracked"] == 3


def test_a_sum_that_overflows_is_not_taken_for_infinite_weights(network: SegmentationModel, tmp_path: Path) -> None:
    path = changed(tmp_path, network, {"head.4.bias": torch.full((3,), 3e38)})
    assert read_checkpoint(path).build_network().state_dict()["head.4.bias"].isfinite().all()


CODE = "open({!r}, 'w').close()\nclass Network:\n    pass\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fit", "test", "predict"])
@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
@pytest.mark.parametrize("where", ["network", "encoder_args", "optim"])
def test_no_file_makes_a_command_import_what_it_names(
    command: str,
    kind: str,
    where: str,
    network: SegmentationModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The parser imports the module of every class that a default names, and instantiates those of `dict[str, Any]`."""
    (tmp_path / "hostile.py").write_text(CODE.format(str(tmp_path / "ran")))
    monkeypatch.syspath_prepend(tmp_path)
    path = write_checkpoint(tmp_path / "weights.ckpt", network, None)
    named = {"class_path": "hostile.Network", "init_args": {}}
    data = torch.load(path, weights_only=True)
    parts = data["hyper_parameters"]
    if where == "network":
        parts["network"] = named
    elif where == "encoder_args":
        parts["network"] = {**network.config, "init_args": {**network.config["init_args"], where: {"width": named}}}
    elif kind == "ckpt":
        parts["optim"] = {"lr": named}
    else:
        pytest.skip("a model file says nothing of the optimiser")
    torch.save(data, path)
    if kind == "safetensors":
        read = {name: parts[name] for name in ("network", "normalization", "label_space")}
        path = tmp_path / "weights.safetensors"
        write_model_file(path, Checkpoint(read, network.state_dict()))
    assert main([command, *DATA, "--ckpt_path", str(path)]) == 2
    captured = capsys.readouterr().err
    refused = "imports nothing" if where == "network" else "damaged, or not a segkit file"
    assert captured.count("\n") == 1 and refused in captured
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_are_as_readable_as_the_umask_has_it(
    umask: int, mode: int, network: SegmentationModel, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "weights.ckpt", network, None)
    before = os.umask(umask)
    try:
        assert main(["export", str(path), "-o", str(tmp_path / "new.safetensors")]) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.safetensors").stat().st_mode) == mode
