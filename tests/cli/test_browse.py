"""`segkit data browse` through its own door: what it shows is what the loader of `segkit fit` gives."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from segkit.cli.data.command import main
from segkit.contact_sheet.sheet import Share, Tile, contact_sheet, shares
from segkit.data.albumentations import A
from segkit.data.photometric import PhotoMetricDistortion
from segkit.data.sets.folder import FolderDataModule
from segkit.errors import InputError
from segkit.files import write_text
from segkit.io import read_image, write_png
from segkit.metadata.label_space import distinct_palette
from segkit.visualization import overlay

CLASSES = ("road", "<i>tree</i>", "sky & sea", "boat")  # no pixel is a boat
SIZES = {"base_size": 48, "crop_size": 32}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five training and three validation images of 40x56, one with a name that HTML must escape."""
    root = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 3)):
        for i in range(count):
            name = "<b>&0" if i == 0 else str(i)
            write_png(root / f"images/{split}/{name}.png", rng.integers(0, 256, (40, 56, 3), np.uint8))
            labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (5, 7), p=(0.6, 0.29, 0.01, 0.1))
            labels[0, :4] = (0, 1, 2, 255)
            write_png(root / f"labels/{split}/{name}.png", labels.repeat(8, 0).repeat(8, 1))
    write_text(root / "classes.txt", "\n".join(CLASSES) + "\n")
    return root


def browse(root: Path | str, output: Path, *more: str) -> int:
    sizes = [part for name, value in SIZES.items() for part in (f"--data.{name}", str(value))]
    return main(["browse", "folder", str(root), "--output", str(output), *sizes, *more])


def samples_of(data: FolderDataModule, epoch: int = 0) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """Image, mask and name of an epoch's training samples, in its order."""
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    items = [loader.dataset[key] for key in loader.sampler]
    return [(item["image"].permute(1, 2, 0).numpy(), item["mask"].numpy(), item["name"]) for item in items]


def module(root: Path, **options) -> FolderDataModule:
    return FolderDataModule(root, batch_size=1, num_workers=0, **SIZES, **options)


def place_of(image: np.ndarray, sheet: np.ndarray, factor: int) -> tuple[int, int]:
    """(row, column) at which the sheet shows exactly this image, enlarged."""
    large = image.repeat(factor, 0).repeat(factor, 1)
    height, width = large.shape[:2]
    corners = np.argwhere((sheet[: -height + 1, : -width + 1] == large[0, 0]).all(-1))
    found = [(int(y), int(x)) for y, x in corners if np.array_equal(sheet[y : y + height, x : x + width], large)]
    assert len(found) == 1
    return found[0]


def check_tile(sheet: np.ndarray, image: np.ndarray, mask: np.ndarray, factor: int) -> tuple[int, int]:
    """The image is there, and right of it its labels: colours, or dark where ignored."""
    y, x = place_of(image, sheet, factor)
    height, width = (side * factor for side in mask.shape)
    right = sheet[y : y + height : factor, x + width + 6 : x + 2 * width + 6 : factor]
    expected = overlay(image, mask, distinct_palette(len(CLASSES)))
    assert np.array_equal(right[mask != 255], expected[mask != 255])
    ignored = right[mask == 255]
    assert ((ignored == image[mask == 255] // 3) | (ignored == 130)).all()
    return y, x


def test_train_shows_the_crops_of_the_epoch_in_its_order(root: Path, tmp_path: Path, capsys) -> None:
    assert browse(root, tmp_path / "sheet.png", "--count", "3", "--epoch", "4", "--data.seed=7") == 0
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape[1] <= 2400
    expected = samples_of(module(root, seed=7), epoch=4)[:3]
    places = [check_tile(sheet, image, mask, factor=15) for image, mask, _ in expected]  # 480 pixels from 32
    assert places == sorted(places)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "reading folder (train) ..."
    assert out[1] == f"Folder, epoch 4, seed 7, 3 of 5 train crops: {tmp_path / 'sheet.png'}"


@pytest.mark.slow
def test_a_recipe_gives_its_augmentations_and_the_root_is_beaten(root: Path, tmp_path: Path) -> None:
    """The augmentations that mmsegmentation's and SegFormer's recipes have, by class path."""
    augmentations = [
        {"class_path": "segkit.data.photometric.PhotoMetricDistortion", "init_args": {"hue_delta": 9}},
        {"class_path": "albumentations.GaussianBlur", "init_args": {"p": 1.0}},
        {"class_path": "albumentations.Rotate", "init_args": {"limit": [-20, 20], "fill_mask": 255, "p": 1.0}},
        {
            "class_path": "albumentations.OneOf",
            "init_args": {
                "transforms": [{"class_path": "albumentations.CLAHE"}, {"class_path": "albumentations.NoOp"}]
            },
        },
    ]
    arguments = {"root": "nowhere", **SIZES, "augmentations": augmentations, "cache_dir": str(tmp_path / "cache")}
    data = {"class_path": "FolderDataModule", "init_args": arguments}
    write_text(tmp_path / "recipe.yaml", yaml.safe_dump({"data": data, "model": {"network": {"class_path": "FCN"}}}))
    write_text(tmp_path / "data.yaml", yaml.safe_dump(data))
    write_text(tmp_path / "names_it.yaml", yaml.safe_dump({"data": "data.yaml"}))
    for name in ("recipe", "data", "names_it"):
        output = tmp_path / f"{name}.png"
        assert main(["browse", str(tmp_path / f"{name}.yaml"), str(root), "--output", str(output), "--count", "2"]) == 0
    assert (tmp_path / "data.png").read_bytes() == (tmp_path / "recipe.png").read_bytes()
    assert (tmp_path / "data.png").read_bytes() == (tmp_path / "names_it.png").read_bytes()
    same = [PhotoMetricDistortion(hue_delta=9), A.GaussianBlur(p=1.0), A.Rotate((-20, 20), fill_mask=255, p=1.0)]
    same.append(A.OneOf([A.CLAHE(), A.NoOp()]))
    for image, mask, _ in samples_of(module(root, augmentations=same))[:2]:
        check_tile(read_image(tmp_path / "data.png"), image, mask, factor=15)
    assert not (tmp_path / "cache").exists()


def test_val_shows_whole_images_spread_over_the_split(root: Path, tmp_path: Path) -> None:
    assert browse(root, tmp_path / "sheet.png", "--split", "val", "--count", "2") == 0
    sheet, data = read_image(tmp_path / "sheet.png"), module(root)
    data.setup("validate")
    for index in (0, 1):
        item = data.datasets["val"][index]
        assert item["mask"].shape == (40, 56)
        check_tile(sheet, item["image"].permute(1, 2, 0).numpy(), item["mask"].numpy(), factor=8)


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_html_is_one_file_with_everything_in_it(root: Path, tmp_path: Path) -> None:
    assert browse(root, tmp_path / "sheet.html") == 0
    text = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "b&0"} & {tag for tag, _ in page.tags}
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 10 and {tag for tag, a in page.tags if "src" in a or "href" in a} == {"img"}
    for (image, _, name), source in zip(samples_of(module(root)), sources[::2], strict=True):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))))
        assert shown.shape == image.shape and np.abs(shown.astype(int) - image).mean() < 8
        assert f"{name}, 32x32" in page.text
    assert {"<b>&0, 32x32", "<i>tree</i>", "sky & sea", "ignored"} <= set(page.text) and "boat" not in page.text
    assert any("3 of 4 classes occur" in part for part in page.text)
    percents = [float(number) for number in re.findall(r"<em>([\d.]+)%</em>", text)]
    assert sum(percents) == pytest.approx(100, abs=1.5)


def test_rare_class_sampling_says_for_which_class_a_crop_was_drawn(root: Path, tmp_path: Path) -> None:
    assert browse(root, tmp_path / "sheet.html", "--data.sampling", "rare_classes") == 0
    captions = re.findall(r"<figcaption>(.+)</figcaption>", (tmp_path / "sheet.html").read_text(encoding="utf-8"))
    assert len(captions) == 5 and all(", 32x32, for " in caption for caption in captions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fodler", "ROOT"], "no such data set 'fodler'; did you mean folder?"),
        (["folder"], "where is the data? give its folder or zip"),
        (["none.yaml"], "none.yaml: no such file"),
        (["folder", "ROOT", "--split", "trian"], "--split: invalid choice: 'trian'"),
        (["folder", "ROOT", "--count", "0"], "'0' is not a whole number from 1"),
        (["folder", "ROOT", "--epoch", "-1"], "--epoch is -1; allowed is 0 or more"),
        (["folder", "ROOT", "--output", "sheet.jpg"], "a name that ends in .png or .html"),
        (["folder", "ROOT", "--data.crop_siz", "32"], "did you mean crop_size?"),
        (["folder", "ROOT", "--data.crop_size", "0"], "crop_size is 0; allowed is 1 or more"),
        (["folder", "ROOT", "--data.masks", "colours"], "colours"),
        (["folder", "ROOT/none"], "no such data folder"),
        (["ade20k", "ROOT", "--split", "val"], "images/validation"),
        ([], "which data? give a data set or a recipe: segkit data browse NAME ROOT"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], message: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        main(["browse", *(argument.replace("ROOT", str(root)) for argument in arguments)])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_other_yaml_is_refused(tmp_path: Path) -> None:
    for text, message in (("a: 1", "no data set here"), ("- 1", "not a recipe"), ("a: [", "not valid YAML")):
        write_text(tmp_path / "other.yaml", text)
        with pytest.raises(InputError, match=message):
            main(["browse", str(tmp_path / "other.yaml"), "--output", str(tmp_path / "sheet.png")])


def test_an_output_is_replaced_only_by_overwrite(root: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "sheet.png", "mine")
    with pytest.raises(InputError, match="exists already"):
        browse(root, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_text() == "mine"
    assert browse(root, tmp_path / "sheet.png", "--overwrite") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    read_image(tmp_path / "sheet.png")


def test_shares_are_sorted_with_the_ignored_last() -> None:
    mask = np.array([[0, 2, 2, 2, 255, 255, 255, 255, 255, 255]], np.uint8)
    image = np.zeros((1, 10, 3), np.uint8)
    found = shares([Tile(image, mask, "a"), Tile(image, mask, "b")], CLASSES)
    assert found == [Share(2, "sky & sea", 0.3), Share(0, "road", 0.1), Share(255, "ignored", 0.6)]
    percents = {1.0: "100%", 0.3: "30%", 0.0123: "1.2%", 0.00123: "0.12%", 0.000012: "0.001%", 1e-6: "< 0.001%"}
    assert {share: Share(0, "a", share).percent for share in percents} == percents
    assert [Share(0, "a", share).length for share in (1.0, 1e-2, 1e-5, 1e-9)] == pytest.approx([1, 0.6, 0, 0])


@pytest.mark.slow
@pytest.mark.parametrize(("count", "height", "width"), [(1, 8, 8), (12, 480, 480), (7, 128, 256), (3, 3000, 40)])
def test_a_sheet_of_150_classes_fits_its_width(count: int, height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    names = [f"class {i} of a name that is far too long for any legend" for i in range(150)]
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    samples = [Tile(image, rng.integers(0, 150, (height, width), np.uint8), "name " * 40) for _ in range(count)]
    sheet = contact_sheet(samples, names, distinct_palette(150), "title " * 200)
    assert sheet.dtype == np.uint8 and sheet.shape[1] <= 2400 and sheet.shape[0] < 6000
    assert (sheet[:, :24] == 255).all() and (sheet[:, -24:] == 255).all()  # margins: nothing is cut off
