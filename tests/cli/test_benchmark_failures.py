"""`segkit benchmark` when something goes wrong: rows that fail, interrupts, wrong words; and what it hands on."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from segkit.benchmark import rows as benchmark_rows
from segkit.cli import main
from segkit.cli.benchmark import score

IMAGES = 5  # of conftest.py

Run = Callable[..., int]


def rows_of(folder: Path) -> list[dict]:
    return json.loads((folder / "benchmark.json").read_text())["rows"]


def stop_at(call: int, what: BaseException | Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let labelling fail, or something else happen, at its n-th call; the list grows with every image labelled."""
    calls: list[int] = []
    label = benchmark_rows._label

    def stopping(*args):
        calls.append(1)
        if len(calls) == call:
            if isinstance(what, BaseException):
                raise what
            what()
        return label(*args)

    monkeypatch.setattr(benchmark_rows, "_label", stopping)
    return calls


@pytest.mark.slow
def test_a_failing_row_does_not_stop_the_others(
    run_benchmark: Run, benchmark_folder: Path, tmp_path: Path, capsys
) -> None:
    models = [str(benchmark_folder / f"{name}.ckpt") for name in ("a", "other", "absent", "b")]
    assert run_benchmark(*models) == 1
    assert [Path(row["model"]).name for row in rows_of(tmp_path / "table")] == ["a.ckpt", "b.ckpt"]
    last = capsys.readouterr().err.strip().splitlines()[-2:]
    assert "row 2 of 4" in last[0] and "other.ckpt: has 5 classes (void, cat, dog, ...), data (" in last[0]
    assert ") has 4; they cannot be matched" in last[0]
    assert "row 3 of 4" in last[1] and "absent.ckpt: no such file" in last[1]
    assert "failed: row 2 of 4" in (tmp_path / "table" / "benchmark.md").read_text()

    assert run_benchmark(models[0], models[3]) == 0  # nothing failed this time, and nothing was lost
    assert run_benchmark(models[1], output="other") == 2
    said = capsys.readouterr().err
    assert "other.ckpt: has 5 classes" in said.strip().splitlines()[-1]
    assert said.count("other.ckpt: has 5 classes") == 1  # there is no table between its row and the end


@pytest.mark.slow
def test_out_of_memory_is_a_failed_row(
    run_benchmark: Run, benchmark_folder: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(3, RuntimeError("not enough\nmemory"), monkeypatch)
    assert run_benchmark(str(benchmark_folder / "a.ckpt"), "--protocol", "whole", "window") == 1
    assert [row["protocol"] for row in rows_of(tmp_path / "table")] == ["window"]
    assert capsys.readouterr().err.strip().endswith("a.ckpt, whole): not enough memory")


@pytest.mark.slow
def test_an_interrupted_row_goes_on_with_the_next_image(
    run_benchmark: Run, benchmark_folder: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [str(benchmark_folder / "a.ckpt"), "--protocol", "whole", "window"]
    assert run_benchmark(*command, output="straight") == 0
    with monkeypatch.context() as patch:
        stop_at(IMAGES + 3, KeyboardInterrupt(), patch)
        assert run_benchmark(*command) == 130
    assert [row["protocol"] for row in rows_of(tmp_path / "table")] == ["whole"]
    assert "the same command continues from here" in capsys.readouterr().err
    calls = stop_at(0, KeyboardInterrupt(), monkeypatch)
    assert run_benchmark(*command) == 0
    assert len(calls) == IMAGES - 2
    straight, resumed = rows_of(tmp_path / "straight"), rows_of(tmp_path / "table")
    for name in ("mIoU", "class IoU", "pixel accuracy", "images", "partial", "GFLOPs/image"):
        assert [row[name] for row in straight] == [row[name] for row in resumed]


@pytest.mark.slow
def test_a_killed_row_goes_on_from_what_was_saved(
    run_benchmark: Run, benchmark_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process that is killed leaves is what lies on the disk at that moment."""
    command = [str(benchmark_folder / "b.ckpt")]
    monkeypatch.setattr(benchmark_rows, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        stop_at(4, lambda: shutil.copytree(tmp_path / "table", tmp_path / "killed"), patch)
        assert run_benchmark(*command) == 0
    calls = stop_at(0, KeyboardInterrupt(), monkeypatch)
    assert run_benchmark(*command, output="killed") == 0
    assert len(calls) == IMAGES - 3
    (killed,), (straight,) = rows_of(tmp_path / "killed"), rows_of(tmp_path / "table")
    assert (killed["class IoU"], killed["interval"]) == (straight["class IoU"], straight["interval"])

    saved = next((tmp_path / "killed" / "counts").iterdir())
    saved.write_text(saved.read_text()[:50])  # damaged: the row begins again
    (tmp_path / "killed" / "benchmark.json").unlink()
    assert run_benchmark(*command, output="killed") == 0
    assert len(calls) == 2 * IMAGES - 3


@pytest.mark.slow
def test_other_weights_under_the_same_name_are_another_row(
    run_benchmark: Run, benchmark_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(benchmark_folder / "a.ckpt", tmp_path / "last.ckpt")
    assert run_benchmark(str(tmp_path / "last.ckpt")) == 0
    shutil.copy(benchmark_folder / "b.ckpt", tmp_path / "last.ckpt")
    assert run_benchmark(str(tmp_path / "last.ckpt")) == 0
    first, second = rows_of(tmp_path / "table")
    assert first["mIoU"] != second["mIoU"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "nothing to do: give model files, or --plan FILE"),
        (["a.ckpt", "--protocol", "ms"], "'ms' is not known"),
        (["a.ckpt", "--limit", "0"], "--limit: '0' is not a whole number from 1"),
        (["a.ckpt", "--size", "0", "9"], "--size: '0' is not a whole number from 1"),
        (["a.ckpt", "--metric", "mseg"], "no such convention 'mseg'; did you mean mmseg?"),
        (["a.ckpt", "--outptu", "x"], "no such option '--outptu'; did you mean --output?"),
        (["a.ckpt", "--data.rot", "x"], "did you mean root?"),
        (["--plan", "p.yaml", "a.ckpt"], "--plan and models, data exclude each other"),
    ],
)
def test_typing_errors(run_benchmark: Run, tmp_path: Path, capsys, arguments: list[str], words: str) -> None:
    assert run_benchmark(*arguments) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "table").exists()


def test_a_model_needs_data(run_benchmark: Run, capsys) -> None:
    assert run_benchmark("a.ckpt", data=False) == 2
    assert "a.ckpt: no data to score on; give it with --data or --config" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{}", '{"rows": [{"key": 1}]}', "[", '{"rows": 3}'])
def test_another_file_in_the_tables_place_is_left_alone(
    run_benchmark: Run, benchmark_folder: Path, tmp_path: Path, capsys, content: str
) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "benchmark.json").write_text(content)
    assert run_benchmark(str(benchmark_folder / "a.ckpt")) == 2
    assert "benchmark.json: not a table of this version of segkit" in capsys.readouterr().err
    assert (tmp_path / "table" / "benchmark.json").read_text() == content


@pytest.mark.parametrize("command", ["score", "compare"])
def test_score_and_compare_are_handed_on(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[list[str]] = []
    monkeypatch.setattr(score, command, lambda args: got.append(list(args)) or 7)
    assert main(["benchmark", command, "a", "--metric", "mmseg"]) == 7
    assert got == [["a", "--metric", "mmseg"]]


def test_help_names_them_and_the_script_is_the_command(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path(__file__).parents[2] / "scripts" / "benchmark.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(script), run_name="__main__")
    assert done.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "segkit benchmark score PRED_DIR TRUTH_DIR" in text and "segkit benchmark compare" in text
    assert "--plan" in text and "--size" in text
