"""Classes joined and dropped: by hand, from a data set to what a checkpoint keeps and a score says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import scenes

from segkit.cli import main
from segkit.data.layout.base import sample_keys
from segkit.data.sets.camvid import CamVidDataModule
from segkit.data.sets.folder import FolderDataModule
from segkit.errors import InputError
from segkit.files import write_text
from segkit.inference.segmenter import load
from segkit.io import read_image, read_label, write_png
from segkit.metadata.label_space import LabelSpace
from segkit.metadata.regroup import regrouped
from segkit.visualization import overlay, with_legend

SPACE = LabelSpace.from_rows(
    ((7, "road", (1, 1, 1)), (8, "car", (2, 2, 2)), (9, "sky", (3, 3, 3)), (10, "truck", (4, 4, 4))), ignored=(0,)
)


def test_names_colours_and_table_by_hand() -> None:
    found = regrouped(SPACE, {"vehicle": ["truck", "car"]}, ["sky"])
    assert found.class_names == ("road", "vehicle") and found.palette == ((1, 1, 1), (4, 4, 4))
    raw = np.array([[7, 8, 9, 10, 0]], np.uint8)
    assert found.map_labels(raw, "").tolist() == [[0, 1, 255, 1, 255]]
    with pytest.raises(InputError, match="raw label value 11 is not declared"):
        found.map_labels(raw[:, :1] + 4, "")
    assert regrouped(SPACE, {"car": ["car", "truck"]}, []).class_names == ("road", "car", "sky")


@pytest.mark.parametrize(
    ("merge", "ignore", "said"),
    [
        ({"vehicle": ["car", "trunk"]}, [], "no such class 'trunk'; did you mean truck?"),
        ({}, ["sk"], "no such class 'sk'; did you mean sky?"),
        ({"a": ["car"], "b": ["car"]}, [], "names the class 'car' twice"),
        ({"a": ["car"]}, ["car"], "names the class 'car' twice"),
        ({"sky": ["car", "truck"]}, [], "'sky' is a class that is not part of the group"),
        ({"a": []}, [], "'a' is made of no class"),
        ({}, ["road", "car", "sky", "truck"], "drops all classes"),
    ],
)
def test_a_wrong_table_is_one_line(merge: dict[str, list[str]], ignore: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        regrouped(SPACE, merge, ignore)


def test_a_data_set_says_it_everywhere(tmp_path: Path) -> None:
    """The class itself does not; colours are still read by the names that classes.txt has; caches see it."""
    write_png(tmp_path / "images/val/0.png", np.zeros((2, 2, 3), np.uint8))
    write_png(tmp_path / "labels/val/0.png", np.array([[[9, 9, 9], [8, 8, 8]], [[7, 7, 7], [9, 9, 9]]], np.uint8))
    write_text(tmp_path / "classes.txt", "a\nb\nc\n")
    write_text(tmp_path / "palette.csv", "id,r,g,b\n0,7,7,7\n1,8,8,8\n2,9,9,9\n")
    plain = FolderDataModule(tmp_path, masks="colors")
    data = FolderDataModule(tmp_path, masks="colors", merge={"ac": ["a", "c"]})
    sample = data.find_samples("val")[0]
    assert data.class_names == ("ac", "b") and data.num_classes == 2 and plain.num_classes == 3
    assert data.read(sample)[1].tolist() == [[0, 1], [0, 0]] and plain.read(sample)[1].tolist() == [[2, 1], [0, 2]]
    assert sample_keys(data, [sample]) != sample_keys(plain, [sample])
    assert CamVidDataModule("x", ignore=["Sky"]).num_classes == 10 == CamVidDataModule.label_space.num_classes - 1
    with pytest.raises(InputError, match=r"^--data.merge and ignore: no such class 'Skye'; did you mean Sky\?"):
        _ = CamVidDataModule("x", ignore=["Skye"]).label_space


@pytest.mark.slow
def test_from_training_to_the_score_without_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = dict(num_train=2, num_val=1, num_test=2, height=64, width=64, base_size=64, crop_size=64, batch_size=2)
    joined = ["--data.merge", "{thing: [person, car]}", "--data.ignore", "[sky]"]
    data = [*scenes(tmp_path / "data", **sizes), *joined]
    network = ["--model.network", "FCN", "--model.network.encoder", "resnest14_tiny", "--trainer.accelerator", "cpu"]
    run, checkpoint = tmp_path / "run", str(tmp_path / "run/checkpoints/last.ckpt")
    assert main(["fit", *data, *network, "--trainer.max_epochs", "1", "--run_dir", str(run), "--overlays", "0"]) == 0
    names = ("road", "sidewalk", "building", "pole", "traffic sign", "vegetation", "thing")
    assert load(checkpoint).class_names == names

    weights = torch.load(checkpoint, weights_only=True)
    weights["state_dict"]["network.head.4.bias"][names.index("thing")] += 1e4  # which then is everywhere
    torch.save(weights, tmp_path / "thing.ckpt")
    image = np.zeros((40, 60, 3), np.uint8)
    write_png(tmp_path / "image.png", image)
    infer = ["infer", str(tmp_path / "image.png"), "--checkpoint", str(tmp_path / "thing.ckpt"), "--device", "cpu"]
    assert main([*infer, "--output", str(tmp_path / "out")]) == 0
    labels, colours = np.full((40, 60), 6, np.uint8), {6: (220, 20, 60)}  # the colour of a person in Cityscapes
    assert np.array_equal(read_label(tmp_path / "out/image_labels.png"), labels)
    assert (read_image(tmp_path / "out/image_color.png") == colours[6]).all()
    palette = [colours.get(i, (0, 0, 0)) for i in range(7)]
    shown = with_legend(overlay(image, labels, palette, 0.5), labels, [""] * 6 + ["thing"], palette)
    assert np.array_equal(read_image(tmp_path / "out/image_overlay.png"), shown)
    (area,) = json.loads((tmp_path / "out/image_area.json").read_text())["classes"]
    assert area == {"id": 6, "name": "thing", "pixels": 2400, "share": 1}

    test = ["test", *data, "--ckpt_path", checkpoint, "--run_dir", str(run)]
    assert main([*test, "--without", "[road, pole]", "--metric", "encoding"]) == 0
    result = json.loads((run / "result.json").read_text())
    iou = {row["name"]: row["IoU"] for row in result["classes"]}
    kept = [iou[name] for name in names if name not in ("road", "pole")]
    assert result["without"] == ["road", "pole"] and tuple(iou) == names
    assert result["scores"]["mIoU"] == pytest.approx(np.mean(kept))
    assert result["conventions"]["encoding"]["mIoU"] == result["scores"]["mIoU"]
    assert main([*test, "--without", "raod"]) == 2
    assert "--without: no such class 'raod'; did you mean road?" in capsys.readouterr().err
    assert main([*test[:1], *test[len(data) + 1 :], *[x for x in data if x not in joined]]) == 2  # without the table
    assert "trained on 7 classes" in capsys.readouterr().err

    table = ["benchmark", checkpoint, *data, "--device", "cpu", "--size", "32", "32", "--output", str(tmp_path / "t")]
    assert main([*table, "--metric", "encoding"]) == main([*table, "--metric", "encoding", "--without", "road"]) == 0
    rows = json.loads((tmp_path / "t/benchmark.json").read_text())["rows"]
    assert [row["without"] for row in rows] == [None, ["road"]]
    assert rows[1]["mIoU"] == pytest.approx(np.mean([iou[name] for name in names if name != "road"]))
    assert "| without |" in (tmp_path / "t/benchmark.md").read_text()
    assert main(["data", "browse", *data[:-2], "-o", str(tmp_path / "sheet.html"), "--count", "1"]) == 0
    assert "thing" in (tmp_path / "sheet.html").read_text()


def test_scores_and_comparisons_of_folders_say_what_they_leave_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for i in range(3):
        mask = rng.integers(0, 3, (8, 8), np.uint8)
        write_png(tmp_path / f"truth/{i}.png", mask)
        write_png(tmp_path / f"a/{i}.png", np.where(rng.random((8, 8)) < 0.5, mask, 0).astype(np.uint8))
        write_png(tmp_path / f"b/{i}.png", mask)
    write_text(tmp_path / "classes.txt", "background\ncat\ndog\n")
    shared = ["--labels", str(tmp_path / "classes.txt"), "--without", "background", "--output"]
    score = ["benchmark", "score", str(tmp_path / "a"), str(tmp_path / "truth"), *shared, str(tmp_path / "a.json")]
    assert main([*score, "--metric", "segkit", "all", "--bootstrap", "5", "--boundary"]) == 0
    said, result = capsys.readouterr().out, json.loads((tmp_path / "a.json").read_text())
    assert said.count("\nmean without background ") == 2 and "mIoU without background" in said
    of_class = [row["IoU"] for row in result["classes"]]
    assert result["without"] == ["background"] and result["scores"]["mIoU"] == pytest.approx(np.mean(of_class[1:]))
    assert result["bootstrap"]["class_names"] == result["boundary"]["class_names"] == ["cat", "dog"]

    compare = ["benchmark", "compare", str(tmp_path / "a.npz"), str(tmp_path / "b"), str(tmp_path / "truth"), *shared]
    assert main([*compare, str(tmp_path / "c.json"), "--samples", "5"]) == 0
    said, result = capsys.readouterr().out, json.loads((tmp_path / "c.json").read_text())
    assert "\nmIoU without background " in said and "mIoU without background (95" in said
    assert result["without"] == ["background"] and result["mIoU"]["a"] == pytest.approx(np.mean(of_class[1:]))
    assert result["class_names"] == ["cat", "dog"] and main([*score[:-3], "cow", *score[-2:]]) == 2
    assert "--without: no such class 'cow'" in capsys.readouterr().err
