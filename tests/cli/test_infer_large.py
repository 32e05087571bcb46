"""`segkit infer` on images that are read in tiles: GeoTIFF in, GeoTIFF out, nothing half-written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from PIL import Image

from segkit.cli.infer import main
from segkit.inference.images import is_large
from segkit.inference.segmenter import load
from segkit.inference.tiling import geotiff, tiles
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.segmentation import FCN

rasterio = pytest.importorskip("rasterio")

SPACE = LabelSpace(("road", "tree", "sky"), distinct_palette(3), identity_table(3))
PLACE = rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_800_000)
SIZE = (700, 500)
MEMORY = "14MB"  # the network has 3 MB


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.ckpt"
    torch.manual_seed(0)
    network = FCN("resnest14_tiny", num_classes=3, encoder_args={"radix": 0})  # no attention: tiles are exact
    return write_checkpoint(path, network, SPACE)


@pytest.fixture(autouse=True)
def _nothing_said() -> None:
    tiles._log_once.cache_clear()


def run(checkpoint: Path, image: Path, *options: str) -> int:
    output = image.parent / "out"
    arguments = ["--checkpoint", str(checkpoint), "--output", str(output), "--device", "cpu", "--memory", MEMORY]
    return main([str(image), *arguments, *options])


def save(path: Path, bands: np.ndarray, **profile: object) -> np.ndarray:
    """Write (bands, H, W) as a tiled GeoTIFF."""
    options = {"tiled": True, "blockxsize": 128, "blockysize": 128, "crs": "EPSG:25833", "transform": PLACE} | profile
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, **options
    ) as file:
        file.write(bands)
    return bands


def noise(count: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(count).integers(0, np.iinfo(dtype).max, (count, *SIZE), dtype, endpoint=True)


def whole(checkpoint: Path, rgb: np.ndarray) -> np.ndarray:
    return load(checkpoint, "cpu").predict(np.ascontiguousarray(rgb.transpose(1, 2, 0)))


@pytest.mark.slow
def test_a_geotiff_beyond_the_budget(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bands = save(tmp_path / "city.tif", noise(3))
    assert run(checkpoint, tmp_path / "city.tif") == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.glob("[!.]*")) == ["city_area.json", "city_labels.tif", "city_overlay.png"]
    with rasterio.open(out / "city_labels.tif") as file:
        labels = file.read(1)
        assert file.crs == rasterio.CRS.from_epsg(25833) and file.transform == PLACE
        assert file.profile["tiled"] and file.profile["compress"] == "deflate" and file.dtypes == ("uint8",)
        assert [file.colormap(1)[i][:3] for i in range(3)] == list(SPACE.palette)
    assert labels.shape == SIZE
    assert (labels == whole(checkpoint, bands)).mean() > 0.999
    area = json.loads((out / "city_area.json").read_text())
    assert (area["height"], area["width"]) == SIZE
    assert {one["id"]: one["pixels"] for one in area["classes"]} == {i: (labels == i).sum() for i in np.unique(labels)}
    printed = capfd.readouterr()
    assert "an image of 700 x 500 does not fit into 14 MB: the network sees it in " in printed.err
    assert "1 image in" in printed.out


@pytest.mark.slow
def test_a_budget_with_little_room_beside_transformed_filters(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "segkit")
    bands = save(tmp_path / "city.tif", noise(3))
    assert run(checkpoint, tmp_path / "city.tif", "--precision", "float32") == 0
    with rasterio.open(tmp_path / "out/city_labels.tif") as file:
        assert (file.read(1) == whole(checkpoint, bands)).mean() > 0.99
    assert "does not fit into 14 MB: the network gives up its transformed filters" in caplog.text
    assert "tiles of up to " in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grey", "alpha", "16 bits", "palette", "not tiled"])
def test_other_kinds_of_files(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "kind.tif"
    if kind == "grey":
        rgb = np.repeat(save(path, noise(1)), 3, axis=0)
    elif kind == "alpha":
        rgb = save(path, noise(4))[:3]
    elif kind == "16 bits":
        rgb = (save(path, noise(3, np.uint16)) >> 8).astype(np.uint8)
    elif kind == "not tiled":
        rgb = save(path, noise(3), tiled=False, compress="lzw", blockysize=1)
    else:
        colours = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
        indices = noise(1)[0]
        image = Image.fromarray(indices, "P")
        image.putpalette(colours.tobytes())
        image.save(path)
        rgb = colours[indices].transpose(2, 0, 1)
    assert run(checkpoint, path) == 0
    with rasterio.open(tmp_path / "out/kind_labels.tif") as file:
        assert (file.read(1) == whole(checkpoint, rgb)).mean() > 0.999


@pytest.mark.slow
def test_the_preview_is_small(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geotiff, "PREVIEW_SIDE", 250)
    save(tmp_path / "city.tif", noise(3))
    assert run(checkpoint, tmp_path / "city.tif") == 0
    with Image.open(tmp_path / "out/city_overlay.png") as image:
        assert image.width == 2 * 167 and image.height > 2 * 234  # every third pixel; enlarged, as small ones are


def test_an_image_in_the_budget_is_read_at_once(checkpoint: Path, tmp_path: Path) -> None:
    save(tmp_path / "small.tif", noise(3)[:, :64, :64])
    assert run(checkpoint, tmp_path / "small.tif", "--memory", "1GB") == 0
    assert (tmp_path / "out/small_labels.png").is_file()


def test_few_rows_are_read_at_once(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[int] = []
    read_rows = geotiff.read_rows

    def counted(source: object, path: Path, first: int, last: int, *bands: Any) -> np.ndarray:
        spans.append(last - first)
        return read_rows(source, path, first, last, *bands)

    monkeypatch.setattr(geotiff, "read_rows", counted)
    save(tmp_path / "city.tif", noise(3))
    assert run(checkpoint, tmp_path / "city.tif") == 0
    assert len(spans) > 1 and max(spans) < 400


def test_an_interrupted_run_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_rows = geotiff.read_rows

    def interrupted(source: object, path: Path, first: int, last: int, *bands: Any) -> np.ndarray:
        if first > 0:
            raise KeyboardInterrupt
        return read_rows(source, path, first, last, *bands)

    monkeypatch.setattr(geotiff, "read_rows", interrupted)
    save(tmp_path / "city.tif", noise(3))
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, tmp_path / "city.tif")
    assert list((tmp_path / "out").iterdir()) == []


def test_damaged_and_unfit_files_are_told_in_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "cut.tif", noise(3), compress="deflate")
    data = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 2])
    assert run(checkpoint, tmp_path / "cut.tif") == 1
    assert "truncated or damaged" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))
    save(tmp_path / "city.tif", noise(3))
    assert run(checkpoint, tmp_path / "city.tif", "--protocol", "window") == 1
    assert "use whole" in capsys.readouterr().err
    assert run(checkpoint, tmp_path / "city.tif", "--memory", "2MB") == 1
    error = capsys.readouterr().err
    assert "allow more memory" in error and len(error.strip().splitlines()) == 1
    assert run(checkpoint, tmp_path / "city.tif", "--memory", "lots") == 2
    assert "'lots' is not an amount of memory" in capsys.readouterr().err


def test_without_rasterio_the_cure_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "city.tif", noise(3))
    monkeypatch.setattr(geotiff, "rasterio", None)
    assert run(checkpoint, tmp_path / "city.tif") == 1
    assert "pip install 'segkit-torch[large-images]'" in capsys.readouterr().err


def test_what_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    assert not is_large(tmp_path / "a.png", 10**6)
    assert is_large(tmp_path / "a.png", 10**5)
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", "9999")
    assert is_large(tmp_path / "a.png", 10**9)
    (tmp_path / "b.png").write_text("no image")
    assert not is_large(tmp_path / "b.png", 1) and not is_large(tmp_path / "absent.png", 1)


def test_an_image_beyond_the_limit_of_pixels_is_read_in_tiles(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(3)[:, :80, :60].transpose(1, 2, 0)).save(tmp_path / "a.png", exif=exif)
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", "1000")
    assert run(checkpoint, tmp_path / "a.png", "--memory", "1GB", "--precision", "float32") == 0
    assert f"{tmp_path / 'a.png'} has the EXIF orientation 6, which is not applied in tiles" in capsys.readouterr().err
    with rasterio.open(tmp_path / "out/a_labels.tif") as labels:
        assert (labels.height, labels.width) == (80, 60)


def test_12_bits_in_16_are_refused_in_tiles_too(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "a.tif", noise(3, np.uint16) >> 4)
    assert run(checkpoint, tmp_path / "a.tif", "--precision", "float32") == 1
    assert "16 bits per channel with values 0..409" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*"))
