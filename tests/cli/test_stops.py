"""Stops at every moment of a run, in one process: what `fit --ckpt_path last` ends with is the run that had none."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from interrupt import Killed
from noise import write_noise
from tiny_fit import assert_equal, recipe, result

from segkit.cli import main

pytestmark = pytest.mark.slow

EPOCHS, BATCHES = 2, 3
STEPS = EPOCHS * BATCHES
END = BATCHES - 1  # a step that validation follows on is done again, the others are not
PAIRS = [(i, j) for i in range(END - 1, END + 2) for j in range(i + (i != END), END + 3)]
STOPPING = {
    "class_path": "pytorch_lightning.callbacks.EarlyStopping",
    "init_args": {"monitor": "val/mIoU", "mode": "max", "min_delta": 0.5, "patience": 3},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noise(tmp_path_factory.mktemp("data"), {"train": 2 * BATCHES, "val": 2})


class Runs:
    """Runs of one recipe, one after another in the same folder (checkpoints know where they are)."""

    def __init__(self, folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.run, self._monkeypatch = folder, folder / "run", monkeypatch
        self.recipe = folder / "recipe.yaml"
        self.config = recipe(root)

    def start(self, *options: str) -> int:
        self.recipe.write_text(yaml.safe_dump(self.config))
        return main(["fit", "--config", str(self.recipe), "--run_dir", str(self.run), *options])

    def go_on(self) -> int:
        return main(["fit", "--ckpt_path", "last", "--run_dir", str(self.run)])

    def stopped(self, fit: Callable[[], int], step: int, by: str = "SIGTERM", where: str = "step") -> None:
        """A run, or the rest of one, that is stopped in a step, or behind it."""
        for name, value in (("AT", str(step)), ("SIGNAL", by), ("IN", where)):
            self._monkeypatch.setenv(f"INTERRUPT_{name}", value)
        if by == "killed":
            with pytest.raises(Killed):
                fit()
        else:
            assert fit() == 143
        self._monkeypatch.delenv("INTERRUPT_AT")

    def keep(self, name: str) -> None:
        """Put the run's folder aside."""
        self.run.rename(self.folder / name)

    def take(self, name: str) -> None:
        """Put a copy of it back."""
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self.folder / name, self.run)

    def result(self) -> dict[str, Any]:
        return result(self.run)


@pytest.fixture
def runs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    yield Runs(tmp_path, root, monkeypatch)


@pytest.mark.parametrize(
    ("steps", "pairs"),
    [
        pytest.param([0, END, STEPS - 1], [(1, END), (END, END), (3, 4)], id="a sample"),
        pytest.param(range(STEPS), PAIRS, id="all", marks=pytest.mark.campaign),
    ],
)
def test_stops_in_every_step_and_in_pairs_around_an_epochs_end(
    steps: Sequence[int], pairs: Sequence[tuple[int, int]], runs: Runs
) -> None:
    """A second stop leaves what a first one there does, so a third and all others do."""
    assert runs.start() == 0
    whole = runs.result()
    assert [row["val/mIoU"] != "" for row in whole["metrics.csv"]] == [False, False, False, True] * EPOCHS
    assert len(whole) == 3  # last, the best, metrics.csv
    runs.keep("whole")
    left = {}
    for step in range(STEPS):
        runs.stopped(runs.start, step)
        left[step] = runs.result()
        runs.keep(f"stopped in {step}")
    for step in steps:
        runs.take(f"stopped in {step}")
        assert runs.go_on() == 0
        assert_equal(runs.result(), whole, f"stopped in {step}")
    for first, second in pairs:
        runs.take(f"stopped in {first}")
        runs.stopped(runs.go_on, second)
        assert_equal(runs.result(), left[second], f"stopped in {first} and {second}")


def test_killed_again_and_again(runs: Runs) -> None:
    """In steps, at a validation's begin, within it, between it and the best checkpoint; steps are done again."""
    options = ["--save_every", "2", "--trainer.max_epochs", "3"]
    assert runs.start(*options) == 0
    whole = runs.result()
    runs.keep("whole")
    runs.stopped(lambda: runs.start(*options), 0, "killed")  # before there is a checkpoint
    places = [(0, "step"), (1, "step"), (2, "step"), (2, "logged"), (2, "validation"), (2, "validated"), (3, "step")]
    places += [(5, "validation"), (5, "validated"), (5, "step"), (6, "step"), (8, "validated"), (9, "ended")]
    for step, where in places:
        runs.stopped(runs.go_on, step, "killed", where)
    assert runs.go_on() == 0
    assert_equal(runs.result(), whole)


VARIANTS: dict[str, tuple[int, dict[str, Any], list[str]]] = {
    "validations within epochs, steps of two batches, early stopping": (
        6,
        {"val_check_interval": 2, "accumulate_grad_batches": 2, "max_epochs": 9, "callbacks": [STOPPING]},
        ["--checkpoint.save_top_k", "2"],
    ),
    "as long as its steps, validated in every second epoch": (
        6,
        {"max_steps": 7, "max_epochs": -1, "check_val_every_n_epoch": 2},
        [],
    ),
    "validations by all batches": (
        5,
        {"max_steps": 6, "check_val_every_n_epoch": None, "val_check_interval": 4},
        ["--checkpoint.save_top_k", "-1"],
    ),
}


@pytest.mark.parametrize("apart", [2, pytest.param(1, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_in_steps_one_after_another(variant: str, apart: int, runs: Runs) -> None:
    steps, trainer, options = VARIANTS[variant]
    callbacks = [*runs.config["trainer"]["callbacks"], *trainer.get("callbacks", [])]
    runs.config["trainer"] |= trainer | {"callbacks": callbacks}
    assert runs.start(*options) == 0
    whole = runs.result()
    assert any(row["val/mIoU"] for row in whole["metrics.csv"])
    runs.keep("whole")
    runs.stopped(lambda: runs.start(*options), 0)
    for step in range(1, steps, apart):
        runs.stopped(runs.go_on, step)
    runs.stopped(runs.go_on, whole["last.ckpt"]["global_step"], "killed", "ended")  # it is written, and early stopping
    assert runs.go_on() == 0
    assert_equal(runs.result(), whole)
