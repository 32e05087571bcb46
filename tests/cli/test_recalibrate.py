"""`segkit weights recalibrate` through the front door, on five small training images."""

import copy
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import yaml
from checkpoints import MEAN, STD, write_checkpoint
from safetensors.torch import save_file
from torch import Tensor, nn

import segkit
from segkit.cli import main
from segkit.data.dataset import SegmentationDataset
from segkit.data.sets.folder import FolderDataModule
from segkit.files import write_text
from segkit.io import write_png
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models import weight_files
from segkit.models.checkpoint import Checkpoint
from segkit.models.segmentation import FCN
from segkit.models.weight_files import write_model_file
from segkit.models.weights import read_checkpoint
from segkit.ops.normalize import Normalization, normalize

CLASSES = ("road", "tree", "sky")
SIZES = {"base_size": 48, "crop_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, the same described three ways, and own.ckpt with statistics ten times too large."""
    folder = tmp_path_factory.mktemp("recalibrate")
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 1)):
        for i in range(count):
            image = rng.integers(0, 60 + 40 * i, (8, 10, 3)).repeat(5, 0).repeat(5, 1)
            write_png(folder / f"data/images/{split}/{i}.png", image.astype(np.uint8))
            write_png(folder / f"data/labels/{split}/{i}.png", rng.integers(0, 3, (40, 50), np.uint8))
    write_text(folder / "data/classes.txt", "\n".join(CLASSES) + "\n")
    arguments = {"root": str(folder / "data"), "batch_size": 2, "num_workers": 0, **SIZES}
    data = {"class_path": "segkit.data.sets.folder.FolderDataModule", "init_args": arguments}
    write_text(folder / "data.yaml", yaml.safe_dump(data))
    write_text(folder / "recipe.yaml", yaml.safe_dump({"data": "data.yaml", "model": {"network": "FCN"}}))
    write_text(folder / "config.yaml", yaml.safe_dump({"seed_everything": 0, "data": data, "trainer": {}}))
    save_ckpt(folder / "own.ckpt", CLASSES)
    save_ckpt(folder / "other.ckpt", CLASSES[::-1])
    return folder


def save_ckpt(path: Path, classes: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    network = FCN("resnest14_tiny", 3, output_stride=16)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.add_(0.1).mul_(10)
            module.running_var.mul_(10)
    write_checkpoint(path, network, LabelSpace(classes, distinct_palette(3), identity_table(3)))


def run(folder: Path, output: Path, *more: str, file: str = "own.ckpt", data: str = "recipe.yaml") -> int:
    given = [str(folder / file), "--data", str(folder / data), "-o", str(output), "--device", "cpu"]
    return main(["weights", "recalibrate", *given, *more])


def crops(folder: Path, batch_size: int = 2) -> Iterator[Tensor]:
    """The normalised batches that training draws, epoch after epoch."""
    data = FolderDataModule(folder / "data", batch_size=batch_size, num_workers=0, **SIZES)
    data.setup("fit")
    loader = data.train_dataloader()
    for epoch in range(100):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            yield normalize(batch["image"], Normalization(tuple(MEAN), tuple(STD)))


def statistics_by_hand(network: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """What the running statistics should be, float64, from the inputs of the norms."""
    sums: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> None:
        values = x.double().transpose(0, 1).flatten(1)  # (B, C, H, W) -> (C, B*H*W)
        for key, value in (("running_mean", values.mean(1)), ("running_var", values.var(1))):
            sums[f"{name}.{key}"] = sums.get(f"{name}.{key}", 0) + value / len(batches)

    network = copy.deepcopy(network).train()
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, given, n=name: add(n, given[0]))
    with torch.no_grad():
        for batch in batches:
            network(batch)
    return sums


def test_statistics_are_those_of_the_trainings_crops(folder: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "new/model.safetensors"
    assert run(folder, output, "--batches", "5") == 0  # two batches an epoch: into the third
    before, after = read_checkpoint(folder / "own.ckpt"), read_checkpoint(output)
    expected = statistics_by_hand(before.build_network(), list(islice(crops(folder), 5)))
    assert expected.keys() <= after.state_dict.keys() == before.state_dict.keys()
    for name, value in after.state_dict.items():
        if name in expected:
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5)
        elif not name.endswith("num_batches_tracked"):
            assert torch.equal(value, before.state_dict[name])
    shown = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in capsys.readouterr().out.splitlines()}
    norms = len(expected) // 2
    assert shown["recalibrated"] == f"{norms} batch norms over 10 images (5 batches of 2 crops, data train)"
    for kind, key in (("mean", "running_mean"), ("variance", "running_var")):
        moved = {
            name: float((value - before.state_dict[name]).norm() / before.state_dict[name].norm())
            for name, value in after.state_dict.items()
            if name.endswith(key)
        }
        largest = max(moved, key=lambda name: moved[name])
        assert shown[kind] == f"moved at most by {100 * moved[largest]:.3g} %: {largest.removesuffix(f'.{key}')}"
    assert shown["written"].startswith(str(output))


def test_predictions_agree_with_the_batchs_own_statistics_again(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "model.safetensors", "--batches", "1", "--data.batch_size", "5") == 0
    before, after = (read_checkpoint(path).build_network() for path in (folder / "own.ckpt", *tmp_path.iterdir()))
    batch, values = next(crops(folder, 5)), {}
    training = copy.deepcopy(before).train()
    for name, module in training.named_modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda m, x, n=name: values.update({n: x[0].numel() / m.num_features}))
    with torch.no_grad():
        wanted = training(batch)["out"]
        assert (before(batch)["out"] - wanted).norm() > 0.9 * wanted.norm()
        assert (after(batch)["out"] - wanted).norm() < 0.3 * wanted.norm()
        # What is left is that a batch is normalised by its biased variance: 4/5 of the other after pooling to 1x1.
        for name, n in values.items():
            after.get_submodule(name).running_var.mul_((n - 1) / n)
        torch.testing.assert_close(after(batch)["out"], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_all_descriptions_of_the_data_give_the_same(folder: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "moved.yaml", (folder / "config.yaml").read_text().replace(str(folder / "data"), "nowhere"))
    for name, more in (("recipe", []), ("config", []), ("data", []), ("moved", ["--data.root", str(folder / "data")])):
        where = tmp_path if name == "moved" else folder
        output = tmp_path / f"{name}.safetensors"
        assert run(folder, output, *more, "--batches", "1", data=str(where / f"{name}.yaml")) == 0
    contents = {path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    assert len(contents) == 1


def test_the_card_is_converts_and_says_what_was_done(folder: Path, tmp_path: Path, capsys) -> None:
    checkpoint = read_checkpoint(folder / "own.ckpt")
    card = {"scores": [{"mIoU": 0.5}], "protocol": {"name": "whole"}, "source": {"file": "first.ckpt"}}
    file = tmp_path / "scored.safetensors"
    write_model_file(file, Checkpoint(checkpoint.hyper_parameters, checkpoint.state_dict, card))
    assert run(folder, tmp_path / "new.safetensors", "--batches", "1", file=str(file)) == 0
    assert main(["weights", "convert", str(file), "-o", str(tmp_path / "converted.safetensors")]) == 0
    new, converted = (read_checkpoint(tmp_path / f"{name}.safetensors") for name in ("new", "converted"))
    done = {"recalibrated": {"batches": 1, "batch_size": 2, "data": "data", "split": "train"}}
    assert new.card == converted.card | {"scores": [], "source": converted.card["source"] | done}
    assert len(new.card["source"]["sha256"]) == 64 and new.hyper_parameters == converted.hyper_parameters
    assert segkit.load(tmp_path / "new.safetensors", "cpu").class_names == CLASSES
    capsys.readouterr()
    assert main(["weights", "inspect", str(tmp_path / "new.safetensors")]) == 0
    assert ["recalibrated", "1", "batch", "of", "2", "crops,", "data", "train"] in map(
        str.split, capsys.readouterr().out.splitlines()
    )


@pytest.mark.slow
def test_another_toolkits_network(folder: Path, tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    theirs = smp.DeepLabV3("tu-resnest14d", encoder_weights=None, classes=3)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "smp.ckpt")
    output = tmp_path / "model.safetensors"
    assert run(folder, output, "--batches", "1", file=str(tmp_path / "smp.ckpt")) == 0
    before, after = read_checkpoint(tmp_path / "smp.ckpt"), read_checkpoint(output)
    assert "from zero" in capsys.readouterr().out  # the means that a new network has
    assert after.label_space is None and after.card["source"]["toolkit"] == "smp"
    moved = {name for name, value in after.state_dict.items() if not torch.equal(value, before.state_dict[name])}
    assert len(moved) == 90 and all(name.split(".")[-1].startswith(("running_", "num_batches")) for name in moved)


def test_an_interrupt_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    read, seen = SegmentationDataset.__getitem__, []

    def stopped(self: SegmentationDataset, key: object) -> object:
        seen.append(key)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return read(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationDataset, "__getitem__", stopped)
        assert run(folder, tmp_path / "out/model.safetensors", "--batches", "5") == 130
    assert "interrupted" in capsys.readouterr().err and not list(tmp_path.iterdir())

    def half(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(dict(list(tensors.items())[:2]), path, metadata)
        raise KeyboardInterrupt

    monkeypatch.setattr(weight_files, "save_file", half)
    write_text(tmp_path / "model.safetensors", "mine")
    assert run(folder, tmp_path / "model.safetensors", "--batches", "1", "--overwrite") == 130
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_text() == "mine"


def test_an_output_is_replaced_only_by_overwrite(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    output = tmp_path / "model.safetensors"
    write_text(output, "mine")
    with monkeypatch.context() as patch:
        patch.setattr("segkit.models.weights.read_checkpoint", None)  # refused before anything is read
        patch.setattr("segkit.cli.weights.recalibrate.read_checkpoint", None)
        assert run(folder, output) == 2
    assert "exists already" in capsys.readouterr().err and output.read_text() == "mine"
    assert run(folder, output, "--batches", "1", "--overwrite") == 0
    assert read_checkpoint(output).build_network().num_classes == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "file", "words"),
    [
        (["--batches", "0"], "own.ckpt", "--batches: '0' is not a whole number from 1"),
        (["--data.batch_size", "1"], "own.ckpt", "batch_size is 1; one crop is no batch"),
        (
            ["--data.batch_size", "6"],
            "own.ckpt",
            "data has 5 training images, fewer than a batch of 6; lower --data.batch_size",
        ),
        (["-o", "model.pt"], "own.ckpt", "a name that ends in .safetensors"),
        (["--data", "none.yaml"], "own.ckpt", "none.yaml: no such file"),
        (["--data", "single.yaml"], "own.ckpt", "batch_size is 1; one crop is no batch, add --data.batch_size N"),
        (["--data.root", "none"], "own.ckpt", "none: no such data folder"),
        ([], "absent.ckpt", "absent.ckpt: no such file"),
        ([], "other.ckpt", "has the classes of data (DATA) in another order"),
    ],
)
def test_wrong_input_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch, capsys, more: list[str], file: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "single.yaml", (folder / "data.yaml").read_text().replace("size: 2", "size: 1"))
    assert run(folder, tmp_path / "model.safetensors", *more, file=file) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("segkit weights: error: ") and words.replace("DATA", str(folder / "data")) in error
    assert [path.name for path in tmp_path.iterdir()] == ["single.yaml"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(folder: Path, tmp_path: Path, capsys) -> None:
    assert run(folder, tmp_path / "model.safetensors", "--device", "cuda") == 2
    assert "--device cuda: PyTorch finds no GPU here" in capsys.readouterr().err
