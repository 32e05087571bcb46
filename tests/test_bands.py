"""Images of N bands and N bits, from the files to the labels: trained, tested, browsed, inferred, exported."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import rasterio
import timm.models
import torch
from PIL import Image
from torch import nn

import segkit
from segkit.bands import Bands, bands_of
from segkit.cli import main
from segkit.cli.infer import main as infer
from segkit.data.albumentations import A
from segkit.data.band_statistics import band_statistics
from segkit.data.crops import Lattice, RandomLongSideCrop, Window
from segkit.data.sets.folder import FolderDataModule
from segkit.data.transforms import TrainTransform
from segkit.errors import InputError
from segkit.inference.protocols import get
from segkit.inference.segmenter import Segmenter
from segkit.inference.tiling.geotiff import open_large
from segkit.io import read_header
from segkit.io.bands import read_bands
from segkit.models.encoders import build_encoder
from segkit.models.segmentation import FCN
from segkit.models.weights import adapt_input, read_checkpoint
from segkit.ops.normalize import IMAGENET, Normalization, normalize

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
SIZE = (40, 48)
FAST = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"]
NIR = ["--data.bands", "[red,green,blue,nir]", "--data.range", "[0,10000]"]


def write(path: Path, image: np.ndarray) -> Path:
    """Write (H, W, C) in the kind of file that the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, image)
    elif path.suffix == ".tif":
        height, width, count = image.shape
        form = {"width": width, "height": height, "count": count, "dtype": image.dtype}
        with rasterio.open(path, "w", driver="GTiff", **form) as file:
            file.write(np.moveaxis(image, -1, 0))
    else:
        Image.fromarray(image if image.shape[2] > 1 else image[..., 0]).save(path)
    return path


def draw(root: Path, count: int, dtype: str, most: float, suffix: str) -> Path:
    """Four training and two validation images whose last band is bright where the second class is."""
    rng = np.random.default_rng(0)
    for i in range(6):
        mask = np.zeros(SIZE, np.uint8)
        mask[:, 16 + 2 * i :] = 1
        image = rng.random((*SIZE, count)) * 0.2 + 0.1
        image[..., -1] += 0.6 * mask
        split = "train" if i < 4 else "val"
        write(root / "images" / split / f"{i}{suffix}", (image * most).astype(dtype))
        write(root / "labels" / split / f"{i}.png", mask[..., None])
    (root / "classes.txt").write_text("soil\nplants\n")
    return root


@pytest.fixture(scope="module")
def nir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("nir") / "fields", 4, "uint16", 10000, ".tif")


def options(root: Path, *more: str) -> list[str]:
    small = ["--data.crop_size", "32", "--data.base_size", "48", "--data.batch_size", "2", "--data.num_workers", "0"]
    return ["--data", "FolderDataModule", "--data.root", str(root), *small, *more]


@pytest.mark.parametrize(
    "count, dtype, most, suffix, declared",
    [
        (4, "uint16", 10000, ".tif", NIR),
        pytest.param(4, "uint8", 255, ".png", ["--data.bands", "4"], marks=pytest.mark.slow),
        pytest.param(5, "float32", 1, ".tif", ["--data.range", "percentile"], marks=pytest.mark.slow),
        pytest.param(5, "uint16", 4000, ".npy", ["--data.range", "percentile"], marks=pytest.mark.slow),
        pytest.param(1, "uint16", 4095, ".png", ["--data.range", "[0,4095]"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_from_files_to_labels(
    count: int, dtype: str, most: float, suffix: str, declared: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    data = options(draw(tmp_path / "fields", count, dtype, most, suffix), *declared)
    model = ["--model.network", "FCN", "--model.network.encoder", "resnest14_tiny", "--model.normalization", "data"]
    run = ["--trainer.max_epochs", "1", "--run_dir", "run", "--data.cache_dir", "cache"]
    assert main(["fit", *data, *model, *FAST, *run]) == 0
    checkpoint = "run/checkpoints/last.ckpt"
    assert main(["test", *data, *FAST, "--ckpt_path", checkpoint, "--run_dir", "run"]) == 0
    assert main(["data", "browse", "--data", "folder", *data[2:], "--bands", str(count)]) == 0
    assert Image.open("sheet.png").size[0] > 0
    assert main(["export", checkpoint, "--output", "net.safetensors"]) == 0
    image = Path("fields/images/val") / f"4{suffix}"
    assert infer([str(image), "--checkpoint", "net.safetensors", "--output", "out", "--precision", "exact"]) == 0

    stored = Normalization.from_dict(read_checkpoint("net.safetensors").normalization)
    assert stored == Normalization.from_dict(read_checkpoint(checkpoint).normalization)
    assert stored.bands is not None and stored.bands.dtype == dtype and len(stored.bands.names) == count
    segmenter = segkit.load("net.safetensors", precision="exact")
    labels = np.array(Image.open("out/4_labels.png"))
    assert labels.shape == SIZE and np.array_equal(segmenter.predict(image), labels)
    assert np.array_equal(segmenter.predict(read_bands(image)), labels)
    assert Image.open("out/4_overlay.png").mode == "RGB"
    wrong = np.zeros((9, 9, count + 1), dtype)
    with pytest.raises(InputError, match=f"array: has {count + 1} bands of {dtype}, needed are {count} bands"):
        segmenter.predict(wrong)


@pytest.mark.parametrize("suffix, dtype, count", [
    (".png", "uint16", 1), (".png", "uint8", 4), (".tif", "uint16", 5), (".tif", "float32", 2), (".tif", "int16", 7),
    (".npy", "float64", 3), (".npy", ">u2", 6), (".tif", "uint8", 1),
])  # fmt: skip
def test_what_a_file_stores_is_read(suffix: str, dtype: str, count: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = (rng.random((5, 7, count)) * 250).astype(dtype)
    path = write(tmp_path / f"a{suffix}", image)
    read = read_bands(path)
    assert read.dtype.name == (image.dtype.name if image.dtype.name in ("uint8", "uint16") else "float32")
    assert np.array_equal(read, image.astype(read.dtype)) and read.flags.c_contiguous
    assert (read_header(path).width, read_header(path).height) == (7, 5)


def test_color_of_16_bits_is_in_order(tmp_path: Path) -> None:
    import cv2

    image = np.arange(60, dtype=np.uint16).reshape(4, 5, 3) * 1000
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    assert np.array_equal(read_bands(tmp_path / "a.png"), image)


def test_normalization_by_range() -> None:
    bands = Bands(("a", "b"), "uint16", (0, 100), (1000, 300))
    values = torch.tensor([[0, 500, 2000], [50, 200, 300]], dtype=torch.int32).to(torch.uint16).view(1, 2, 1, 3)
    made = normalize(values, Normalization((0.5, 0.0), (0.5, 1.0), bands))
    assert made.flatten().tolist() == [-1, 0, 1, 0, 0.5, 1]
    with pytest.raises(InputError, match=r"uint8 0\.\.255 is needed"):
        normalize(values, Normalization((0.5, 0.0), (0.5, 1.0)))
    rgb = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    declared = Normalization(IMAGENET.mean, IMAGENET.std, bands_of(3, "uint8", None))
    assert torch.equal(normalize(rgb, declared), normalize(rgb))  # to the bit


@pytest.mark.parametrize("dtype, suffix", [("uint16", ".tif"), ("float32", ".npy")])
def test_range_and_moments_are_those_of_all_pixels(dtype: str, suffix: str, tmp_path: Path) -> None:
    root = draw(tmp_path, 3, dtype, 5000, suffix)
    data = FolderDataModule(root, range="percentile")
    pixels = np.concatenate(
        [np.asarray(data.read(s)[0], np.float64).reshape(-1, 3) for s in data.find_samples("train")]
    )
    low, high = np.percentile(pixels, (2, 98), axis=0)
    assert data.bands is not None and data.bands.names == ("red", "green", "blue")
    np.testing.assert_allclose((data.bands.low, data.bands.high), (low, high), rtol=1e-6)
    scaled = np.clip((pixels - data.bands.low) / (np.array(data.bands.high) - data.bands.low), 0, 1)
    _, mean, std, outside = band_statistics(data, data.bands, data.bands)
    np.testing.assert_allclose((mean, std), (scaled.mean(axis=0), scaled.std(axis=0)), rtol=1e-12)
    assert outside == pytest.approx(((pixels < low) | (pixels > high)).mean(), abs=1e-4)
    again = FolderDataModule(root, range="percentile")
    write(root / "images/train/0.tif".replace(".tif", suffix), np.full((*SIZE, 3), 1, dtype))
    assert again.bands != data.bands  # counted again, as a file has changed


@pytest.mark.parametrize("name, first", [("resnest14_tiny", "conv1.0.weight"), ("resnet18", "conv1.weight")])
@pytest.mark.parametrize("count", [1, 2, 4, 5])
@pytest.mark.slow
def test_weights_are_adapted_as_timm_does(name: str, first: str, count: int) -> None:
    rgb, own = build_encoder(name).state_dict(), build_encoder(name, in_channels=count).state_dict()
    said: list[str] = []
    made = adapt_input(rgb, own, said.append)
    (changed,) = [key for key in rgb if made[key] is not rgb[key]]
    assert changed.endswith(first) and len(said) == 1 and f"{count} band" in said[0]
    expected = timm.models.adapt_input_conv(count, rgb[changed])
    torch.testing.assert_close(made[changed], expected, rtol=0, atol=1e-6)
    assert {key: t.shape for key, t in made.items()} == {key: t.shape for key, t in own.items()}


@pytest.mark.parametrize("long", [37, 96])
def test_crops_of_16_bits_are_those_of_floats(long: int) -> None:
    image = np.random.default_rng(0).integers(0, 2**16, (48, 64, 5)).astype(np.uint16)
    window = Window(Lattice(48, long * 48 // 64, 2, 20), Lattice(64, long, 3, 20), flipped=True)
    made, exact = window.image(image), window.image(image.astype(np.float32))
    assert made.dtype == np.uint16 and made.shape == (20, 20, 5)
    assert np.abs(made - exact).max() <= 1
    assert window.image(image[..., :1]).shape == (20, 20, 1)


def test_padding_is_the_low_end() -> None:
    transform = TrainTransform(RandomLongSideCrop(20, 32, (1.0, 1.0)))
    transform.take(Bands(("a", "b"), "float32", (-30, 5), (0, 9)))
    image, mask = transform(np.full((20, 20, 2), 7, np.float32), np.zeros((20, 20), np.uint8), (0,))
    assert (image[mask == 255] == (-30, 5)).all() and (mask == 255).any()


@pytest.mark.slow
def test_tiles_of_a_large_file_are_read_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = FCN("resnest14_tiny", num_classes=3, in_channels=5, encoder_args={"radix": 0})  # tiles are exact
    bands = bands_of(5, "uint16", (0, 5000))
    normalization = Normalization(IMAGENET.adapted(5).mean, IMAGENET.adapted(5).std, bands)
    segmenter = Segmenter(network, None, normalization, get("whole"), torch.device("cpu"))
    image = np.random.default_rng(0).integers(0, 5000, (500, 300, 5)).astype(np.uint16)
    path = write(tmp_path / "large.tif", image)
    with open_large(segmenter, path, memory=14_000_000) as large:
        assert large.image.forwards > 1
        large.write_labels(tmp_path / "labels.tif")
        assert large.preview((50, 30)).shape == (50, 30, 3)
    with rasterio.open(tmp_path / "labels.tif") as labels:
        same = (labels.read(1) == segmenter.predict(image)).mean()
    assert same > 0.999
    with pytest.raises(InputError, match="has 4 bands of uint16, needed are 5 bands"):  # noqa: SIM117
        with open_large(segmenter, write(tmp_path / "four.tif", image[..., :4]), memory=14_000_000):
            pass


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("more, words", [
    (["--data.bands", "4"], "the images are of uint16, and the range of their values was never declared: set --data"),
    (["--data.bands", "5", "--data.range", "[0,1]"], "has 4 bands of uint16, needed are 5 bands of uint16"),
    (["--data.range", "[9,9]"], "range of band 1 is [9, 9]; give two numbers, the smaller one first"),
    (["--data.range", "[[0,1],[0,2]]"], "2 lower and 2 upper ends for 4 bands"),
    (["--data.bands", "0"], "bands is 0; give the names"),
    (["--data.bands", "[a,a,b,c]", "--data.range", "[0,1]"], "give each a name of its own"),
    ([*NIR, "--bands", "4", "3"], "bands 4 3: one is shown as grey, or three"),
    ([*NIR, "--bands", "swir"], "no band 'swir'; allowed are red, green, blue, nir, or 1 to 4"),
    ([*NIR, "--data.augmentations", "[{class_path: albumentations.ColorJitter}]"], "augmentation ColorJitter cannot"),
])  # fmt: skip
def test_wrong_declarations_take_one_line(
    more: list[str], words: str, nir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = ["--output", str(tmp_path / "sheet.png")]
    assert main(["data", "browse", *options(nir, *more), *sheet]) == 2
    assert words in one_line(capsys)


def test_wrong_files_take_one_line(nir: Path, tmp_path: Path) -> None:
    bands = bands_of(["a", "b"], "float32", (0, 1))
    image = np.zeros((4, 4, 2), np.float32)
    image[1, 2, 1] = np.nan
    with pytest.raises(InputError, match=r"a\.npy: 1 values are NaN or infinite \(in b\)"):
        read_bands(write(tmp_path / "a.npy", image), bands)
    with pytest.raises(InputError, match="has 1 bands of uint8, needed are 2 bands of float32"):
        read_bands(write(tmp_path / "a.png", np.zeros((4, 4, 1), np.uint8)), bands)
    with pytest.raises(InputError, match="an array"):
        read_bands(write(tmp_path / "b.npy", np.zeros((4, 4, 1, 1), np.uint8)))
    (tmp_path / "c.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"c\.npy: damaged \.npy file"):
        read_bands(tmp_path / "c.npy")
    np.save(tmp_path / "d.npy", np.array([[{}]]), allow_pickle=True)
    with pytest.raises(InputError, match=r"d\.npy: not an image"):
        read_bands(tmp_path / "d.npy")
    (tmp_path / "e.tif").write_bytes(next((nir / "images/train").iterdir()).read_bytes()[:2000])
    with pytest.raises(InputError, match=r"e\.tif: "):
        read_bands(tmp_path / "e.tif")


def test_without_rasterio_the_line_says_what_to_install(nir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    with pytest.raises(InputError, match=r"read by rasterio, which is missing: pip install '.*large-images"):
        read_bands(nir / "images/train/0.tif")


def test_check_names_nan_and_the_share_outside(nir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = draw(tmp_path / "set", 2, "float32", 1, ".npy")
    broken = np.full((*SIZE, 2), np.nan, np.float32)
    write(root / "images/train/1.npy", broken)
    report = tmp_path / "report.json"
    assert main(["data", "check", "folder", str(root), "--data.range", "[0,0.5]", "--json", str(report)]) == 1
    found = json.dumps(json.loads(report.read_text()))
    assert "1.npy: 3840 values are NaN or infinite" in found and "% of the values of 3 images" in found


def test_augmentations_that_move_pixels_take_any_bands() -> None:
    crop = RandomLongSideCrop(40, 32)
    bands = bands_of(5, "uint16", (0, 5000))
    transform = TrainTransform(crop, [A.HorizontalFlip(p=1), A.Rotate(fill_mask=255, p=1)])
    transform.take(bands)
    image, _ = transform(np.ones((40, 40, 5), np.uint16), np.zeros((40, 40), np.uint8), (0,))
    assert image.shape == (32, 32, 5) and image.dtype == np.uint16
    with pytest.raises(InputError, match="GaussNoise cannot take 5 bands of uint16"):
        TrainTransform(crop, [A.OneOf([A.GaussNoise()])]).take(bands)


def test_another_network_is_refused(nir: Path, tmp_path: Path) -> None:
    assert isinstance(build_encoder("resnest14_tiny", in_channels=4), nn.Module)
    data = FolderDataModule(nir, bands=4, range=(0, 10000))
    with pytest.raises(InputError, match=r"x\.ckpt: is of RGB of 8 bits, but folder has 4 bands of uint16"):
        data.take_bands(None, "x.ckpt")
    other = bands_of(["a", "b", "c", "d"], "uint16", (0, 1))
    with pytest.raises(InputError, match=r"x\.ckpt: is of 4 bands of uint16 \(a, b, c, d\)"):
        data.take_bands(other, "x.ckpt")
    kept = bands_of(4, "uint16", (5, 500))
    data.take_bands(kept, "x.ckpt")
    assert data.reader.bands == kept  # the checkpoint's range is used, not the declared one


PAGE = (Path(__file__).parents[1] / "docs/own-data.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = PAGE.partition("## More than three channels")[2]
    commands = section.partition("```sh\n")[2].partition("```")[0].splitlines()
    assert len(commands) == 5
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "fields", 4, "uint16", 10000, ".tif")
    for command in commands:
        arguments = shlex.split(command)[1:]
        small = ["--config", "overlays/smoke", "--data.crop_size", "32", "--data.base_size", "48"]
        more = [*small, "--trainer.logger", "false"] if arguments[0] in ("fit", "test") else []
        assert main([*arguments, *more]) == 0, command
    assert len(list(Path("segmented").glob("*_labels.png"))) == 2
