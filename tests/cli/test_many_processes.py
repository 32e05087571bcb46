"""`segkit fit` in several gloo processes: SyncBN on the CPU, resuming, and what happens when one of them fails."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from gloo import join, run_command, said, start_command
from noise import write_noise

pytestmark = pytest.mark.slow

SILENT = "10"  # seconds until a process is lost; those that live must answer in time on a busy machine, too


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_noise(tmp_path_factory.mktemp("data"), {"train": 13, "val": 4})
    config = {
        "data": {
            "class_path": "FolderDataModule",
            "init_args": {"root": str(root), "batch_size": 1, "base_size": 56, "crop_size": 32, "num_workers": 0},
        },
        "model": {
            "network": {"class_path": "FCN", "init_args": {"encoder": "resnest14_tiny", "output_stride": 16}},
            "optim": {"lr": 0.1},
        },
        "trainer": {
            "accelerator": "cpu",
            "strategy": "ddp",
            "sync_batchnorm": True,
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "interrupt.Interrupt"}],
        },
    }
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def fit(recipe: Path, run: Path, world: int, *options: str) -> list[str]:
    common = ["--trainer.devices", str(world), "--overlays", "0", "--save_every", "2"]
    return ["fit", "--config", str(recipe), "--run_dir", str(run), *common, *options]


def interrupted(
    recipe: Path, run: Path, world: int, at: int, signal: str, rank: int | None = None, *options: str
) -> tuple[list[int | None], str]:
    """Exit codes, None of a process that hung, and what was said."""
    environment = {"INTERRUPT_AT": str(at), "INTERRUPT_SIGNAL": signal}
    environment |= {} if rank is None else {"INTERRUPT_RANK": str(rank)}
    processes = start_command(world, fit(recipe, run, world, *options), run.with_suffix(".log"), environment)
    codes = join(processes, timeout=300)
    return codes, said(run.with_suffix(".log"))


def weights(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_two_processes_resume_to_the_bit_and_a_checkpoint_has_plain_norms(recipe: Path, tmp_path: Path) -> None:
    """One image a process, which only synchronised norms can train."""
    run_command(2, fit(recipe, tmp_path / "whole", 2), tmp_path / "whole.log")
    whole = weights(tmp_path / "whole")
    assert whole["global_step"] == 12 and "network.encoder.bn1.running_var" in whole["state_dict"]
    codes, text = interrupted(recipe, tmp_path / "run", 2, 9, "SIGKILL")
    assert codes == [-9, -9], text
    run_command(2, ["fit", "--ckpt_path", "last", "--run_dir", str(tmp_path / "run")], tmp_path / "again.log")
    end = weights(tmp_path / "run")
    assert end["global_step"] == 12
    for name, value in whole["state_dict"].items():
        assert torch.equal(end["state_dict"][name], value), name


def test_a_killed_process_ends_the_others(recipe: Path, tmp_path: Path) -> None:
    codes, text = interrupted(recipe, tmp_path / "run", 3, 2, "SIGKILL", 1, "--rank_timeout", SILENT)
    assert codes[1] == -9 and all(code not in (0, None) for code in codes), text
    lost = f"ends: rank 1 gave no sign of life for {SILENT} s: it was killed or its machine is lost"
    assert text.count(lost) == 2, text


def test_an_error_of_one_process_is_what_the_others_say(recipe: Path, tmp_path: Path) -> None:
    codes, text = interrupted(recipe, tmp_path / "run", 3, 2, "raise", 2)
    assert all(code not in (0, None) for code in codes), text
    assert text.count("ends: rank 2 failed: ValueError: the disk of this machine is on fire") == 2, text


def test_a_process_that_hangs_ends_the_other(recipe: Path, tmp_path: Path) -> None:
    """Nothing is raised anywhere then: the other one waits in a collective operation, and only the watchdog helps."""
    environment = {"INTERRUPT_AT": "2", "INTERRUPT_SIGNAL": "SIGSTOP", "INTERRUPT_RANK": "1"}
    arguments = fit(recipe, tmp_path / "run", 2, "--rank_timeout", SILENT)
    processes = start_command(2, arguments, tmp_path / "run.log", environment)
    codes = join([processes[0]], timeout=300)
    processes[1].kill()
    processes[1].join()
    assert codes == [1], said(tmp_path / "run.log")
    assert f"ends: rank 1 gave no sign of life for {SILENT} s" in said(tmp_path / "run.log")


def test_a_signal_to_one_process_stops_all_at_one_step(recipe: Path, tmp_path: Path) -> None:
    codes, text = interrupted(recipe, tmp_path / "run", 2, 3, "SIGTERM", 1)
    assert codes == [143, 143], text
    # They asked each other at the epoch's end; its last step is done again, with the validation that follows on it.
    assert weights(tmp_path / "run")["global_step"] == 5
