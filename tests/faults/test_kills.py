"""Trainings that are killed at random moments and gone on with, until they are done: they are the one that was not."""

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaign import Campaign
from noise import write_noise
from shot import shoot
from tiny_fit import assert_equal, recipe, result

_CODES = {signal.SIGKILL: {137}, signal.SIGTERM: {143}, signal.SIGINT: {130}}


class Kills:
    """One training, again and again in the same folder: a checkpoint names its files by their paths."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.run, self.random = folder, folder / "run", random.Random(seed)
        root = write_noise(folder / "data", {"train": 8, "val": 3})
        config = recipe(root)
        config["trainer"] |= {"max_epochs": 3, "val_check_interval": 2}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(config))
        self.kills = 0
        self.seconds = 0.0  # that a training takes, with its start: anywhere in it a signal may come

    def fit(self, signals: list[tuple[float, int]]) -> tuple[int, str, float]:
        """A training, or its rest."""
        begun = (self.run / "config.yaml").exists()
        first = ["--config", str(self.folder / "recipe.yaml"), "--checkpoint.save_top_k", "2", "--save_every", "1"]
        which = ["--ckpt_path", "last"] if begun else first
        return shoot(["fit", *which, "--run_dir", str(self.run)], self.folder / "log", signals)

    def whole(self) -> dict[str, Any]:
        """What a training leaves that nothing stops."""
        code, text, self.seconds = self.fit([])
        assert code == 0, text
        return self._taken()

    def killed(self, most: int) -> dict[str, Any]:
        """What one leaves that is killed whenever it goes on, at most so often."""
        for _ in range(most):
            signum = self.random.choice(list(_CODES))
            signals = [(self.random.uniform(0, self.seconds), int(signum))]
            if signum == signal.SIGINT and self.random.random() < 0.5:  # twice
                signals.append((self.random.uniform(0, 0.3), int(signum)))
            code, text, _ = self.fit(signals)
            assert "Traceback" not in text, text
            if code == 0:  # it was done before
                return self._taken()
            self.kills += 1
            assert code in _CODES[signum], f"{code} after {signum.name}\n{text}"
        code, text, _ = self.fit([])
        assert code == 0, text
        return self._taken()

    def _taken(self) -> dict[str, Any]:
        left = [path for path in self.run.rglob("*.tmp") if path.is_file()]
        assert not left, left
        found = result(self.run)
        shutil.rmtree(self.run)
        return found


def attack(number: int, seed: int, folder: Path, figures: Callable[[str], None]) -> None:
    """Kill trainings so often in all, about five times each."""
    campaign, kills = Campaign("trainings killed and gone on with", figures), Kills(folder, seed)
    expected = kills.whole()
    training = 0
    while kills.kills < number:
        with campaign.case(f"seed {seed}, training {training}"):
            before = kills.kills
            most = min(5, number - before)
            assert_equal(kills.killed(most), expected)
        training += 1
        assert training < number + 10
    figures(f"kills of fit: {kills.kills} in {training} trainings")
    campaign.finish()


@pytest.mark.slow
def test_a_few_kills(tmp_path: Path, figures: Callable[[str], None]) -> None:
    attack(2, 0, tmp_path, figures)


@pytest.mark.campaign
def test_fifty_kills(tmp_path: Path, figures: Callable[[str], None]) -> None:
    attack(50, 1, tmp_path, figures)
