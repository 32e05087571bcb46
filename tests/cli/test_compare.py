"""`segkit benchmark compare`, and the extra scores of `segkit benchmark score`, on label maps built here."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segkit.cli import main
from segkit.evaluation.boundary import boundary_areas
from segkit.evaluation.read_results import score_of
from segkit.evaluation.statistics import ImageAreas, bootstrap_miou
from segkit.files import write_text
from segkit.io import write_png

CLASSES = ("road", "tree", "sky", "boat")
IMAGES = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """truth/, of the classes 0..2 and ignored pixels; good/ and poor/, which differ in trees; like/ is like good/."""
    folder = tmp_path_factory.mktemp("compare")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        small = rng.integers(0, 3, (5, 6)).astype(np.uint8)
        truth = small.repeat(8, 0).repeat(8, 1)[: 38 + i % 3]
        for name, errors in (("good", (0.1, 0.1)), ("like", (0.1, 0.1)), ("poor", (0.1, 0.35))):
            chance = np.where(truth == 1, errors[1], errors[0]) * rng.uniform(0.6, 1.4)
            wrong = rng.random(truth.shape) < chance
            write_png(folder / name / f"{i:02d}.png", np.where(wrong, (truth + 1) % 3, truth).astype(np.uint8))
        truth[:3] = 255
        write_png(folder / "truth" / f"{i:02d}.png", truth)
    write_text(folder / "classes.txt", "\n".join(CLASSES) + "\n")
    return folder


def compare(folder: Path, a: str, b: str, output: Path, *options: str) -> int:
    arguments = [str(folder / a), str(folder / b), str(folder / "truth"), "--labels", str(folder / "classes.txt")]
    return main(["benchmark", "compare", *arguments, "--output", str(output), *options])


def test_a_real_difference(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(folder, "poor", "good", tmp_path / "comparison.json") == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert result["mIoU"]["verdict"] == "B" and result["images"] == IMAGES
    verdicts = [row["verdict"] for row in result["classes"]]
    assert verdicts[1] == "B" and verdicts[3] == "" and result["classes"][3]["a"] is None
    d = result["mIoU"]["difference"]
    assert d["low"] < d["value"] < d["high"] and d["value"] == result["mIoU"]["b"] - result["mIoU"]["a"]
    sentence = f"good is better than poor by {100 * d['value']:+.2f} mIoU (95 % CI {100 * d['low']:.2f} to "
    assert sentence in printed and result["conclusion"].startswith(sentence)
    lines = [line.split() for line in printed.splitlines()]
    header = next(line for line in lines if line[:1] == ["class"])
    assert header == ["class", "poor", "good", "difference", "95", "%", "CI", "p", "better"]
    tree, boat = (next(line for line in lines if line[:1] == [name]) for name in ("tree", "boat"))
    assert tree[1] == f"{100 * result['classes'][1]['a']:.2f}" and tree[-1] == "good"
    assert boat == ["boat", "-", "-", "-", "-", "-", "no", "truth"]
    with Image.open(tmp_path / "comparison.png") as image:
        image.load()


def test_no_difference_and_nothing_is_written_over(folder: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "comparison.json"
    assert compare(folder, "good", "like", output) == compare(folder, "good", "like", output, "--names", "x", "y") == 0
    first, second = capsys.readouterr().out.split("comparison.json", 1)
    assert "not distinguishable: " in first and "x and y are not distinguishable" in second
    assert {p.name for p in tmp_path.iterdir()} == {
        "comparison.json", "comparison.png", "comparison-2.json", "comparison-2.png"
    }  # fmt: skip


def test_missing_images(folder: Path, tmp_path: Path, capsys) -> None:
    for i in range(4, IMAGES):
        name = f"{i:02d}.png"
        (tmp_path / "part").mkdir(exist_ok=True)
        (tmp_path / "part" / name).write_bytes((folder / "good" / name).read_bytes())
    part = str(tmp_path / "part")  # joined to a folder, an absolute path stays
    assert compare(folder, part, "poor", tmp_path / "c.json") == 2
    error = capsys.readouterr().err
    assert "00: no prediction below" in error and "3 more; --allow_missing" in error
    assert compare(folder, part, "poor", tmp_path / "c.json", "--allow_missing") == 0
    assert json.loads((tmp_path / "c.json").read_text())["images"] == IMAGES - 4


def test_wrong_commands(folder: Path, tmp_path: Path, capsys) -> None:
    for options, words in (
        (["--level", "95"], "between 0 and 1"),
        (["--samples", "0"], "samples"),
        (["--num_classes", "3"], "--labels none"),
    ):
        assert compare(folder, "good", "poor", tmp_path / "c.json", *options) == 2
        assert words in capsys.readouterr().err
    labels = ["--labels", str(folder / "classes.txt")]
    assert main(["benchmark", "compare", str(folder / "good"), str(folder / "poor"), *labels]) == 2
    assert "needs TRUTH_DIR" in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()


def score(folder: Path, what: str, output: Path, *options: str) -> int:
    arguments = [str(folder / what), str(folder / "truth"), "--labels", str(folder / "classes.txt")]
    return main(["benchmark", "score", *arguments, "--output", str(output), *options])


def test_extra_scores(folder: Path, tmp_path: Path, capsys) -> None:
    assert score(folder, "poor", tmp_path / "r.json", "--boundary", "--bootstrap", "200", "--plot") == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "r.json").read_text())
    sums, names = np.zeros((3, 4), np.int64), []
    for path in sorted((folder / "truth").iterdir()):
        mask, labels = (np.array(Image.open(folder / kind / path.name)) for kind in ("truth", "poor"))
        sums += boundary_areas(mask, labels, 4)
        names.append(path.stem)
    iou = sums[0, :3] / (sums[1] + sums[2] - sums[0])[:3]
    np.testing.assert_allclose(result["boundary"]["classes"][:3], iou, rtol=1e-12)
    assert result["boundary"]["classes"][3] is None
    assert result["boundary"]["mIoU"] == pytest.approx(iou.mean(), rel=1e-12)
    areas = ImageAreas.load(tmp_path / "r.npz")
    assert list(areas.names) == names and areas.areas[:, 1].sum() == result["num_pixels"]
    assert result["bootstrap"].pop("class_names") == ["road", "tree", "sky", "boat"]
    assert result["bootstrap"] == bootstrap_miou(areas, 200).to_dict()
    interval = result["bootstrap"]["mIoU"]
    kept = score_of(tmp_path / "r.json", None)["card"]["interval"]
    assert kept == {"low": interval["low"], "high": interval["high"], "level": 0.95}
    assert interval["low"] < result["scores"]["mIoU"] == interval["value"] < interval["high"]
    pair = result["most_confused"]["pixels"][0]
    assert (pair["true"], pair["predicted"]) == ("tree", "sky") and "most confused pairs, by pixels" in printed
    assert pair["pixels"] == np.max(np.array(result["confusion_matrix"]) * (1 - np.eye(4)))
    assert f"{100 * interval['value']:.2f} ({100 * interval['low']:.2f} to {100 * interval['high']:.2f})" in printed
    with Image.open(tmp_path / "r-confusion.png") as image:
        image.load()
    assert str(tmp_path / "r-confusion.png") in printed


def test_kept_areas_are_compared_without_their_images(folder: Path, tmp_path: Path, capsys) -> None:
    for name in ("good", "poor"):
        assert score(folder, name, tmp_path / f"{name}.json", "--bootstrap", "10") == 0
    assert compare(folder, "good", "poor", tmp_path / "folders.json") == 0
    kept = [str(tmp_path / "good.npz"), str(tmp_path / "poor.npz"), "--output", str(tmp_path / "kept.json")]
    assert main(["benchmark", "compare", *kept, "--labels", str(folder / "classes.txt")]) == 0
    first, second = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("folders", "kept"))
    assert first["classes"] == second["classes"] and first["mIoU"] == second["mIoU"]
    capsys.readouterr()
    assert main(["benchmark", "compare", *kept, "--labels", "cityscapes"]) == 2
    assert "areas of 4 classes, --labels has 19" in capsys.readouterr().err


def test_extra_scores_that_cannot_be(folder: Path, tmp_path: Path, capsys) -> None:
    assert score(folder, "good", tmp_path / "r.json", "--bootstrap", "0") == 2
    assert "--bootstrap: '0' is not a whole number from 1" in capsys.readouterr().err
    assert score(folder, "good", tmp_path / "r.json", "--bootstrap", "10", "--limit", "1") == 0
    assert "one image cannot be resampled" in capsys.readouterr().out
    assert score(folder, "good", tmp_path / "plain.json") == 0
    assert not {"bootstrap", "boundary", "most_confused"} & json.loads((tmp_path / "plain.json").read_text()).keys()
