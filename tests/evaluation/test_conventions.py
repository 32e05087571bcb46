"""Each convention against the real library, or a restatement in plain loops where the library does not install.

The label maps, and what CSAIL's mit_semseg and PaddleSeg 2.8.0 make of them, are in tests/goldens, from make_metrics.py
and make_metrics_paddleseg.py; mmsegmentation (where it is installed), torchmetrics and cityscapesScripts run here, on
the same label maps.
"""

import warnings
from copy import copy
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling import args as global_args
from cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling import (
    generateMatrix,
    getIouScoreForLabel,
    getScoreAverage,
)
from cityscapesscripts.helpers.labels import trainId2label
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from segkit.errors import InputError
from segkit.evaluation.confusion import ConfusionMatrix
from segkit.evaluation.conventions import CONVENTIONS, comparison_table, convention_scores
from segkit.evaluation.results import format_table, result_dict, row_names
from segkit.evaluation.scores import Scores
from segkit.inference.protocols import get

official_args = copy(global_args)  # the script writes into them, and another test looks that nobody does

GOLDENS = Path(__file__).parents[1] / "goldens"
GOLDEN = {**np.load(GOLDENS / "metrics.npz")}
PADDLESEG = {**np.load(GOLDENS / "metrics_paddleseg.npz")}
CASES = sorted({key.split("/")[0] for key in GOLDEN})


def images(case):
    """Truth and prediction of each image, uint8."""
    count = sum(key.startswith(f"{case}/mask/") for key in GOLDEN)
    return [(GOLDEN[f"{case}/mask/{i}"], GOLDEN[f"{case}/labels/{i}"]) for i in range(count)]


def counts_of(case):
    """Count image by image, as an evaluation does."""
    confusion = ConfusionMatrix(int(GOLDEN[f"{case}/num_classes"]))
    for mask, labels in images(case):
        confusion.update(torch.from_numpy(mask), torch.from_numpy(labels))
    return confusion.counts


def ours(case, name):
    """Our scores, which must come without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return convention_scores(counts_of(case), name)


def assert_same(score, iou, miou, rtol):
    """Per-class and mean IoU; NaN equals NaN."""
    np.testing.assert_allclose(score.class_iou, iou, rtol=rtol)
    np.testing.assert_allclose(score.miou, miou, rtol=rtol)


def test_the_cases_are_all_there():
    assert {"random_2", "random_150", "absent_from_both", "predicted_only", "all_ignored", "one_pixel_wrong"} <= {
        *CASES
    }
    assert any(scores.absent for scores in (ours(case, "segkit") for case in CASES))


@pytest.fixture(scope="module")
def iou_metric():
    """mmsegmentation's own: `uv run --group mmseg pytest tests/evaluation/test_conventions.py`."""
    return pytest.importorskip("mmseg.evaluation", reason="mmsegmentation is not installed: --group mmseg").IoUMetric


@pytest.mark.parametrize("case", CASES)
def test_mmseg_is_mmsegmentations_iou_metric(case, iou_metric):
    metric, pairs = iou_metric(ignore_index=255, iou_metrics=["mIoU"]), images(case)
    metric.dataset_meta = {"classes": [str(i) for i in range(int(GOLDEN[f"{case}/num_classes"]))]}
    for mask, labels in pairs:
        data = {"pred_sem_seg": labels, "gt_sem_seg": mask}
        sample = {name: {"data": torch.from_numpy(ids).long()[None]} for name, ids in data.items()}
        metric.process({}, [sample])
    unrounded = metric.total_area_to_metrics(*(sum(area) for area in zip(*metric.results, strict=True)))
    rounded = metric.evaluate(len(pairs))
    score = ours(case, "mmseg")
    np.testing.assert_allclose(score.class_iou, unrounded["IoU"], rtol=1e-6)  # it divides in float32
    np.testing.assert_allclose(score.class_accuracy, unrounded["Acc"], rtol=1e-6)
    np.testing.assert_allclose(score.pixel_accuracy, unrounded["aAcc"], rtol=1e-6)
    for value, name in ((score.miou, "mIoU"), (score.mean_accuracy, "mAcc"), (score.pixel_accuracy, "aAcc")):
        np.testing.assert_allclose(100 * value, rounded[name], atol=0.0051)  # rounded to 2 decimals


@pytest.mark.parametrize("case", CASES)
def test_segkits_rule_is_mmsegs(case):
    mine, theirs = ours(case, "segkit"), ours(case, "mmseg")
    for name in {field.name for field in fields(Scores)} - {"frequency_weighted_iou"}:
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    assert np.isnan(theirs.frequency_weighted_iou)  # mmseg has none


@pytest.mark.parametrize("case", CASES)
def test_csail_is_mit_semseg(case):
    score = ours(case, "csail")
    assert_same(score, GOLDEN[f"{case}/csail/IoU"], GOLDEN[f"{case}/csail/mIoU"], rtol=1e-14)
    # CSAIL adds its 1e-10 to the pixels of each image, we to those of all
    np.testing.assert_allclose(score.pixel_accuracy, GOLDEN[f"{case}/csail/accuracy"], rtol=1e-9)
    assert np.isnan(score.mean_accuracy) and np.isnan(score.class_accuracy).all()


@pytest.mark.parametrize("case", CASES)
def test_paddleseg_is_paddlesegs_metrics(case):
    score, newer = ours(case, "paddleseg-2.8"), ours(case, "paddleseg")
    assert_same(score, PADDLESEG[f"{case}/IoU"], PADDLESEG[f"{case}/mIoU"], rtol=1e-14)
    np.testing.assert_allclose(score.class_accuracy, PADDLESEG[f"{case}/precision"], rtol=1e-14)
    np.testing.assert_allclose(score.pixel_accuracy, PADDLESEG[f"{case}/Acc"], rtol=1e-14)
    # revision d7975e7 differs in the classes that are absent from both, and in nothing else
    expected = PADDLESEG[f"{case}/IoU"].astype(float)
    expected[list(score.absent)] = 1
    assert_same(newer, expected, expected.mean(), rtol=1e-14)
    np.testing.assert_array_equal(newer.class_accuracy, score.class_accuracy)
    np.testing.assert_array_equal(newer.pixel_accuracy, score.pixel_accuracy)


@pytest.mark.parametrize("case", [c for c in CASES if c not in ("predicted_as_no_class", "class_lost")])
def test_torchmetrics_is_torchmetrics(case):
    num_classes = int(GOLDEN[f"{case}/num_classes"])
    if num_classes == 1:
        pytest.skip("torchmetrics takes two classes or more")
    metrics = {
        "miou": MulticlassJaccardIndex(num_classes, average="macro", ignore_index=255),
        "iou": MulticlassJaccardIndex(num_classes, average="none", ignore_index=255),
        "pixel_accuracy": MulticlassAccuracy(num_classes, average="micro", ignore_index=255),
        "mean_accuracy": MulticlassAccuracy(num_classes, average="macro", ignore_index=255),
        "accuracy": MulticlassAccuracy(num_classes, average="none", ignore_index=255),
    }
    for mask, labels in images(case):
        for metric in metrics.values():
            metric.update(torch.from_numpy(labels).long()[None], torch.from_numpy(mask).long()[None])
    theirs = {name: metric.compute().numpy() for name, metric in metrics.items()}  # float32
    score = ours(case, "torchmetrics")
    for name in ("miou", "pixel_accuracy", "mean_accuracy"):
        np.testing.assert_allclose(getattr(score, name), theirs[name], rtol=2e-6)
    # one class at a time it says 0 where the mean leaves the class out
    np.testing.assert_allclose(np.nan_to_num(score.class_iou), theirs["iou"], rtol=2e-6)
    np.testing.assert_allclose(np.nan_to_num(score.class_accuracy), theirs["accuracy"], rtol=2e-6)


@pytest.mark.parametrize("case", [c for c in CASES if GOLDEN[f"{c}/num_classes"] <= 19])
def test_cityscapes_is_cityscapes_scripts(case):
    num_classes = int(GOLDEN[f"{case}/num_classes"])
    by_id = generateMatrix(official_args)
    for mask, labels in images(case):
        for true, predicted in zip(mask.flat, labels.flat, strict=True):
            row = trainId2label[int(true)].id if true != 255 else 0  # 0 is "unlabeled": ignored
            column = trainId2label[int(predicted)].id if predicted < num_classes else 0
            by_id[row, column] += 1
    ids = [trainId2label[i].id for i in range(num_classes)]
    official = {i: getIouScoreForLabel(i, by_id, official_args) for i in ids}
    score = ours(case, "cityscapes")
    np.testing.assert_array_equal(score.class_iou, list(official.values()))
    np.testing.assert_allclose(score.miou, getScoreAverage(official, official_args), rtol=1e-14)
    assert np.isnan([score.pixel_accuracy, score.mean_accuracy]).all()


@pytest.mark.parametrize("case", CASES)
def test_encoding_is_its_file_in_plain_loops(case):
    """PyTorch-Encoding, encoding/utils/metrics.py: ids shifted by one, 0 is ignored, areas of images are added."""
    num_classes = int(GOLDEN[f"{case}/num_classes"])
    both, either, correct, labelled = np.zeros(num_classes), np.zeros(num_classes), 0, 0
    for mask, labels in images(case):
        for true, predicted in zip(mask.flat, labels.flat, strict=True):
            shifted = 0 if true == 255 else int(true) + 1
            guess = (int(predicted) + 1) * (shifted > 0)
            labelled += shifted > 0
            correct += shifted > 0 and guess == shifted
            for k in {shifted, guess}:
                if 1 <= k <= num_classes:
                    either[k - 1] += 1
                    both[k - 1] += shifted == guess
    smallest = np.spacing(1)
    score = ours(case, "encoding")
    assert_same(score, both / (smallest + either), (both / (smallest + either)).mean(), rtol=1e-14)
    np.testing.assert_allclose(score.pixel_accuracy, correct / (smallest + labelled), rtol=1e-14)
    assert np.isnan(score.mean_accuracy)


@pytest.mark.parametrize("case", CASES)
def test_detectron2_is_its_file_in_plain_loops(case):
    """detectron2, sem_seg_evaluation.py: predictions by row, one more row and column for what is no class, cut off."""
    num_classes = int(GOLDEN[f"{case}/num_classes"])
    matrix = [[0] * (num_classes + 1) for _ in range(num_classes + 1)]
    for mask, labels in images(case):
        for true, predicted in zip(mask.flat, labels.flat, strict=True):
            matrix[min(int(predicted), num_classes)][min(int(true), num_classes)] += 1
    kept = range(num_classes)
    true = [sum(matrix[row][k] for row in kept) for k in kept]
    predicted = [sum(matrix[k][column] for column in kept) for k in kept]
    present = [k for k in kept if true[k] > 0]
    iou = {k: matrix[k][k] / (true[k] + predicted[k] - matrix[k][k]) for k in present}
    accuracy = {k: matrix[k][k] / true[k] for k in present}

    def mean(values):
        return sum(values) / len(values) if values else np.nan

    score = ours(case, "detectron2")
    assert_same(score, [iou.get(k, np.nan) for k in kept], mean(list(iou.values())), rtol=1e-13)
    np.testing.assert_allclose(score.class_accuracy, [accuracy.get(k, np.nan) for k in kept], rtol=1e-13)
    np.testing.assert_allclose(score.mean_accuracy, mean(list(accuracy.values())), rtol=1e-13)
    total = sum(true)
    pixel = sum(matrix[k][k] for k in kept) / total if total else np.nan
    np.testing.assert_allclose(score.pixel_accuracy, pixel, rtol=1e-13)
    weighted = sum(iou[k] * true[k] / total for k in present) if total else np.nan
    np.testing.assert_allclose(score.frequency_weighted_iou, weighted, rtol=1e-13)


def test_by_hand():
    """Classes: 0 right 3 of 4, 1 right 1 of 2 and once missed, 2 predicted only, 3 absent; one pixel is ignored."""
    confusion = ConfusionMatrix(4)
    mask, labels = [[0, 0, 0, 0, 1, 1, 255]], [[0, 0, 0, 2, 1, 255, 3]]
    confusion.update(torch.tensor(mask, dtype=torch.uint8), torch.tensor(labels, dtype=torch.uint8))
    expected = {  # mIoU, pixel accuracy, mean accuracy
        "segkit": ((3 / 4 + 1 / 2 + 0) / 3, 4 / 6, (3 / 4 + 1 / 2) / 2),
        "encoding": ((3 / 4 + 1 / 2) / 4, 4 / 6, np.nan),
        "mmseg": ((3 / 4 + 1 / 2 + 0) / 3, 4 / 6, (3 / 4 + 1 / 2) / 2),
        "csail": ((3 / 4 + 1 / 2) / 4, 4 / 6, np.nan),
        "cityscapes": ((3 / 4 + 1 / 2 + 0) / 3, np.nan, np.nan),
        "paddleseg": ((3 / 4 + 1 / 2 + 0 + 1) / 4, 4 / 5, np.nan),
        "paddleseg-2.8": ((3 / 4 + 1 / 2) / 4, 4 / 5, np.nan),
        "detectron2": ((3 / 4 + 1) / 2, 4 / 5, (3 / 4 + 1) / 2),
        "torchmetrics": ((3 / 4 + 1 / 2 + 0) / 3, 4 / 6, (3 / 4 + 1 / 2 + 0) / 3),
        # 3 is predicted on void; void is missed once, and predicted once where it is not
        "void-class": ((3 / 4 + 1 / 2 + 0 + 0 + 0) / 5, 4 / 7, (3 / 4 + 1 / 2 + 0 + 0 + 0) / 5),
    }
    assert expected.keys() == CONVENTIONS.keys()
    for name, values in expected.items():
        score = confusion.scores(name)
        found = (score.miou, score.pixel_accuracy, score.mean_accuracy)
        np.testing.assert_allclose(found, values, rtol=1e-8, err_msg=name)
        assert score.absent == (() if name == "void-class" else (3,))
    assert confusion.scores().miou == confusion.scores("segkit").miou


def test_void_is_the_twelfth_class_of_camvid():
    """Two classes and void, by hand. Rows of the truth, columns predicted as 0, 1, no class: 4 1 1, 0 2 0, 2 1 5."""
    pairs = [(0, 0, 4), (0, 1, 1), (0, 255, 1), (1, 1, 2), (255, 0, 2), (255, 1, 1), (255, 255, 5)]
    mask, labels = ([pair[i] for pair in pairs for _ in range(pair[2])] for i in (0, 1))
    confusion = ConfusionMatrix(2)
    confusion.update(torch.tensor([mask], dtype=torch.uint8), torch.tensor([labels], dtype=torch.uint8))
    score = confusion.scores("void-class")
    np.testing.assert_allclose(score.class_iou, [4 / (4 + 2 + 2), 2 / (2 + 2), 5 / (5 + 3 + 1)], rtol=1e-8)
    np.testing.assert_allclose(score.class_accuracy, [4 / 6, 2 / 2, 5 / 8], rtol=1e-8)
    assert (score.miou, score.pixel_accuracy) == pytest.approx(((1 / 2 + 1 / 2 + 5 / 9) / 3, 11 / 16))
    assert confusion.scores().miou == pytest.approx((4 / 6 + 2 / 3) / 2)  # void does not count
    assert row_names(("sky", "road"), score) == ("sky", "road", "void")
    table = format_table(score, ("sky", "road"))
    assert [line.split() for line in table.splitlines()[2:5]][2] == ["void", "55.56", "62.50"]
    result = result_dict(confusion, ("sky", "road"), get("whole").to_dict(), metric="void-class")
    assert result["classes"][2] == {
        "id": 2,
        "name": "void",
        "IoU": score.class_iou[2],
        "accuracy": score.class_accuracy[2],
        "pixels": 8,
    }


@pytest.mark.parametrize("case", CASES)
def test_void_class_is_espnets_file_in_plain_loops(case):
    """ESPNet, train/IOUEval.py, of one batch that is the whole data set; void is the last of its classes."""
    num_classes = int(GOLDEN[f"{case}/num_classes"])
    hist = np.zeros((num_classes + 1, num_classes + 1))
    for mask, labels in images(case):
        for true, predicted in zip(mask.flat, labels.flat, strict=True):
            hist[min(int(true), num_classes), min(int(predicted), num_classes)] += 1
    iou = [hist[k, k] / (hist[k].sum() + hist[:, k].sum() - hist[k, k] + 1e-8) for k in range(num_classes + 1)]
    score = ours(case, "void-class")
    assert_same(score, iou, np.mean(iou), rtol=1e-13)
    np.testing.assert_allclose(score.pixel_accuracy, np.trace(hist) / (hist.sum() + 1e-8), rtol=1e-13)


def test_what_an_absent_class_counts():
    """Of a class that is predicted only, and of one that is absent from both."""
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([[0, 0]]), torch.tensor([[0, 1]]))
    words = {0.0: "0", 1.0: "1"}
    others = {"paddleseg": "0, 1", "detectron2": "left out, left out"}
    others |= dict.fromkeys(("encoding", "csail", "paddleseg-2.8", "void-class"), "0, 0")
    for name, row in CONVENTIONS.items():
        found = ", ".join(words.get(round(v, 9), "left out") for v in confusion.scores(name).class_iou[1:3])
        assert found == others.get(name, "0, left out"), name
        assert row.name == name and row.source and "\n" not in row.rule


def test_the_table_has_every_convention_aligned_with_its_rule():
    lines = comparison_table(counts_of("absent_from_both")).splitlines()
    end = 2 + len(CONVENTIONS)
    head, rows, rules = lines[0], lines[2:end], " ".join(" ".join(lines[end:]).split())
    assert [row.split()[0] for row in rows] == list(CONVENTIONS)
    assert {len(line) for line in [head, *rows]} == {len(head)}
    assert rows[0].split() == ["segkit", "60.619", "+0.000", "75.352", "75.225", "6"]
    assert rows[1].split() == ["encoding", "51.959", "-8.660", "75.352", "-", "7"]
    assert rows[5].split() == ["paddleseg", "66.245", "+5.626", "75.352", "-", "7"]
    for name, row in CONVENTIONS.items():
        assert f"{name}: {row.rule}" in rules


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match=r"'encodng'; did you mean encoding\? allowed: segkit, encoding, mmseg"):
        convention_scores(counts_of("random_2"), "encodng")
    with pytest.raises(InputError, match=r"shape \(3, 3\); allowed is \(K \+ 2, K \+ 1\)"):
        convention_scores(np.zeros((3, 3), np.int64))
    undeclared = np.zeros((4, 3), np.int64)
    undeclared[3, 0] = 5
    with pytest.raises(InputError, match=r"5 pixels of the masks are neither 0\.\.1 nor 255"):
        convention_scores(undeclared, "mmseg")
