"""Every option of Lightning's Trainer is tried once, or stands below with the reason why it is refused or not tried."""

import csv
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch.nn import functional as F

from segkit.cli import main
from segkit.files import write_text
from segkit.inference.segmenter import load
from segkit.io import read_image, write_png
from segkit.training.module import SegmentationModule

Run = Callable[..., int]

# Those of one row are tried in one run.
ACCEPTED = {
    "shorter": "limit_train_batches=1 limit_val_batches=1 max_epochs=2 min_epochs=1 check_val_every_n_epoch=2",
    "by steps": "max_steps=1 max_epochs=-1 min_steps=1 val_check_interval=1 num_sanity_val_steps=1 "
    "max_time=01:00:00:00",
    "overfitting": "overfit_batches=1 reload_dataloaders_every_n_epochs=1 use_distributed_sampler=false",
    "arithmetic": "accumulate_grad_batches=2 gradient_clip_val=1 gradient_clip_algorithm=value deterministic=warn "
    "detect_anomaly=true inference_mode=false benchmark=false precision=bf16-true",
    "machine": "accelerator=cpu devices=1 num_nodes=1 strategy=auto sync_batchnorm=true",
    "talk": "logger=false log_every_n_steps=2 enable_progress_bar=false enable_model_summary=false profiler=simple "
    "enable_autolog_hparams=false",
    "trial": "fast_dev_run=1 limit_test_batches=1 limit_predict_batches=1",
    "parts": "callbacks=EarlyStopping callbacks.monitor=val/loss plugins=MixedPrecision plugins.precision=bf16-mixed "
    "plugins.device=cpu",
}

# Option and value, and the words of the line that refuses it.
REFUSED = {
    "enable_checkpointing=false": "trainer.enable_checkpointing=False: a run that keeps no checkpoint is lost",
    "barebones=true": "trainer.barebones=True: it turns off checkpoints, logs and checks, which segkit always has",
    "model_registry=name": "trainer.model_registry=name: has no effect",
    "default_root_dir=elsewhere": "trainer.default_root_dir=elsewhere: has no effect: a run writes where --run_dir",
    "limit_train_batches=0": "trainer.limit_train_batches is 0, so nothing would be trained",
    "max_epochs=0": "trainer.max_epochs is 0, so nothing would be trained",
    "accumulate_grad_batches=0": "trainer.accumulate_grad_batches is 0; allowed is 1 or more",
    "val_check_interval=100": "`val_check_interval` (100) must be less than or equal to the number of the training",
    "limit_train_batches=0.1": "0.1 * 2 < 1. Please increase the `limit_train_batches` argument",
    "max_time=soon": "is not a valid duration",
    "callbacks=EarlyStopping callbacks.monitor=val/los": "EarlyStopping monitors 'val/los', which is not logged; did "
    "you mean val/loss? allowed: train/loss",
    "callbacks=EarlyStopping callbacks.monitor=val/loss limit_val_batches=0": "(nothing is validated: limit_val",
    "callbacks=ModelCheckpoint callbacks.monitor=mIoU": "ModelCheckpoint monitors 'mIoU', which is not logged; did you",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images to train on, two to validate, and a recipe."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for i in range(count):
            image = generator.integers(0, 256, (40, 48 + 8 * i, 3), np.uint8)
            mask = np.where(image[..., 0] > 240, 255, image[..., 1] // 100).astype(np.uint8)
            write_png(folder / f"images/{split}/{i}.png", image)
            write_png(folder / f"labels/{split}/{i}.png", mask)
    write_text(folder / "classes.txt", "dark\nmiddle\nlight\n")
    data = {"root": str(folder), "batch_size": 2, "base_size": 48, "crop_size": 32, "num_workers": 0}
    network = {"class_path": "FCN", "init_args": {"encoder": "resnest14_tiny", "output_stride": 16}}
    recipe = {
        "data": {"class_path": "FolderDataModule", "init_args": data},
        "model": {"network": network},
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "log_every_n_steps": 1},
    }
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe))
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, command: str = "fit") -> int:
        return main([command, "--config", str(folder / "recipe.yaml"), "--run_dir", str(tmp_path / "run"), *arguments])

    return call


def typed(options: str) -> list[str]:
    return [f"--trainer.{option}" for option in options.split()]


def test_every_option_of_the_trainer_stands_here() -> None:
    named = {option.split("=")[0].split(".")[0] for row in (*ACCEPTED.values(), *REFUSED) for option in row.split()}
    assert named == set(inspect.signature(pl.Trainer).parameters)


@pytest.mark.slow
@pytest.mark.parametrize("row", ACCEPTED)
def test_options_that_are_taken(run: Run, row: str) -> None:
    assert run(*typed(ACCEPTED[row])) == 0


@pytest.mark.slow
@pytest.mark.parametrize("options", REFUSED)
def test_options_that_are_refused_take_one_line(run: Run, options: str, tmp_path: Path, capsys) -> None:
    assert run(*typed(options)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("segkit fit: error: trainer") and REFUSED[options] in last
    assert not list((tmp_path).rglob("*.ckpt"))


@pytest.mark.slow
def test_a_limit_is_a_number_of_images(run: Run, tmp_path: Path) -> None:
    """The integer 1 is one image, 1.0 all of them."""
    assert run("--trainer.limit_val_batches", "1", command="validate") == 0
    assert run("--trainer.limit_val_batches", "1.0", command="validate") == 0
    results = [yaml.safe_load((tmp_path / "run" / name).read_text()) for name in ("result.json", "result-2.json")]
    assert [(result["num_images"], result["partial"]) for result in results] == [(1, True), (2, False)]


@pytest.mark.slow
def test_val_loss_is_the_cross_entropy_of_all_valid_pixels(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run() == 0
    with (tmp_path / "run" / "metrics.csv").open() as file:
        (logged,) = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    module = SegmentationModule.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").eval()
    normalization = load(tmp_path / "run" / "checkpoints" / "last.ckpt", precision="exact").normalization
    scores, targets = [], []
    for i in range(2):
        image = torch.from_numpy(read_image(folder / f"images/val/{i}.png")).permute(2, 0, 1)[None].float() / 255
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (normalization.mean, normalization.std))
        with torch.no_grad():
            logits = module.network((image - mean) / std)["out"]
        full = F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=True)
        scores.append(full.flatten(2)[0].T.double())
        mask = read_image(folder / f"labels/val/{i}.png")[..., 0]
        targets.append(torch.from_numpy(mask.astype(np.int64)).flatten())
    expected = F.cross_entropy(torch.cat(scores), torch.cat(targets), ignore_index=255)
    assert logged == pytest.approx(float(expected), rel=1e-4)


class Broken(pl.Callback):
    """A user's callback with a mistake of its own, and one that asks Lightning for what it does not do."""

    def __init__(self, how: str) -> None:
        self.how = how

    def on_train_batch_end(self, trainer, pl_module, *rest) -> None:
        if self.how == "own":
            raise ValueError("a mistake of my own")
        pl_module.log("own", {"a": "text"})


@pytest.mark.slow
@pytest.mark.parametrize("how, error", [("own", ValueError), ("lightning", Exception)])
def test_a_mistake_in_a_callback_keeps_its_traceback(
    run: Run, how: str, error: type, tmp_path: Path, monkeypatch
) -> None:
    callback = {
        "class_path": f"{__name__}.Broken",
        "init_args": {
            "how": how,
        },
    }
    write_text(tmp_path / "broken.yaml", yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    with pytest.raises(error) as raised:
        run("--config", str(tmp_path / "broken.yaml"))
    assert "on_train_batch_end" in {frame.name for frame in traceback.extract_tb(raised.value.__traceback__)}


def test_a_mistake_in_segkit_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self, batch, batch_idx):
        raise ValueError("a mistake in segkit")

    monkeypatch.setattr(SegmentationModule, "training_step", wrong)
    with pytest.raises(ValueError, match="a mistake in segkit"):
        run()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, options, words",
    [
        ("test", "--probe", "--probe: has no effect on test, only on fit; leave it out"),
        ("test", "--save_every 5", "--save_every: has no effect on test"),
        ("test", "--model.optim.lr 5", "--model.optim.lr: has no effect on test"),
        ("predict", "--model.network.init_args.aux false --encoder_weights x", "--encoder_weights: has no"),
        ("validate", "--checkpoint.save_top_k 2", "--checkpoint.save_top_k: has no effect on validate"),
        ("fit", "--overwrite", "--overwrite: has no effect on fit, only on predict"),
        ("fit", "--output x", "--output: has no effect on fit"),
        ("fit", "--official", "--official: has no effect on fit, only on test"),
        ("validate", "--calibration", "--calibration: has no effect on validate, only on test"),
        ("test", "--official", "--official: "),  # not on a folder of your own
        ("fit", "--metric all", "--metric: has no effect on fit, only on test and validate"),
        ("fit", "--test_precision float32", "--test_precision: has no effect on fit"),
        ("fit", "--reschedule", "--reschedule: has no effect on a new run"),
        ("fit", "--save_every 0", "save_every is 0; allowed is 1 or more"),
        ("test", "--trainer.limit_test_batches 0", "trainer.limit_test_batches is 0, so nothing would be tested"),
        ("predict", "--trainer.limit_predict_batches 0.0", "so nothing would be predicted"),
        ("fit", "--model.loss.class_weights [1,2]", "has 2 numbers, the network 3 classes; set --model.loss.class_weig"
         "hts to null (all classes alike), to enet or median (counted from the training data), or to 3 numbers"),
    ],
)  # fmt: skip
def test_options_without_effect_are_refused(run: Run, command: str, options: str, words: str, capsys) -> None:
    assert run(*options.split(), command=command) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_recipe_is_one_file_for_all_commands(run: Run, tmp_path: Path) -> None:
    """What it says to other commands is no mistake, and neither is an option that says no."""
    write_text(tmp_path / "more.yaml", "save_every: 5\nmetric: mmseg\nmodel: {optim: {lr: 0.1}}\n")
    assert run("--config", str(tmp_path / "more.yaml"), "--trainer.fast_dev_run", "1", "--no-overwrite") == 0
    assert run("--config", str(tmp_path / "more.yaml"), "--no-probe", command="test") == 0
