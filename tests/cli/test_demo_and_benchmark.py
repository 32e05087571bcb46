"""`segkit demo` and `segkit benchmark` through the front door, made small."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from segkit.cli import demo, main


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished demo of few scenes and one epoch."""
    output = tmp_path_factory.mktemp("demo") / "demo"
    small = demo.RECIPE.replace("num_train: 160", "num_train: 16\n    num_val: 2\n    num_test: 3")
    small = small.replace("check_val_every_n_epoch: 5", "check_val_every_n_epoch: 1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "RECIPE", small)
        assert main(["demo", "--output", str(output), "--epochs", "1", "--pictures", "2"]) == 0
    return output


def test_demo_leaves_data_pictures_curves_and_result(output: Path) -> None:
    run = output / "run"
    assert len(list((output / "data" / "gtFine" / "train").rglob("*_labelIds.png"))) == 16
    pictures = sorted((run / "pictures").iterdir())
    assert len(pictures) == 2 and all(cv2.imread(str(p)) is not None for p in pictures)
    result = json.loads((run / "result.json").read_text())
    assert result["num_images"] == 3 and result["protocol"]["flip"] and len(result["protocol"]["scales"]) > 1
    assert (run / "curves.png").is_file() and (output / "demo.yaml").is_file()


def test_a_second_demo_writes_beside_the_first(output: Path) -> None:
    assert demo._new_run(output) == output / "run-2"


def test_demo_refuses_a_file_in_the_folders_place(tmp_path: Path, capsys) -> None:
    (tmp_path / "demo").write_text("mine")
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 2
    assert "there is a file of this name" in capsys.readouterr().err
    assert (tmp_path / "demo").read_text() == "mine"


def test_benchmark_table(output: Path, tmp_path: Path, capsys) -> None:
    checkpoint = str(output / "run" / "checkpoints" / "last.ckpt")
    data = ["--data", "SyntheticDataModule", "--data.root", str(output / "data"), "--data.num_train", "16"]
    data += ["--data.num_val", "2", "--data.num_test", "3", "--data.num_workers", "0"]
    table = ["benchmark", checkpoint, *data, "--device", "cpu", "--output", str(tmp_path / "table")]
    assert main([*table, "--protocol", "whole", "ms-flip"]) == 0
    rows = json.loads((tmp_path / "table" / "benchmark.json").read_text())["rows"]
    assert [(row["protocol"], row["pictures"], row["partial"]) for row in rows] == [
        ("whole", 3, False),
        ("ms-flip", 3, False),
    ]
    tested = ["test", "--config", str(output / "demo.yaml"), *data, "--ckpt_path", checkpoint, "--protocol", "ms-flip"]
    assert main([*tested, "--run_dir", str(tmp_path / "test")]) == 0
    assert rows[1]["mIoU"] == json.loads((tmp_path / "test" / "result.json").read_text())["scores"]["mIoU"]

    before = (tmp_path / "table" / "benchmark.json").read_bytes()
    assert main([*table, "--protocol", "whole", "ms-flip"]) == 0  # nothing is computed again
    assert (tmp_path / "table" / "benchmark.json").read_bytes() == before
    assert main([*table, "--protocol", "whole", "--limit", "1"]) == 0
    lines = (tmp_path / "table" / "benchmark.md").read_text().splitlines()
    assert len(lines) == 5 and "1 (partial)" in lines[-1]
    assert (tmp_path / "table" / "benchmark.csv").read_text().startswith("checkpoint,protocol,mIoU")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--protocol", "ms"], "'ms' is not known"),
        (["--limit", "0"], "--limit must be 1 or more"),
        (["--outptu", "x"], "no such option 'outptu'; did you mean output?"),
        (["--data.rot", "x"], "did you mean root?"),
    ],
)
def test_benchmark_typing_errors(output: Path, tmp_path: Path, capsys, arguments: list[str], words: str) -> None:
    checkpoint = str(output / "run" / "checkpoints" / "last.ckpt")
    data = ["--data", "SyntheticDataModule", "--data.root", str(tmp_path / "data"), "--data.num_train", "1"]
    data += ["--data.num_val", "1", "--data.num_test", "1"]
    assert main(["benchmark", checkpoint, *data, "--output", str(tmp_path / "table"), *arguments]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["demo", "--help"]])
def test_help_imports_neither_torch_nor_lightning(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom segkit.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'pytorch_lightning'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and ("segkit" in done.stdout)
