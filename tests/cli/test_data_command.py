"""`segkit data` through the front door, on small data sets built here."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segkit.cli import main
from segkit.cli.data.source import named, open_data
from segkit.data.datamodule import SegmentationDataModule
from segkit.data.names import data_sets
from segkit.data.sets.cityscapes import CityscapesDataModule
from segkit.data.sets.folder import FolderDataModule
from segkit.errors import InputError
from segkit.io import write_png

SIZE = (6, 8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    home = tmp_path / "data"
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for i in range(count):
            write_png(home / f"images/{split}/{i}.png", rng.integers(0, 256, (*SIZE, 3), np.uint8))
            write_png(home / f"labels/{split}/{i}.png", np.resize(np.array([0, 1, 1, 255], np.uint8), SIZE))
    (home / "classes.txt").write_text("road\ntree\n")
    return home


@pytest.fixture
def config(root: Path, tmp_path: Path) -> Path:
    (tmp_path / "data.yaml").write_text(f"class_path: FolderDataModule\ninit_args: {{root: {root}, crop_size: 64}}\n")
    return tmp_path / "data.yaml"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command is refused."""
    assert main(["data", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("segkit data: error: ") and error.count("\n") == 1 and "Traceback" not in error
    return error


def loaded_modules(*arguments: str) -> set[str]:
    code = f"import sys; from segkit.cli import main\nmain({['data', *arguments]!r})\nprint('MODULES', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rsplit("MODULES", 1)[1].split())


@pytest.mark.parametrize("arguments", [(), ("check",), ("stats",), ("cache",)])
def test_help_starts_fast(arguments):
    heavy = {"torch", "pytorch_lightning", "albumentations", "numpy", "cv2", "PIL", "yaml", "tqdm"}
    assert not loaded_modules(*arguments, "--help") & heavy


def test_check_of_good_data(root, capsys, tmp_path):
    assert main(["data", "check", "folder", str(root), "--json", str(tmp_path / "report.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"folder: {root}"
    assert " ".join(lines[1].split()) == "train 8 images, 8 masks, 0.0 M pixels, 75.00% valid"
    assert lines[4].startswith("raw  id  class ") and " ".join(lines[5].split()) == "0 0 road 96 25.00% 8 36 25.00% 3"
    assert " ".join(lines[7].split()) == "255 ignored 96 25.00% 8 36 25.00% 3"
    assert lines[-2:] == ["nothing wrong", str(tmp_path / "report.json")]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["problems"] == 0 and [split["complete"] for split in report["splits"]] == [True, True]
    assert report["splits"][0]["labels"][1] == {"raw": 1, "train_id": 1, "name": "tree", "pixels": 192, "masks": 8}


def test_check_groups_and_counts(root, capsys, tmp_path):
    for i in range(7):
        write_png(root / f"labels/train/{i}.png", np.full(SIZE, 5, np.uint8))
    Image.new("L", (8, 6)).save(root / "labels/val/0.png", "JPEG")
    assert main(["data", "check", "folder", str(root), "--json", str(tmp_path / "report.json")]) == 1
    out = capsys.readouterr().out
    assert "undeclared (7): masks with values that" in out and "  ... and 2 more (all of them: --json FILE)" in out
    assert "mask format (1)" in out and re.search(r"^ +5 +undeclared ", out, re.MULTILINE) and "8 problems\n" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["found"]["undeclared"]) == 7 and report["problems"] == 8


def test_warnings_and_notes_are_not_wrong(root, capsys):
    (root / "classes.txt").write_text("road\ntree\nboat\n")
    for i in range(8):
        write_png(root / f"labels/train/{i}.png", np.full(SIZE, 255 if i == 3 else i % 2, np.uint8))
    assert main(["data", "check", "folder", str(root), "--split", "train"]) == 0
    out = capsys.readouterr().out
    assert "warning: empty mask (1)" in out and "note: absent class (1)" in out and "  train (8 masks): boat" in out
    assert out.endswith("nothing wrong, 1 warning\n") and "\n  val" not in out
    assert main(["data", "check", "folder", str(root), "--limit", "2"]) == 0
    assert "2 opened" in (out := capsys.readouterr().out) and "nothing wrong in the part that was opened" in out


def test_masks_of_0_and_255_left_at_ids_are_a_problem_with_its_cure(root, capsys):
    for i in range(8):
        write_png(root / f"labels/train/{i}.png", np.resize(np.array([0, 0, 255], np.uint8), SIZE))
    assert main(["data", "check", "folder", str(root)]) == 1
    out = capsys.readouterr().out
    assert "0/255 masks (1)" in out and "  train (8 masks): only the values 0 and 255 occur" in out
    assert "never: tree" in out and "--data.masks binary" in out and out.endswith("1 problem\n")
    assert main(["data", "stats", "folder", str(root)]) == 0
    assert "warning: only the values 0 and 255 occur, and 255 is ignored; never: tree" in capsys.readouterr().out
    assert main(["data", "check", "folder", str(root), "--data.masks", "binary", "--split", "train"]) == 0
    assert capsys.readouterr().out.endswith("nothing wrong\n")


def test_an_interrupted_check_prints_what_it_has(root, capsys, monkeypatch, tmp_path):
    read_mask = FolderDataModule.read_mask

    def stop(self, file):
        if file.name == "5.png":
            raise KeyboardInterrupt
        return read_mask(self, file)

    write_png(root / "labels/train/1.png", np.full(SIZE, 5, np.uint8))
    monkeypatch.setattr(FolderDataModule, "read_mask", stop)
    arguments = ["data", "check", "folder", str(root), "--workers", "1", "--json", str(tmp_path / "report.json")]
    assert main(arguments) == 130
    captured = capsys.readouterr()
    assert "5 opened (interrupted)" in captured.out and "undeclared (1)" in captured.out
    assert "1 problem in the part that was opened" in captured.out and "interrupted" in captured.err
    assert json.loads((tmp_path / "report.json").read_text())["splits"][0]["opened"] == 5


@pytest.mark.slow
def test_ctrl_c_anywhere_in_a_check_ends_it_in_one_line(root, capsys):
    """At forty of the lines that the check runs through, those of its loop, pool and report among them."""

    def interrupted_at(line: int) -> tuple[int, int]:
        passed = 0

        def trace(frame, event, arg):
            nonlocal passed
            if "segkit/cli/data" not in frame.f_code.co_filename and "segkit/data" not in frame.f_code.co_filename:
                return None
            if event == "line":
                passed += 1
                if passed == line:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            return main(["data", "check", "folder", str(root), "--workers", "2"]), passed
        finally:
            sys.settrace(before)

    interrupted_at(-1)  # the first time there are imports, too
    code, lines = interrupted_at(-1)
    assert code == 0 and lines > 300
    capsys.readouterr()
    for line in range(1, lines - 20, lines // 40):
        assert interrupted_at(line)[0] == 130, line
        assert capsys.readouterr().err.splitlines()[-1] == "segkit data: interrupted"


def test_stats(root, capsys, tmp_path):
    mine = tmp_path / "mine.json"
    assert main(["data", "stats", "folder", str(root), "--output", str(mine)]) == 0
    first = capsys.readouterr().out
    assert [line.split()[:5] for line in first.splitlines()[2:4]] == [
        ["0", "road", "96", "33.333%", "8"],
        ["1", "tree", "192", "66.667%", "8"],
    ]
    assert "ignored" in first and f"statistics of folder train: {mine}" in first and "enet" in first
    assert main(["data", "stats", "folder", str(root), "--output", str(mine)]) == 0
    assert f"kept from an earlier count: {mine}" in capsys.readouterr().out
    assert not list(root.glob("*.json"))
    assert main(["data", "stats", "folder", str(root), "--split", "train", "val"]) == 0
    assert "folder val: 3 masks" in capsys.readouterr().out and len(list(root.glob("*.json"))) == 2
    assert "keeps one split" in refused(
        capsys, "stats", "folder", root, "--output", mine, "--split", "train", "val"
    )  # fmt: skip


def test_cache(root, capsys, tmp_path):
    arguments = ["data", "cache", "folder", str(root), "--cache_dir", str(tmp_path / "cache")]
    assert main([*arguments, "--list"]) == 1
    assert f"folder train: no complete cache in {tmp_path / 'cache'}" in capsys.readouterr().out
    assert main([*arguments, "--verify"]) == 1
    assert "`segkit data cache` makes one" in capsys.readouterr().out
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "the cache needs 0.00 GB for 8 images" in captured.err and "folder val: 3 images" in captured.out
    assert main(arguments) == 0
    assert "the cache needs" not in capsys.readouterr().err
    assert main([*arguments, "--verify"]) == 0
    assert "8 images, none damaged" in capsys.readouterr().out
    (folder,) = (tmp_path / "cache").glob("folder-train-*")
    with (folder / "masks.u8").open("r+b") as file:
        file.seek(3 * 48)  # between the images that are looked at when a cache is opened
        file.write(b"\7")
    assert main([*arguments, "--verify"]) == 1
    out = capsys.readouterr().out
    assert "damaged at image 3; remove this folder" in out and "8 images, 1 damaged" in out
    (folder / "index.json").write_text("")
    assert main([*arguments, "--verify"]) == 1
    assert "no index of a cache" in capsys.readouterr().out


def test_old_caches_are_named_and_kept(root, capsys, tmp_path):
    arguments = ["data", "cache", "folder", str(root), "--cache_dir", str(tmp_path / "cache"), "--split", "train"]
    assert main(arguments) == 0
    assert "may be removed" not in capsys.readouterr().out
    (old,) = (tmp_path / "cache").glob("folder-train-*")
    write_png(root / "labels/train/0.png", np.zeros(SIZE, np.uint8))
    assert main(arguments) == 0
    assert f"{old}: 0.00 GB, cache of other files" in capsys.readouterr().out and old.is_dir()


def opened(*args: str) -> SegmentationDataModule:
    return open_data(args, "segkit data check")


@pytest.mark.slow
def test_a_config_or_a_recipe_in_place_of_the_name(root, config, tmp_path, capsys):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/one.yaml").write_text("model: {}\ndata: ../data.yaml\n")
    (tmp_path / "recipes/two.yaml").write_text(
        f"data:\n  class_path: segkit.data.sets.folder.FolderDataModule\n  init_args: {{root: {root}, masks: ids}}\n"
    )
    for path in (config, tmp_path / "recipes/one.yaml", tmp_path / "recipes/two.yaml"):
        for given in ([str(path)], ["--data", str(path)], [f"--data={path}"]):
            assert main(["data", "check", *given]) == 0
            assert f"folder: {root}\n" in capsys.readouterr().out
    assert opened(*named(str(config), "elsewhere")).root == Path("elsewhere")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folder", "FolderDataModule", "segkit.data.sets.folder.FolderDataModule"])
def test_a_data_set_is_named_as_for_fit(root, name, capsys):
    for given in ([name, str(root)], [name, "--data.root", str(root)], ["--data", name, f"--data.root={root}"]):
        assert main(["data", "check", *given, "--data.masks", "ids"]) == 0
        assert f"folder: {root}\n" in capsys.readouterr().out


def test_options_of_the_data_set(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("class_path: CityscapesDataModule\ninit_args: {root: here, coarse: true}\n")
    data = opened("--data", str(config))
    assert isinstance(data, CityscapesDataModule) and data.coarse and data.root == Path("here")
    data = opened("--data", str(config), "--data.coarse", "false")
    assert isinstance(data, CityscapesDataModule) and not data.coarse
    data = opened(*named("folder", "x"), "--data.masks=colors")
    assert isinstance(data, FolderDataModule) and data.masks == "colors"
    config.write_text("class_path: SyntheticDataModule\ninit_args: {root: here, num_train: 3}\n")
    assert opened("--data", str(config)).title == "synthetic"


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("configs/*/*.yaml")), ids=lambda path: path.stem)
@pytest.mark.slow
def test_the_configs_of_this_repository(path):
    if path.parent.name in ("overlays", "protocols", "studies"):
        with pytest.raises(InputError, match="data"):
            opened("--data", str(path))
    elif "imagenet" in (path.parent.name, path.stem):
        with pytest.raises(InputError, match="a class for each image and no masks"):
            opened("--data", str(path))
    else:
        assert type(opened("--data", str(path), "--data.root", "here")) in data_sets().values()


def test_wrong_names_and_options(root, config, tmp_path, capsys):
    error = refused(capsys, "check", "citysapes", root)
    assert "no such data set 'citysapes'; did you mean cityscapes? allowed: ade20k, camvid" in error
    assert "which data? give a data set" in refused(capsys, "check")
    assert "give its folder or zip" in refused(capsys, "check", "camvid")
    assert "no such data folder" in refused(capsys, "check", "camvid", tmp_path / "no")
    assert "no such data folder" in refused(capsys, "stats", "camvid", tmp_path / "no")
    error = refused(capsys, "check", "folder", root, "--data.mask", "colors")
    assert "'mask' is no argument of " in error and "did you mean masks?" in error
    assert "masks is 'foo'; allowed are" in refused(capsys, "check", "folder", root, "--data.masks", "foo")
    assert "coarse: '3' is not" in refused(capsys, "check", "cityscapes", root, "--data.coarse", "3")
    assert "not a recipe" in refused(capsys, "check", write(tmp_path, "[]"))
    assert "not valid YAML" in refused(capsys, "check", write(tmp_path, "a: ["))
    assert "no data set here" in refused(capsys, "check", write(tmp_path, "data: 3"))
    assert "'FoldrDataModule'; did you mean" in refused(capsys, "check", write(tmp_path, "class_path: FoldrDataModule"))
    refused(capsys, "check", write(tmp_path, "class_path: FolderDataModule\ninit_args: 3"))
    assert "no.yaml: no such file" in refused(capsys, "check", tmp_path / "no.yaml")
    assert "no.yaml: no such file" in refused(capsys, "check", write(tmp_path, "data: no.yaml"))
    assert "whole number from 1" in refused(capsys, "check", "folder", root, "--limit", "0")
    assert "choose from" in refused(capsys, "check", "folder", root, "--split", "tran")
    assert "--cache_dir" in refused(capsys, "cache", "folder", root)
    assert "see `segkit data --help`" in refused(capsys)
    assert "is a folder" in refused(capsys, "check", "folder", root, "--json", tmp_path)


def write(folder: Path, text: str) -> Path:
    path = folder / "wrong.yaml"
    path.write_text(text)
    return path


OWN_OPTIONS = {  # of the data modules that add some to those of all, misspelt
    "cityscapes": ("coars", "coarse"),
    "folder": ("clases", "classes"),
    "synthetic": ("num_tran", "num_train"),
    "voc": ("augmentd", "augmented"),
}


@pytest.mark.parametrize("name", data_sets())
def test_names_and_types_of_the_options_of_every_data_set_are_checked(name):
    def refusal(option: str, value: str) -> str:
        with pytest.raises(InputError) as refused:
            opened("--data", name, "--data.root", "here", f"--data.{option}", value)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    for wrong, meant in (("batch_sise", "batch_size"), *([OWN_OPTIONS[name]] if name in OWN_OPTIONS else [])):
        message = refusal(wrong, "1")
        assert f"'{wrong}' is no argument of" in message and f"did you mean {meant}?" in message
    assert "batch_size: 'three' is not" in refusal("batch_size", "three")


@pytest.mark.parametrize(("command", "name"), [("fit", "voc"), ("test", "folder")])
def test_the_help_of_a_data_module_lists_its_own_options_and_those_of_all(command, name, capsys):
    module = data_sets()[name]
    assert main([command, "--data.help", module.__name__]) == 0
    listed = set(re.findall(r"^ +--data\.(\w+)", capsys.readouterr().out, re.M))
    parameters = [*inspect.signature(module).parameters, *inspect.signature(SegmentationDataModule).parameters]
    assert listed == set(parameters) - {"options"}
