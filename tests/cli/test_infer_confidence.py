"""`segkit infer --confidence --probabilities --threshold`: what is written agrees with the Segmenter, and fits."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from largest_tensor import Largest
from PIL import Image

from segkit.cli.infer import main
from segkit.inference.segmenter import Segmenter, load
from segkit.inference.sureness import write_probabilities
from segkit.io.confidence import read_confidence
from segkit.metadata.label_space import numbered_space
from segkit.models.segmentation import FCN


def write_network(path: Path, num_classes: int) -> Path:
    torch.manual_seed(0)
    network = FCN("resnest14_tiny", num_classes=num_classes, output_stride=16)
    network.head[-1].weight.data *= 300  # confidences of all sizes
    return write_checkpoint(path, network, numbered_space(num_classes))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("weights") / "sure.ckpt", 5)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (61, 45, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def run(checkpoint: Path, image: Path, *more: str) -> int:
    folder = image if image.is_dir() else image.parent
    given = [image, "--checkpoint", checkpoint, "--output", folder / "out", "--device", "cpu"]
    return main([*map(str, given), *more])


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["whole", "ms-flip"])
def test_what_is_written_is_what_the_segmenter_gives(checkpoint: Path, image: Path, protocol: str) -> None:
    assert run(checkpoint, image, "--confidence", "--probabilities", "--protocol", protocol) == 0
    made = load(checkpoint, "cpu", protocol)
    labels, confidence = made.predict(image, with_confidence=True)
    out = image.parent / "out"
    assert (read(out / "a_labels.png") == labels).mean() > 0.999  # but for ties
    assert abs(read_confidence(out / "a_confidence.png") - 255 * confidence).max() < 0.51
    with np.load(out / "a_probabilities.npz", allow_pickle=False) as file:
        shares = file["probabilities"]
    assert shares.dtype == np.float16 and shares.shape == (61, 45, 5)
    expected = made.predict_proba(image)
    np.testing.assert_allclose(shares.transpose(2, 0, 1), expected, atol=6e-4)
    assert np.array_equal(shares == 0, expected.transpose(1, 2, 0).astype(np.float16) == 0)
    assert sorted(p.name for p in out.glob("[!.]*")) == sorted(
        f"a_{end}"
        for end in ("area.json", "color.png", "confidence.png", "labels.png", "overlay.png", "probabilities.npz")
    )


def test_of_unsure_pixels_nothing_is_said(checkpoint: Path, image: Path) -> None:
    labels, confidence = load(checkpoint, "cpu").predict(image, with_confidence=True)
    threshold = float(np.median(confidence))
    assert run(checkpoint, image, "--threshold", str(threshold)) == 0
    out, expected = image.parent / "out", np.where(confidence < threshold, 255, labels)
    assert np.array_equal(read(out / "a_labels.png"), expected)
    assert (read(out / "a_color.png")[expected == 255] == 0).all()
    area = json.loads((out / "a_area.json").read_text())
    none = int((expected == 255).sum())
    assert 0 < none < expected.size and area["threshold"] == threshold
    assert area["no_class"] == {"pixels": none, "share": none / expected.size}
    assert {c["id"]: c["pixels"] for c in area["classes"]} == {
        i: (expected == i).sum() for i in {*expected.flat} - {255}
    }
    assert not (out / "a_confidence.png").exists()
    assert run(checkpoint, image, "--threshold", "0", "--confidence") == 0  # nothing is below 0
    assert np.array_equal(read(out / "a_labels.png"), labels) and (out / "a_confidence.png").exists()


@pytest.mark.slow
def test_images_of_one_size_in_one_batch(checkpoint: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segkit.inference import stream

    monkeypatch.setitem(stream.BATCH_PIXELS, "cpu", 10 * 61 * 45)
    Image.fromarray(read(image)[::-1].copy()).save(image.with_name("b.png"))
    for more in ("--confidence", "--probabilities"):
        assert run(checkpoint, image.parent, more, "--confidence") == 0
        made = load(checkpoint, "cpu")
        for name in ("a", "b"):
            confidence = made.predict(image.with_name(f"{name}.png"), with_confidence=True)[1]
            found = read_confidence(image.parent / f"out/{name}_confidence.png")
            assert abs(found - 255 * confidence).max() < 0.6


@pytest.mark.parametrize("option", [["--confidence"], ["--probabilities"], ["--threshold", "0.5"]])
def test_an_image_that_is_read_in_tiles_is_refused_in_one_line(
    checkpoint: Path,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: list[str],
) -> None:
    monkeypatch.setenv("SEGKIT_MAX_PIXELS", "1000")
    assert run(checkpoint, image, *option) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "a.png: is read in tiles, which gives labels alone; leave --confidence" in said
    assert not (image.parent / "out").exists()


@pytest.mark.parametrize("value", ["1.5", "-0.1", "nan", "high"])
def test_a_threshold_is_a_probability(
    checkpoint: Path, image: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    with pytest.raises(ValueError, match=r"not a number in 0\.\.1"):
        run(checkpoint, image, "--threshold", value)


@pytest.mark.slow
def test_probabilities_are_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    segmenter: Segmenter = load(write_network(tmp_path / "many.ckpt", 150), "cpu", precision="exact")
    image = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    with Largest() as largest:
        labels, _ = write_probabilities(tmp_path / "p.npz", segmenter.strips(image), (600, 800, 150))
    assert largest.seen < 4 * 150 * 600 * 800 / 8  # 16 MB strips; the network's own features are larger than these
    with zipfile.ZipFile(tmp_path / "p.npz") as file:
        assert file.testzip() is None and file.namelist() == ["probabilities.npy"]
    with np.load(tmp_path / "p.npz", allow_pickle=False) as file:
        shares = file["probabilities"]
    assert shares.shape == (600, 800, 150) and (shares.argmax(2) == labels).mean() > 0.98  # float16 has more ties
    np.testing.assert_allclose(shares[::50].sum(2, dtype=np.float32), 1, atol=0.01)


def test_a_file_that_could_not_be_finished_is_not_there(tmp_path: Path) -> None:
    def stopped():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        write_probabilities(tmp_path / "p.npz", stopped(), (2, 2, 2))
    assert not list(tmp_path.iterdir())
