"""`segkit fit --ckpt_path last` goes on as if the run had never been stopped."""

import csv
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from gloo import join, said, start_command
from interrupt import Killed
from noise import write_noise
from tiny_fit import assert_equal

from segkit.cli import main
from segkit.errors import InputError
from segkit.files import write_text
from segkit.training.guards.checkpoints import AtomicCheckpointIO

pytestmark = pytest.mark.slow

STEPS = 21  # 3 epochs of 7


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noise(tmp_path_factory.mktemp("data"), {"train": 15, "val": 2})


@pytest.fixture(scope="module")
def recipe(root: Path) -> Path:
    """Everything that has a state: dropout, DropBlock, momentum, warm-up, an average of the weights, accumulation."""
    config = {
        "data": {
            "class_path": "FolderDataModule",
            "init_args": {"root": str(root), "batch_size": 2, "base_size": 56, "crop_size": 32, "num_workers": 0},
        },
        "model": {
            "network": {
                "class_path": "FCN",
                "init_args": {
                    "encoder": "resnest14_tiny",
                    "output_stride": 8,
                    "encoder_args": {"dropblock_prob": 0.2},
                },
            },
            "optim": {"lr": 0.1, "warmup_steps": 3},
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 3,
            "check_val_every_n_epoch": 1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {
                    "class_path": "pytorch_lightning.callbacks.EMAWeightAveraging",
                    "init_args": {"decay": 0.9, "update_starting_at_step": 1},
                },
                {"class_path": "interrupt.Interrupt"},
            ],
        },
    }
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def fit(recipe: Path, run: Path, *options: str) -> list[str]:
    return ["fit", "--config", str(recipe), "--run_dir", str(run), "--overlays", "0", "--save_every", "2", *options]


@pytest.fixture(scope="module")
def uninterrupted(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert main(fit(recipe, run)) == 0
    return run


def state(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same_end(run: Path, uninterrupted: Path) -> None:
    """Weights, their average, optimiser and schedule are equal to the bit; so are the logged losses."""
    end, expected = state(run), state(uninterrupted)
    assert end["global_step"] == expected["global_step"] == STEPS and end["epoch"] == expected["epoch"]
    keys = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers")
    for key in keys:
        assert_equal(end[key], expected[key], key)
    assert losses(run) == losses(uninterrupted)
    assert best_score(end) == best_score(expected)


def best_score(checkpoint: dict[str, Any]) -> torch.Tensor:
    """Of the best checkpoint until then, which `last.ckpt` must know of."""
    (score,) = [v["best_model_score"] for k, v in checkpoint["callbacks"].items() if "'val/mIoU'" in k]
    return score


def losses(run: Path) -> dict[int, str]:
    with (run / "metrics.csv").open() as file:
        rows = [(int(row["step"]), row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(rows) == len({step for step, _ in rows})  # no step is logged twice
    return dict(rows)


def stop(recipe: Path, run: Path, at: int, signal: str = "SIGKILL", **environment: str) -> tuple[int | None, str]:
    """A run that is stopped in step `at`; its exit code, and what it said."""
    log = run.with_suffix(".log")
    environment |= {"INTERRUPT_AT": str(at), "INTERRUPT_SIGNAL": signal}
    (code,) = join(start_command(1, fit(recipe, run), log, environment), timeout=300)
    return code, said(log)


def killed(arguments: list[str], at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends in step `at`, in this process: nothing of it may do anything about it."""
    monkeypatch.setenv("INTERRUPT_AT", str(at))
    monkeypatch.setenv("INTERRUPT_SIGNAL", "killed")
    with pytest.raises(Killed):
        main(arguments)
    monkeypatch.delenv("INTERRUPT_AT")


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(11, id="in an epoch"),
        pytest.param(7, id="at its begin", marks=pytest.mark.campaign),  # test_stops.py has these, in one process
        pytest.param(13, id="before a validation", marks=pytest.mark.campaign),
        pytest.param(14, id="behind it", marks=pytest.mark.campaign),
    ],
)
def test_after_kill_9_the_end_is_the_same_to_the_bit(
    at: int, recipe: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    code, text = stop(recipe, run, at)
    assert code == -9, text
    saved = state(run)["global_step"]
    assert at - 2 <= saved <= at
    assert main(["fit", "--ckpt_path", "last", "--run_dir", str(run)]) == 0  # its config is the run's own
    assert_same_end(run, uninterrupted)
    assert not list(run.rglob("*.tmp"))
    assert [p.name for p in run.glob("config*")] == ["config.yaml"]


@pytest.mark.campaign  # test_stops.py kills a run thirteen times, in one process
def test_killed_twice_in_one_epoch(recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop(recipe, run, 9)
    environment = {"INTERRUPT_AT": "12", "INTERRUPT_SIGNAL": "SIGKILL"}
    again = start_command(1, ["fit", "--ckpt_path", "last", "--run_dir", str(run)], tmp_path / "again", environment)
    assert join(again, timeout=300) == [-9], said(tmp_path / "again")
    assert main(["fit", "--ckpt_path", "last", "--run_dir", str(run)]) == 0
    assert_same_end(run, uninterrupted)


def test_two_workers_and_a_cache_see_the_same_rest(
    recipe: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    killed(fit(recipe, run), 10, monkeypatch)
    options = ["--data.num_workers", "2", "--data.cache_dir", str(tmp_path / "cache")]
    assert main(fit(recipe, run, "--ckpt_path", "last", *options)) == 0
    assert_same_end(run, uninterrupted)


def test_a_truncated_checkpoint_falls_back_to_the_one_before(
    recipe: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    killed(fit(recipe, run), 11, monkeypatch)
    last, previous = (run / "checkpoints" / name for name in ("last.ckpt", "last-previous.ckpt"))
    assert torch.load(previous, weights_only=True)["global_step"] == 8
    os.truncate(last, last.stat().st_size // 2)
    with pytest.warns(UserWarning, match=r"last.ckpt: .*truncated.*; resuming from the one before it"):
        assert main(["fit", "--ckpt_path", "last", "--run_dir", str(run)]) == 0
    assert_same_end(run, uninterrupted)
    os.truncate(last, 10), os.truncate(previous, 10)
    for other in (run / "checkpoints").glob("epoch*"):
        os.truncate(other, 10)
    with pytest.warns(UserWarning):
        assert main(["fit", "--ckpt_path", "last", "--run_dir", str(run)]) == 2


@pytest.mark.parametrize("value", [None, "x", [], -0.5, {"a": 1}], ids=["absent", "text", "list", "number", "mapping"])
@pytest.mark.parametrize(
    "part",
    ["pytorch-lightning_version", "global_step", "loops", "loops.fit_loop.epoch_progress.current.started", "callbacks",
     "loops.fit_loop.epoch_loop:batch_progress.is_last_batch", "optimizer_states"],
)  # fmt: skip
def test_a_damaged_state_of_the_training_is_one_line(
    part: str, value: Any, uninterrupted: Path, tmp_path: Path
) -> None:
    checkpoint = state(uninterrupted)
    *owners, name = (key.replace(":", ".") for key in part.split("."))
    owner = checkpoint
    for key in owners:
        owner = owner[key]
    if type(value) is type(owner[name]):
        pytest.skip("is of the right type")
    if value is None:
        del owner[name]
    else:
        owner[name] = value
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    named = re.escape(part.replace(":", "."))
    with pytest.raises(InputError, match=rf"damaged.ckpt: damaged.*its {named}\S* is absent or has the wrong type"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "damaged.ckpt", weights_only=True)


def test_going_on_from_a_damaged_state_is_one_line(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    torch.save(state(uninterrupted) | {"global_step": "many"}, path)
    assert main(["fit", "--ckpt_path", "last", "--run_dir", str(tmp_path / "run")]) == 2
    said_ = capsys.readouterr().err.strip().splitlines()[-1]
    assert "last.ckpt: damaged" in said_ and "global_step" in said_ and "last-previous.ckpt" in said_


def test_the_gradient_scaler_of_float16_goes_on(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning turns float16 on the CPU into bfloat16; its plugin, named in the config, does not."""
    plugin = {
        "class_path": "pytorch_lightning.plugins.MixedPrecision",
        "init_args": {"precision": "16-mixed", "device": "cpu"},
    }
    (tmp_path / "half.yaml").write_text(yaml.safe_dump({"trainer": {"plugins": [plugin]}}))
    options = ("--config", str(tmp_path / "half.yaml"), "--trainer.accumulate_grad_batches", "2")
    assert main(fit(recipe, tmp_path / "whole", *options)) == 0
    killed(fit(recipe, tmp_path / "run", *options), 9, monkeypatch)
    assert main(["fit", "--ckpt_path", "last", "--run_dir", str(tmp_path / "run")]) == 0
    end, expected = state(tmp_path / "run"), state(tmp_path / "whole")
    assert end["global_step"] == expected["global_step"] == 12
    assert "scale" in expected["MixedPrecision"]
    for key in ("state_dict", "current_model_state", "optimizer_states", "MixedPrecision"):
        assert_equal(end[key], expected[key], key)


@pytest.mark.parametrize("signal", [pytest.param("SIGTERM", marks=pytest.mark.campaign), "SIGUSR1", "SIGINT"])
def test_a_signal_saves_and_stops(
    signal: str, recipe: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under SLURM it also hands the job back; the step in which the signal came is in the checkpoint."""
    run = tmp_path / "run"
    scontrol = tmp_path / "bin" / "scontrol"
    write_text(scontrol, f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.txt\n')
    scontrol.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    code, text = stop(recipe, run, 9, signal, **slurm)
    assert code == {"SIGTERM": 143, "SIGUSR1": 138, "SIGINT": 130}[signal], text
    assert state(run)["global_step"] == 10
    requeued = tmp_path / "scontrol.txt"
    assert (requeued.read_text() == "requeue 77\n") if signal != "SIGINT" else not requeued.exists()
    assert main(["fit", "--ckpt_path", "last", "--run_dir", str(run)]) == 0
    assert_same_end(run, uninterrupted)


def test_a_job_that_slurm_runs_again_goes_on(recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """The same command line, without --ckpt_path."""
    run = tmp_path / "run"
    stop(recipe, run, 9, "SIGTERM")
    code, text = stop(recipe, run, 999, SLURM_JOB_ID="77", SLURM_JOB_NAME="train", SLURM_RESTART_COUNT="1")
    assert code == 0, text
    assert_same_end(run, uninterrupted)


def test_changed_settings_are_refused_until_rescheduled(
    recipe: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    resume = fit(recipe, run, "--ckpt_path", "last")
    before = {p.name: p.read_bytes() for p in (run / "checkpoints").iterdir()}
    for change, words in (
        (["--model.optim.lr", "0.05"], "model.optim.lr: 0.1 -> 0.05"),
        (["--trainer.max_epochs", "4"], "steps in all: 21 -> 28; trainer.max_epochs: 3 -> 4"),
        (["--data.batch_size", "3"], "images a batch over all processes: 2 -> 3"),
        (["--data.crop_size", "48"], "data.crop_size: 32 -> 48"),
        (["--model.loss.dice", "1"], "model.loss.dice: 0.0 -> 1.0"),
        (["--seed_everything", "5"], "seed_everything: 0 -> 5"),
    ):
        assert main([*resume, *change]) == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert words in message and "--reschedule" in message
    assert before == {p.name: p.read_bytes() for p in (run / "checkpoints").iterdir()}
    assert main([*resume, "--trainer.max_epochs", "4", "--reschedule"]) == 0
    assert state(run)["global_step"] == 28 and state(uninterrupted)["global_step"] == STEPS
    assert set(losses(run)) == set(range(28))
