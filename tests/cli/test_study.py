"""`segkit study`: what is run, what is not run again, and what is refused."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import pytest
import yaml
from noise import write_noise

from segkit.cli import main
from segkit.cli import study as command
from segkit.files import write_text
from segkit.study.plan import read_study, share

STUDY: dict[str, Any] = {
    "recipe": "camvid/fcn_resnest14_tiny",
    "overrides": {"trainer.max_epochs": 1},
    "seeds": [0, 1],
    "baseline": "plain",
    "variants": {"plain": None, "wide": {"overrides": {"model.network.init_args.encoder_args": {"radix": 4}}}},
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.chdir(tmp_path)

    def write(**changes: Any) -> Path:
        write_text(tmp_path / "s.yaml", yaml.safe_dump(STUDY | changes))
        return tmp_path / "s.yaml"

    return write


class Recorded:
    """In place of processes: each writes what the real one would leave, or ends with a code."""

    def __init__(self, output: Path) -> None:
        self.output, self.commands, self.codes = output, list[list[str]](), dict[str, int]()

    def __call__(self, arguments: list[str], log: Path) -> int:
        self.commands.append(arguments)
        what = f"{arguments[0]} {log.parent.relative_to(self.output)}"
        write_text(log, f"said by {what}\n")
        if arguments[0] == "fit":
            write_text(log.parent / "config.yaml", "")
        if what in self.codes:
            write_text(log.parent / "checkpoints/last.ckpt", "")
            return self.codes[what]
        if arguments[0] == "fit":
            write_text(log.parent / "summary.json", "{}")
        else:
            write_text(log.parent / "result.json", json.dumps({"scores": {"mIoU": 0.4 + len(self.commands) / 100}}))
        return 0

    def ran(self) -> list[str]:
        folders = [Path(c[c.index("--run_dir") + 1]).relative_to(self.output) for c in self.commands]
        done = [f"{c[0]} {folder}" for c, folder in zip(self.commands, folders, strict=True)]
        self.commands.clear()
        return done


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded(tmp_path / "out")
    monkeypatch.setattr(command, "_run", recorded)
    monkeypatch.setattr(command, "_check_options", lambda *_: None)
    return recorded


def run(path: Path, *options: str) -> int:
    return main(["study", str(path), "--output", str(path.parent / "out"), *options])


def test_each_run_is_done_once_and_then_tabulated(
    study: Callable[..., Path], processes: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(study(), "--data.root", "here") == 0
    fit, test = processes.commands[2:4]  # the second variant's first seed
    assert fit[:4] == ["fit", "--config", "camvid/fcn_resnest14_tiny", "--seed_everything=0"]
    assert '--model.network.init_args.encoder_args={"radix": 4}' in fit and "--data.root=here" in fit
    assert "--trainer.max_epochs=1" in fit
    folder = processes.output / "wide/seed0"
    assert test[:5] == ["test", "--config", f"{folder}/config.yaml", "--ckpt_path", f"{folder}/checkpoints/last.ckpt"]
    assert processes.ran()[::2] == ["fit plain/seed0", "fit wide/seed0", "fit plain/seed1", "fit wide/seed1"]
    said = capsys.readouterr().out
    assert "[4/4] wide, seed 1: done" in said and "4 of 4 runs" in said
    found = json.loads((processes.output / "table.json").read_text())
    assert found["variants"]["wide"]["difference"]["value"] == pytest.approx(0.02)
    assert (processes.output / "table.png").read_bytes()[1:4] == b"PNG" and (processes.output / "table.md").is_file()
    assert run(study()) == 0
    assert processes.ran() == [] and "finished before" in capsys.readouterr().out


def test_a_stopped_study_goes_on_where_it_was(study: Callable[..., Path], processes: Recorded) -> None:
    processes.codes["fit wide/seed0"] = 143
    assert run(study()) == 143
    assert processes.ran()[-1] == "fit wide/seed0"
    processes.codes = {"test wide/seed0": 130}
    assert run(study()) == 130
    resumed, _ = processes.commands
    assert resumed[:3] == ["fit", "--ckpt_path", "last"] and processes.ran() == ["fit wide/seed0", "test wide/seed0"]
    processes.codes = {}
    assert run(study()) == 0
    assert processes.ran()[0] == "test wide/seed0"  # which was trained


def test_what_was_killed_before_its_first_checkpoint_begins_anew(
    study: Callable[..., Path], processes: Recorded
) -> None:
    path = study()
    read_study(path).runs[0].claim(processes.output)
    write_text(processes.output / "plain/seed0/metrics.csv", "step\n")  # which `fit` would refuse
    assert run(path) == 0
    assert "--config" in processes.commands[0] and not (processes.output / "plain/seed0/metrics.csv").exists()


def test_one_that_fails_stops_no_other(
    study: Callable[..., Path], processes: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.codes["fit wide/seed0"] = 2
    assert run(study()) == 1
    assert len(processes.ran()) == 7
    said = capsys.readouterr().out
    assert "wide, seed 0: failed: said by fit wide/seed0" in said and "3 of 4 runs" in said


def test_shards_are_all_runs_once(study: Callable[..., Path], processes: Recorded) -> None:
    runs = read_study(study()).runs
    shares = [share(runs, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(map(str, (one for part in shares for one in part))) == sorted(map(str, runs))
    assert run(study(), "--shard", "2/2") == 0
    assert processes.ran()[::2] == ["fit wide/seed0", "fit wide/seed1"]


def test_a_run_is_no_rank_of_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    kept = command._environment()
    assert kept["CUDA_VISIBLE_DEVICES"] == "3" and not [name for name in kept if name.startswith(("RANK", "SLURM"))]


def test_a_folder_of_another_study_is_left_alone(
    study: Callable[..., Path], processes: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(study()) == 0
    processes.ran()
    assert run(study(overrides={"trainer.max_epochs": 2})) == 2
    assert re.search(r"plain/seed0: a run of another study, .* give another --output, or", capsys.readouterr().err)
    write_text(processes.output / "new/seed0/config.yaml", "")
    assert run(study(variants=STUDY["variants"] | {"new": None})) == 2
    assert "new/seed0: a run of another study" in capsys.readouterr().err and processes.ran() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "camvid/fcn_resnest14_tini"}, "variant plain: .*did you mean camvid/fcn_resnest14_tiny"),
        ({"recipe": None}, "variant plain: no recipe; name one"),
        ({"seed": [1]}, "no key 'seed'; did you mean seeds"),
        ({"seeds": [0, 0]}, "seeds: .*different whole numbers"),
        ({"seeds": 3}, "seeds: 3; a list"),
        ({"seeds": [True]}, "seeds: .*whole numbers"),
        ({"baseline": "plane"}, "no variant 'plane'; did you mean plain"),
        ({"variants": {"plain": None}}, "variants: two or more"),
        ({"variants": {"plain": {"overide": {}}, "b": None}}, "variant plain: no key 'overide'; did you mean override"),
        ({"variants": {"plain": "fast", "b": None}}, "variant plain: names and values"),
        ({"variants": {"plain": {"overrides": ["a"]}, "b": None}}, "variant plain: overrides: names and values"),
        ({"variants": {"plain": None, "../b": None}}, r"variant \.\./b: a folder gets this name"),
    ],
)
def test_a_wrong_study_is_one_line(
    changes: dict[str, Any], message: str, study: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(study(**changes)) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "-1/2", "a/b", "1/0"])
def test_a_wrong_shard_is_one_line(shard: str, study: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(study(), f"--shard={shard}") == 2
    assert re.fullmatch(rf"segkit study: error: --shard {shard}: not i/n .*\n", capsys.readouterr().err)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_is_handed_on_and_the_command_awaited(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import os, signal, sys
def stop(*_):
    print("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
os.kill(os.getppid(), int(sys.argv[1]))
signal.pause()
"""
    monkeypatch.setattr(command, "_command", lambda arguments: [sys.executable, "-c", code, *arguments])
    before = signal.getsignal(signal.SIGTERM)
    assert command._run([str(int(signal.Signals[name]))], tmp_path / "log") == 143
    assert (tmp_path / "log").read_text() == "saved\n" and signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_a_run_is_a_process_of_segkit(tmp_path: Path) -> None:
    assert command._run(["study", "--help"], tmp_path / "log") == 0
    assert (tmp_path / "log").read_text().startswith("usage: segkit study ")
    assert command._run(["study", "none.yaml"], tmp_path / "log") == 2
    assert "none.yaml" in command._last_line(tmp_path / "log")


class Here:
    """In place of the processes: their commands run in this one, which has PyTorch and Lightning already."""

    def __init__(self, command: list[str], env: dict[str, str], stdout: TextIO, stderr: TextIO) -> None:
        assert command[:3] == [sys.executable, "-m", "segkit"] and env
        with redirect_stdout(stdout), redirect_stderr(stderr):
            self.returncode = main(command[3:])

    def wait(self) -> int:
        return self.returncode

    @staticmethod
    def run(command: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        out, err = StringIO(), StringIO()
        return subprocess.CompletedProcess(
            command, Here(command, env, out, err).returncode, out.getvalue(), err.getvalue()
        )


@pytest.mark.slow
def test_commands_train_test_and_refuse(
    study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands as they are: a misspelt override is found before anything is trained, and a run leaves a result."""
    monkeypatch.setattr(command, "subprocess", SimpleNamespace(Popen=Here, run=Here.run))
    path = study()
    write_noise(path.parent / "data", {"train": 4, "val": 2, "test": 2})
    data = {"root": "data", "batch_size": 2, "base_size": 56, "crop_size": 32, "num_workers": 0}
    network = {"class_path": "FCN", "init_args": {"encoder": "resnest14_tiny", "output_stride": 16}}
    trainer = {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False}
    recipe = {"data": {"class_path": "FolderDataModule", "init_args": data}, "model": {"network": network}}
    write_text(path.parent / "r.yaml", yaml.safe_dump(recipe | {"trainer": trainer}))
    study(recipe="r.yaml", seeds=[0], overrides={"model.optm.lr": 0.1})
    assert run(path) == 2
    assert "variant plain: " in (error := capsys.readouterr().err) and "model.optm.lr" in error
    assert not (path.parent / "out/plain/seed0/config.yaml").exists()
    study(recipe="r.yaml", seeds=[0], overrides={"model.optim.lr": 0.1})
    assert run(path, "--shard", "1/2") == 0
    assert "1 of 2 runs" in capsys.readouterr().out
    assert json.loads((path.parent / "out/plain/seed0/result.json").read_text())["num_images"] == 2
