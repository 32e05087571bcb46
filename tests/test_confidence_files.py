"""Confidence maps: what they hold, and that nobody takes one for a label map."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segkit.benchmark.models.predictions import PredictionsModel
from segkit.errors import InputError
from segkit.io import write_png
from segkit.io.confidence import confidence_path, is_confidence, read_confidence, write_confidence
from segkit.predictions.label_files import SERVERS, find_predictions
from segkit.predictions.pairs import find_pairs

SURE = np.array([[0, 0.5, 1], [1 / 255, 0.998, 0.9979]], np.float32)
SHADES = [[0, 128, 255], [1, 254, 254]]  # 0.5 * 255 = 127.5 goes to the even one


def test_a_confidence_map_says_its_scale_to_any_reader(tmp_path: Path) -> None:
    path = tmp_path / "a_confidence.png"
    write_confidence(path, SURE)
    assert read_confidence(path).tolist() == SHADES
    with Image.open(path) as image:
        image.load()
        assert image.mode == "L" and np.asarray(image).tolist() == SHADES
        assert image.info["confidence"] == "value / 255"


@pytest.mark.parametrize("labels", ["a.png", "a_labels.png"])
def test_it_lies_beside_its_labels(labels: str) -> None:
    assert confidence_path(Path("b") / labels) == Path("b/a_confidence.png")


def test_other_files_are_no_confidence_maps(tmp_path: Path) -> None:
    write_png(tmp_path / "a_confidence.png", np.zeros((4, 4), np.uint8))  # a label map of an image of this name
    write_confidence(tmp_path / "a.png", SURE)
    (tmp_path / "b_confidence.png").write_bytes(b"no PNG")
    assert not any(map(is_confidence, tmp_path.iterdir()))
    for name, words in (("a", "no text 'confidence'"), ("b", "damaged|truncated"), ("c", "no such confidence map")):
        with pytest.raises(InputError, match=f"{name}_confidence.png.*({words})"):
            read_confidence(tmp_path / f"{name}_confidence.png")


def test_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a_confidence.png"
    write_confidence(path, np.random.default_rng(0).random((40, 40), np.float32))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"damaged|truncated"):
        read_confidence(path)


def test_readers_of_label_maps_leave_them_out(tmp_path: Path) -> None:
    for name in ("x/berlin_000000_000019", "x/own_confidence"):  # the second is an image of this name
        for folder in ("true", "predicted"):
            write_png(tmp_path / folder / f"{name}.png", np.zeros((2, 3), np.uint8))
        write_confidence(tmp_path / "predicted" / f"{name}_confidence.png", SURE)
    found = find_pairs(tmp_path / "predicted", tmp_path / "true")
    assert [pair.name for pair in found.pairs] == ["x/berlin_000000_000019", "x/own_confidence"]
    assert not found.problems and not found.unused
    model = PredictionsModel(str(tmp_path / "predicted"))
    model.expect(["x/berlin_000000_000019", "x/own_confidence"])
    assert model.labels(np.zeros((2, 3, 3), np.uint8), "x/own_confidence").tolist() == [[0] * 3] * 2
    with pytest.raises(InputError, match="have no prediction"):
        model.expect(["x/own_confidence_confidence"])
    files = find_predictions(tmp_path / "predicted", SERVERS["cityscapes"])
    assert files == {"berlin_000000_000019": [tmp_path / "predicted/x/berlin_000000_000019.png"]}
