"""`segkit infer` through its front door: every kind of image, every kind of mistake, and what is left on disk."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from PIL import Image

from segkit.cli.infer import main
from segkit.errors import InputError
from segkit.inference.inputs import find_images
from segkit.inference.segmenter import load
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.segmentation import DeepLabV3
from segkit.visualization import colorize

SPACE = LabelSpace(("road", "tree", "sky", "car"), distinct_palette(4), identity_table(4))
RESULTS = ("area.json", "color.png", "labels.png", "overlay.png")

Run = Callable[..., int]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.ckpt"
    torch.manual_seed(0)
    network = DeepLabV3("resnest14_tiny", num_classes=4)
    return write_checkpoint(path, network, SPACE)


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path) -> Run:
    def call(*args: str | Path, output: Path = tmp_path / "out") -> int:
        options = ["--checkpoint", checkpoint, "--output", output, "--device", "cpu"]
        return main([str(arg) for arg in (*options, *args)])  # argparse lets a later option win

    return call


def save(path: Path, shape: tuple[int, ...] = (20, 30, 3), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)
    return path


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def tree(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name[0] != "."
    )


def results(*stems: str) -> list[str]:
    return sorted(f"{stem}_{result}" for stem in stems for result in RESULTS)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(97, 65), (1, 1)])
def test_four_results_at_the_images_size(
    run: Run, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], size: tuple[int, int]
) -> None:
    image = save(tmp_path / "street.png", (*size, 3))
    assert run(image) == 0
    out = tmp_path / "out"
    assert tree(out) == results("street")
    labels = read(out / "street_labels.png")
    assert labels.shape == size and labels.dtype == np.uint8
    assert (labels == load(checkpoint, "cpu").predict(image)).all()
    assert (read(out / "street_color.png") == colorize(labels, SPACE.palette)).all()
    assert read(out / "street_overlay.png").shape[0] > 200  # enlarged, and with a legend
    area = json.loads((out / "street_area.json").read_text())
    assert (area["height"], area["width"], area["protocol"]["name"]) == (*size, "whole")
    assert {c["id"]: c["pixels"] for c in area["classes"]} == {i: (labels == i).sum() for i in np.unique(labels)}
    assert sum(c["share"] for c in area["classes"]) == pytest.approx(1)
    assert all(c["name"] == SPACE.class_names[c["id"]] for c in area["classes"])
    printed = capsys.readouterr()
    assert "1 image in" in printed.out and str(out) in printed.out and "whole" in printed.out
    assert printed.err == ""


def test_every_kind_of_image(run: Run, tmp_path: Path) -> None:
    images = tmp_path / "images"
    rgb = save(images / "turned.jpg", (24, 40, 3))
    with Image.open(rgb) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(rgb, exif=exif)
    save(images / "grey.png", (24, 40))
    save(images / "alpha.png", (24, 40, 4))
    Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40) * 60).save(images / "deep.png")
    Image.fromarray(np.zeros((24, 40), np.uint8)).convert("P").save(images / "palette.png")
    assert run(images) == 0
    out = tmp_path / "out"
    assert tree(out) == results("turned", "grey", "alpha", "deep", "palette")
    assert read(out / "turned_labels.png").shape == (40, 24)
    assert all(read(out / f"{name}_labels.png").shape == (24, 40) for name in ("grey", "alpha", "deep", "palette"))


def test_what_is_not_read_of_an_image_is_said(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    page = Image.fromarray(np.zeros((24, 40, 3), np.uint8))
    page.save(images / "a.tif", save_all=True, append_images=[page, page])
    deep = np.arange(960, dtype=np.uint16).reshape(24, 40)
    Image.fromarray(deep * 68).save(images / "b.png")
    for name in ("c.png", "d.tif"):
        Image.fromarray(deep * 4).save(images / name)
    assert run(images) == 1
    assert tree(tmp_path / "out") == results("a", "b")
    said = capsys.readouterr().err
    for name in ("c.png", "d.tif"):
        assert f"error: {images / name}: 16 bits per channel with values 0..3836: only the upper 8 bits" in said
    assert f"note: {images / 'a.tif'} has 3 pages or frames, of which only the first is read" in said
    assert f"note: {images / 'b.png'} has 16 bits per channel, of which the upper 8 are read" in said


def test_folders_are_kept_and_equal_names_told_apart(run: Run, tmp_path: Path) -> None:
    images = tmp_path / "images"
    for name in ("a.jpg", "a.png", "b.png", "inner/a.png", "inner/._a.png", ".hidden/a.png"):
        save(images / name)
    (images / "notes.txt").write_text("not an image")
    assert run(images, images / "b.png") == 0
    assert tree(tmp_path / "out") == results("a_jpg", "a_png", "b", "inner/a")


def test_names_are_unique_whatever_is_given(tmp_path: Path) -> None:
    given = [tmp_path / name for name in ("x/a.jpg", "y/a.jpg", "x/A.JPG", "x/a_jpg.png", "x/b.c.png", "x/b.c.png")]
    names = [name.as_posix() for _, name in find_images(given, tmp_path / "out")]
    assert names == ["a_jpg", "a_jpg_2", "A_JPG_3", "a_jpg_4", "b.c"]


@pytest.mark.slow
def test_results_of_an_earlier_run_are_not_segmented(run: Run, tmp_path: Path) -> None:
    images = tmp_path / "images"
    save(images / "a.png")
    output = images / "out"
    for _ in range(2):
        assert run(images, output=output) == 0
        assert tree(output) == results("a")
    with pytest.raises(InputError, match="both input and output"):
        find_images([images], images)


def damaged(folder: Path) -> dict[str, Path]:
    """Name of the failure -> a file that has it; made in `folder`."""
    cut_png, cut_jpg = save(folder / "cut.png", (80, 80, 3)), save(folder / "cut.jpg", (80, 80, 3))
    for path in (cut_png, cut_jpg):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    return {"cut": cut_png, "cut jpeg": cut_jpg, "empty": folder / "empty.png", "text": folder / "text.png"}


@pytest.mark.slow
def test_a_damaged_image_costs_one_line_and_the_others_are_done(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    save(images / "a.png"), save(images / "z.png")
    bad = {**damaged(images), "absent": tmp_path / "absent.png"}
    assert run(images, tmp_path / "absent.png") == 1
    assert tree(tmp_path / "out") == results("a", "z")
    printed = capsys.readouterr()
    lines = [line.rpartition("\r")[2] for line in printed.err.splitlines() if "error:" in line]
    assert len(lines) == len(bad)
    assert all(sum(str(path) in line for line in lines) == 1 for path in bad.values())
    assert "2 images" in printed.out and "5 failed" in printed.out


def test_what_is_no_file_costs_one_line_and_the_others_are_done(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    save(images / "a.png"), save(tmp_path / "elsewhere" / "b.png")
    save(images / ".ipynb_checkpoints" / "a-checkpoint.png"), save(images / "@eaDir" / "a.png")
    os.mkfifo(images / "pipe.png")  # to open it would wait for ever
    (images / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (images / "loop.png").symlink_to(images / "loop.png")
    (images / "town").symlink_to(tmp_path / "elsewhere")
    (images / "up").symlink_to(tmp_path)
    (images / os.fsdecode(b"caf\xe9.png")).write_bytes((images / "a.png").read_bytes())
    assert run(images, images / "pipe.png") == 1
    assert tree(tmp_path / "out") == results("a", "town/b")
    printed = capsys.readouterr()
    lines = [line.rpartition("\r")[2] for line in printed.err.splitlines() if "error:" in line]
    wanted = {"pipe.png: is a named pipe", "gone.png: is a link to", "loop.png: is a link that leads to itself"}
    wanted |= {r"caf\xe9.png: this name is not UTF-8"}
    assert len(lines) == len(wanted) and all(sum(words in line for line in lines) == 1 for words in wanted)
    assert "2 images" in printed.out and "4 failed" in printed.out


def test_inputs_below_the_output_are_left_out_and_it_is_said(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    output = images / "out"
    save(images / "a.png"), save(output / "inner" / "b.png"), save(output / "c.png")
    (tmp_path / "link").symlink_to(output)
    for _ in range(2):  # the second time there are results, which are no inputs
        assert run(images, "--overwrite", "--confidence", output=tmp_path / "link") == 0
        err = capsys.readouterr().err
        assert err == f"segkit infer: note: {output}/c.png and all else in {tmp_path}/link is left out (2 images), " + (
            "because results go there; give --output a folder outside of the input to have them segmented\n"
        )


def test_a_result_that_cannot_be_written_costs_one_line(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "images" / "inner" / "a.png"), save(tmp_path / "images" / "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "inner").write_text("in the way")
    assert run(tmp_path / "images") == 1
    assert tree(tmp_path / "out") == sorted([*results("b"), "inner"])
    assert "inner" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["absent", "empty", "text", "truncated", "foreign", "folder"])
def test_a_wrong_checkpoint_is_one_line(
    run: Run, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = tmp_path / "wrong.ckpt"
    if kind == "folder":
        path.mkdir()
    elif kind == "foreign":
        torch.save({"model": {"weight": torch.zeros(1)}}, path)
    elif kind != "absent":
        data = {"empty": b"", "text": b"hello", "truncated": checkpoint.read_bytes()[:5000]}[kind]
        path.write_bytes(data)
    assert run(save(tmp_path / "a.png"), "--checkpoint", path) == 2
    assert_one_line(capsys, "wrong.ckpt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--device", "toaster"), ("--device", "cuda:99"), ("--protocol", "everything")]
)
def test_an_unknown_name_is_one_line(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert run(save(tmp_path / "a.png"), option, value) == 2
    assert_one_line(capsys, value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("output", ["taken", "taken/inner/deep"])
def test_an_output_that_is_a_file_is_one_line(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    (tmp_path / "taken").write_text("a file")
    assert run(save(tmp_path / "a.png"), output=tmp_path / output) == 2
    assert_one_line(capsys, "taken")
    assert (tmp_path / "taken").read_text() == "a file"


def test_a_folder_without_images_is_one_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nothing").mkdir()
    assert run(tmp_path / "nothing") == 2
    assert_one_line(capsys, "nothing")


@pytest.mark.parametrize("value", ["2", "-0.1", "half", "nan"])
def test_alpha_outside_its_range_is_refused(run: Run, tmp_path: Path, value: str) -> None:
    with pytest.raises(InputError, match=r"not a number in 0\.\.1"):
        run(tmp_path / "a.png", "--alpha", value)


def assert_one_line(capsys: pytest.CaptureFixture[str], part: str) -> None:
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1 and printed.err.startswith("segkit infer: error: ") and part in printed.err


def imported(code: str, *names: str) -> list[str]:
    """Those of `names` that are in sys.modules after `code` ran in a fresh interpreter."""
    code += f"\nimport sys; sys.stderr.write(' '.join(n for n in {names!r} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stderr.split()


@pytest.mark.slow
def test_a_resnest_needs_no_other_toolkit(tmp_path: Path, checkpoint: Path) -> None:
    args = [str(save(tmp_path / "a.png")), "--checkpoint", str(checkpoint), "--output", str(tmp_path), "--device=cpu"]
    code = f"from segkit.cli.infer import main\nassert main({args!r}) == 0"
    heavy = ("pytorch_lightning", "albumentations", "segmentation_models_pytorch", "timm", "matplotlib", "torchmetrics")
    assert imported(code, "torch", *heavy) == ["torch"]
