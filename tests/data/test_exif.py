"""`exif: apply`: masks that were drawn on the images as they are shown, from the check of the data to predictions."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from segkit.cli import main
from segkit.data.sets.folder import FolderDataModule
from segkit.errors import InputError
from segkit.io import write_png

LYING, MIRRORED = 6, 2  # shown after a quarter of a turn, clockwise; and mirrored


def write_pair(root: Path, split: str, name: str, orientation: int) -> None:
    """An image of two halves, of which the mask of the shown image has the bright one as class 1."""
    stored = np.full((16, 24, 3), 40, np.uint8)
    stored[:, :12] = 220
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = root / "images" / split / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stored).save(path, exif=exif)
    with Image.open(path) as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    write_png(root / "labels" / split / f"{name}.png", (shown[..., 0] > 128).astype(np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            write_pair(root, split, f"{i}", (LYING, MIRRORED)[i % 2])
    (root / "classes.txt").write_text("dark\nbright\n")
    return root


def agree(item: dict) -> bool:
    return bool(((item["image"][0] > 128) == (item["mask"] == 1)).all())


@pytest.mark.parametrize("cached", [False, True])
def test_image_and_mask_agree_in_every_loader(root: Path, tmp_path: Path, cached: bool) -> None:
    data = FolderDataModule(
        root, exif="apply", cache_dir=tmp_path / "cache" if cached else None, crop_size=12, base_size=24, batch_size=4,
        antialias=False, scale_range=(1.0, 1.0), num_workers=0,
    )  # fmt: skip
    data.prepare_data()
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)
    crops = data.datasets["train"]
    assert all(agree(crops[i]) for i in range(4))
    for key in ("val", "test"):
        items = [data.datasets[key][i] for i in range(2)]
        assert [tuple(item["mask"].shape) for item in items] == [(24, 16), (16, 24)]
        assert all(agree(item) for item in items)
    assert [tuple(data.datasets["predict"][i]["image"].shape[1:]) for i in range(2)] == [(24, 16), (16, 24)]


def test_a_cache_is_of_one_way_to_read(root: Path, tmp_path: Path) -> None:
    for name in ("1", "3"):  # what is left has one size either way
        for split in ("train", "val"):
            (root / "images" / split / f"{name}.png").unlink(missing_ok=True)
            (root / "labels" / split / f"{name}.png").unlink(missing_ok=True)
    for path in root.glob("labels/*/*.png"):
        write_png(path, np.zeros((16, 24), np.uint8))
    for path in root.glob("images/*/*.png"):  # stored upside down: both ways fit the masks' size
        with Image.open(path) as image:
            exif = image.getexif()
            exif[0x0112] = 3
            image.save(path, exif=exif)
    read = {}
    for exif in ("ignore", "apply", "ignore"):
        data = FolderDataModule(root, exif=exif, cache_dir=tmp_path / "cache", num_workers=0)
        data.prepare_data()
        data.setup("validate")
        read[exif] = data.datasets["val"][0]["image"].numpy()
    assert np.array_equal(read["ignore"], read["apply"][:, ::-1, ::-1])
    assert len(list((tmp_path / "cache").glob("folder-val-*"))) == 2


def test_check_names_the_cure(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "folder", str(root)]) == 1
    printed = capsys.readouterr().out
    assert (
        "0.png is 24x16, " in printed
        and "orientation 6: a folder of your own reads it so by --data.exif apply" in printed
    )
    assert "warning: exif (6)" in printed
    assert main(["data", "check", "folder", str(root), "--data.exif", "apply"]) == 0
    assert "nothing wrong" in capsys.readouterr().out


def test_reading_names_the_cure_too(root: Path) -> None:
    layout = FolderDataModule(root)
    with pytest.raises(InputError, match=r"orientation 6: a folder of your own reads it so by --data\.exif apply"):
        layout.read(layout.find_samples("val")[0])
    for path in root.glob("labels/val/*.png"):
        write_png(path, np.zeros((16, 24), np.uint8))
    layout = FolderDataModule(root, exif="apply")
    with pytest.raises(InputError, match=r"as the image is stored.*: leave --data\.exif at ignore"):
        layout.read(layout.find_samples("val")[0])
    with pytest.raises(InputError, match="exif is 'yes'; allowed are ignore and apply"):
        FolderDataModule(root, exif="yes")
