"""`segkit submission make` and `check` through the front door, on small images in the true layouts."""

import io
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segkit.cli import main
from segkit.io import read_label, write_png
from segkit.metadata.cityscapes import CITYSCAPES

FRAMES = ("berlin_000000_000019", "berlin_000001_000019", "mainz_000000_000019")
ADE = ("ADE_test_00000001", "ADE_test_00000002")
SIZES = {ADE[0]: (20, 30), ADE[1]: (25, 15)}  # width, height


def make_image(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (9, 99, 199)).save(path)


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cityscapes")
    for frame in FRAMES:
        make_image(root / f"leftImg8bit/test/{frame.split('_')[0]}/{frame}_leftImg8bit.png", 64, 32)
    return root


@pytest.fixture(scope="module")
def ade20k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ade20k")
    for name, size in SIZES.items():
        make_image(root / f"release_test/testing/{name}.jpg", *size)
    return root


@pytest.fixture
def cityscapes_predictions(tmp_path: Path) -> Path:
    """All 19 train ids, as `segkit predict` writes them."""
    for frame in FRAMES:
        ids = np.arange(64 * 32).reshape(32, 64) % 19
        write_png(tmp_path / f"pred/{frame.split('_')[0]}/{frame}_leftImg8bit.png", ids.astype(np.uint8))
    return tmp_path / "pred"


@pytest.fixture
def ade20k_predictions(tmp_path: Path) -> Path:
    """All 150 train ids, as `segkit infer` writes them, with its images beside them."""
    for name, (width, height) in SIZES.items():
        ids = np.arange(width * height).reshape(height, width) % 150
        write_png(tmp_path / f"pred/{name}_labels.png", ids.astype(np.uint8))
        for kind in ("color", "overlay"):
            write_png(tmp_path / f"pred/{name}_{kind}.png", np.zeros((height, width, 3), np.uint8))
    return tmp_path / "pred"


def make(benchmark: str, *arguments: object) -> int:
    return main(["submission", "make", benchmark, *map(str, arguments)])


def check(benchmark: str, *arguments: object) -> int:
    return main(["submission", "check", benchmark, *map(str, arguments)])


def members(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        return {name: np.array(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()}


def test_cityscapes_archive_holds_label_ids_by_the_official_name(cityscapes, cityscapes_predictions, tmp_path, capsys):
    output = tmp_path / "results.zip"
    assert make("cityscapes", cityscapes_predictions, "--data", cityscapes, "-o", output) == 0
    assert "3 label maps of cityscapes test, nothing wrong" in capsys.readouterr().out
    made = members(output)
    assert sorted(made) == [f"{frame}_pred_labelIds.png" for frame in FRAMES]
    for frame in FRAMES:
        labels = made[f"{frame}_pred_labelIds.png"]
        given = read_label(cityscapes_predictions / frame.split("_")[0] / f"{frame}_leftImg8bit.png")
        assert labels.dtype == np.uint8 and labels.shape == (32, 64)
        assert set(labels.flat) == {7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33}
        assert np.array_equal(CITYSCAPES.map_labels(labels, frame), given)
    assert check("cityscapes", output, "--data", cityscapes) == 0


def test_ade20k_archive_holds_classes_plus_one(ade20k, ade20k_predictions, tmp_path):
    output = tmp_path / "results.zip"
    assert make("ade20k", ade20k_predictions, "--data", ade20k, "-o", output) == 0
    made = members(output)
    assert sorted(made) == [f"{name}.png" for name in ADE]
    for name in ADE:
        given = read_label(ade20k_predictions / f"{name}_labels.png")
        assert made[f"{name}.png"].shape == SIZES[name][::-1]
        assert np.array_equal(made[f"{name}.png"], given + 1)
    assert check("ade20k", output, "--data", ade20k) == 0


def test_same_predictions_make_the_same_bytes_and_nothing_is_replaced_unasked(
    cityscapes, cityscapes_predictions, tmp_path, capsys
):
    first, second = tmp_path / "a.zip", tmp_path / "b.zip"
    assert make("cityscapes", cityscapes_predictions, "--data", cityscapes, "-o", first) == 0
    assert make("cityscapes", cityscapes_predictions, "--data", cityscapes, "-o", second) == 0
    assert first.read_bytes() == second.read_bytes()
    second.write_text("mine")
    assert make("cityscapes", cityscapes_predictions, "--data", cityscapes, "-o", second) == 2
    assert "--overwrite" in capsys.readouterr().err and second.read_text() == "mine"
    assert make("cityscapes", cityscapes_predictions, "--data", cityscapes, "-o", second, "--overwrite") == 0
    assert first.read_bytes() == second.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_wrong_archive_is_not_written_and_all_causes_are_listed(cityscapes, cityscapes_predictions, tmp_path, capsys):
    output = tmp_path / "results.zip"
    berlin = cityscapes_predictions / "berlin"
    (berlin / f"{FRAMES[0]}_leftImg8bit.png").write_bytes(b"no image")
    write_png(berlin / f"{FRAMES[1]}_leftImg8bit.png", np.zeros((32, 60), np.uint8))
    (cityscapes_predictions / "mainz" / f"{FRAMES[2]}_leftImg8bit.png").unlink()
    write_png(cityscapes_predictions / "mainz_000000_000020.png", np.zeros((32, 64, 3), np.uint8))
    assert make("cityscapes", cityscapes_predictions, "--data", cityscapes, "-o", output) == 1
    printed = capsys.readouterr().out
    assert not output.exists() and "not written" in printed
    assert "missing (1)" in printed and f"{FRAMES[2]}_pred_labelIds.png" in printed
    assert "wrong size (1)" in printed and "60x32, its image is 64x32" in printed
    assert "unreadable (1)" in printed and f"{FRAMES[0]}_leftImg8bit.png: not an image that can" in printed


def test_label_ids_given_as_train_ids_are_refused_and_taken_with_the_option(
    cityscapes, cityscapes_predictions, tmp_path, capsys
):
    first, second = tmp_path / "a.zip", tmp_path / "b.zip"
    assert make("cityscapes", cityscapes_predictions, "--data", cityscapes, "-o", first) == 0
    with zipfile.ZipFile(first) as archive:
        archive.extractall(tmp_path / "label_ids")
    assert make("cityscapes", tmp_path / "label_ids", "--data", cityscapes, "-o", second) == 1
    assert "value 19 (" in (printed := capsys.readouterr().out) and "--prediction_ids raw" in printed
    assert (
        "wrong ids (3): label maps that hold other ids than --prediction_ids says" in printed
        and "unreadable" not in printed
    )
    assert (
        make("cityscapes", tmp_path / "label_ids", "--data", cityscapes, "-o", second, "--prediction_ids", "raw") == 0
    )
    assert first.read_bytes() == second.read_bytes()


def test_predictions_of_other_images_are_left_out_and_two_of_one_refused(ade20k, ade20k_predictions, tmp_path, capsys):
    output = tmp_path / "results.zip"
    write_png(ade20k_predictions / "ADE_val_00000001.png", np.zeros((4, 4), np.uint8))
    assert make("ade20k", ade20k_predictions, "--data", ade20k, "-o", output) == 0
    assert "left out: 1 predictions of no image of the test split" in capsys.readouterr().out
    assert sorted(members(output)) == [f"{name}.png" for name in ADE]
    shutil.copy(ade20k_predictions / f"{ADE[0]}_labels.png", ade20k_predictions / f"{ADE[0]}.png")
    assert make("ade20k", ade20k_predictions, "--data", ade20k, "-o", output, "--overwrite") == 1
    assert f"duplicate (1): images with more than one label map; leave one\n  {ADE[0]}: " in capsys.readouterr().out


def label_map(frame_size=(64, 32), value=26, mode="L") -> Image.Image:
    image = Image.new("L", frame_size, value)
    image.putpixel((0, 0), 7)
    return image if mode == "L" else image.convert(mode)


def damaged(folder: Path) -> None:
    """One of each kind of damage, beside what is right."""
    names = [f"{frame}_pred_labelIds.png" for frame in FRAMES]
    label_map().save(folder / names[0])
    data = (folder / names[0]).read_bytes()
    (folder / names[1]).write_bytes(data[:-13])  # without its end, and a byte more
    label_map((63, 32)).save(folder / "mainz_000000_000019_a.png")
    label_map(value=34).save(folder / "mainz_000000_000019_b.png")
    label_map(mode="RGB").save(folder / "mainz_000000_000019_c.png")
    label_map(mode="P").save(folder / "mainz_000000_000019_d.png")
    Image.fromarray(np.full((32, 64), 26, np.uint16)).save(folder / "mainz_000000_000019_e.png")
    label_map().save(folder / "mainz_000000_000019_f.png", format="JPEG")
    Image.fromarray((np.arange(2048).reshape(32, 64) % 19).astype(np.uint8)).save(folder / "mainz_000000_000019_g.png")
    (folder / "mainz_000000_000019_h.png").write_bytes(b"")
    label_map().save(folder / "bonn_000000_000019_pred.png")
    label_map().save(folder / "berlin_1_2.png")
    (folder / "notes.txt").write_text("mine")


EXPECTED = {
    "extra (1)": ["bonn_000000_000019_pred.png"],
    "duplicate (1)": ["mainz_000000_000019: 8 files"],
    "wrong name (2)": ["berlin_1_2.png: expected is IMAGE_pred_labelIds.png", "notes.txt"],
    "unreadable (2)": ["berlin_000001_000019_pred_labelIds.png: truncated", "mainz_000000_000019_h.png: empty file"],
    "format (4)": ["_c.png: 8 bits a channel, RGB", "_d.png: 8 bits a channel, paletted", "_e.png: 16 bits", "a JPEG"],
    "wrong size (1)": ["mainz_000000_000019_a.png: 63x32, its image is 64x32"],
    "unknown id (1)": ["34 (allowed: 0..33): 2047 pixels in 1 files, first mainz_000000_000019_b.png"],
    "train ids (1)": ["mainz_000000_000019_g.png"],
}


@pytest.mark.parametrize("zipped", [False, True])
def test_every_kind_of_damage_is_found_and_named_in_one_run(cityscapes, tmp_path, capsys, zipped):
    folder = tmp_path / "results"
    folder.mkdir()
    damaged(folder)
    given = Path(shutil.make_archive(str(tmp_path / "results"), "zip", folder)) if zipped else folder
    assert check("cityscapes", given, "--data", cityscapes) == 1
    printed = capsys.readouterr().out
    blocks = {block.split(":")[0]: block.split("\n  ")[1:] for block in re.split(r"\n(?! )", printed)}
    assert list(blocks)[1:-1] == list(EXPECTED)  # between the first line and the end: nothing else is wrong
    for title, cases in EXPECTED.items():
        assert len(blocks[title]) == len(cases)
        assert all(case in line for case, line in zip(cases, blocks[title], strict=True)), title


def test_missing_images_and_the_limit_of_the_list(cityscapes, tmp_path, capsys):
    label_map().save(tmp_path / f"{FRAMES[1]}.png")
    assert check("cityscapes", tmp_path, "--data", cityscapes, "--limit", "1") == 1
    assert "missing (2): images without a label map\n" in (printed := capsys.readouterr().out)
    assert f"  {FRAMES[0]}_pred_labelIds.png\n  ... and 1 more" in printed and FRAMES[2] not in printed


def test_without_the_data_the_official_numbers_are_asked_for(tmp_path, capsys):
    Image.new("L", (2048, 1024), 7).save(tmp_path / f"{FRAMES[0]}.png")
    label_map().save(tmp_path / f"{FRAMES[1]}.png")
    assert check("cityscapes", tmp_path) == 1
    printed = capsys.readouterr().out
    assert "2 images; the test split has 1525" in printed and "64x32, its image is 2048x1024" in printed
    assert check("cityscapes", tmp_path, "--split", "val") == 1
    assert "the val split has 500" in capsys.readouterr().out


def test_ade20k_names_ids_and_folders(ade20k, tmp_path, capsys):
    folder = tmp_path / "x"
    write_png(folder / "results" / f"{ADE[0]}.png", np.full((30, 20), 150, np.uint8))
    write_png(folder / f"{ADE[1]}_labels.png", (np.arange(375).reshape(15, 25) % 150).astype(np.uint8))
    assert check("ade20k", folder, "--data", ade20k) == 1
    printed = capsys.readouterr().out
    assert f"put it at the top of the archive, as {ADE[0]}.png" in printed
    assert f"{ADE[1]}_labels.png: call it {ADE[1]}.png" in printed
    assert "0 (allowed: 1..150): 3 pixels" in printed
    assert "train ids (1)" in printed and "missing" not in printed


def test_duplicates_and_strangers_inside_a_zip(cityscapes, tmp_path, capsys):
    buffer = io.BytesIO()
    label_map().save(buffer, "PNG")
    path = tmp_path / "results.zip"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for name in (FRAMES[0], FRAMES[0], FRAMES[1], FRAMES[2]):
            archive.writestr(f"{name}.png", buffer.getvalue())
        archive.writestr("__MACOSX/._x.png", b"x")
    assert check("cityscapes", path, "--data", cityscapes) == 1
    printed = capsys.readouterr().out
    assert f"{FRAMES[0]}: 2 files" in printed and "__MACOSX/._x.png" in printed and "missing" not in printed


def test_wrong_input_is_one_line(cityscapes, ade20k, tmp_path, capsys):
    (tmp_path / "text.zip").write_text("no archive")
    (tmp_path / "empty").mkdir()
    cases = [
        (["check", "cityscapes", tmp_path / "gone.zip"], "no such file or folder"),
        (["check", "cityscapes", tmp_path / "text.zip"], "cannot be read as a zip file"),
        (["check", "cityscapes", tmp_path / "empty"], "holds no file"),
        (["check", "cityscapes", tmp_path / "text.zip", "--data", ade20k], "no test images here"),
        (["check", "ade20k", tmp_path / "text.zip", "--data", cityscapes], "no test images here"),
        (["make", "ade20k", tmp_path / "empty", "-o", tmp_path / "o.zip"], "no label map of a ade20k image here"),
    ]
    for arguments, expected in cases:
        assert main(["submission", *map(str, arguments)]) == 2
        error = capsys.readouterr().err.splitlines()
        assert expected in error[-1] and error[-1].startswith("segkit submission: error: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "text.zip"]
