"""Result files are valid JSON that says everything; tables are aligned and name what they leave out."""

import json

import cv2
import numpy as np
import pytest
import torch

from segkit import __version__
from segkit.cli import main
from segkit.errors import InputError
from segkit.evaluation.confusion import ConfusionMatrix
from segkit.evaluation.conventions import CONVENTIONS, convention_scores
from segkit.evaluation.results import format_table, result_dict, versions
from segkit.files import write_json
from segkit.inference.protocols import get

NAMES = ("road", "sidewalk", "train")


def two_classes():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([[[0, 0, 0, 1]], [[1, 255, 1, 0]]]), torch.tensor([[[0, 0, 1, 1]], [[1, 0, 9, 0]]]))
    return confusion


def test_result_file(tmp_path):
    path = tmp_path / "run" / "result.json"
    protocol = get("encoding-ms").to_dict()
    result = result_dict(two_classes(), NAMES, protocol, dataset={"name": "mine", "split": "val"})
    write_json(path, result)

    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads(path.read_text(), parse_constant=refuse)  # NaN is no JSON
    assert read == result
    assert read["segkit"] == __version__ and read["date"].endswith("+00:00")
    assert read["protocol"]["fusion"] == "exp_sum" and read["dataset"] == {"name": "mine", "split": "val"}
    assert (read["num_images"], read["num_pixels"], read["partial"]) == (2, 7, False)
    assert read["confusion_matrix"] == [[3, 1, 0], [0, 2, 0], [0, 0, 0]] and read["missed"] == [0, 1, 0]
    assert read["scores"]["mIoU"] == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert read["scores"]["pixel_accuracy"] == pytest.approx(5 / 7)
    assert read["scores"]["mean_accuracy"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert read["scores"]["frequency_weighted_IoU"] == pytest.approx(4 / 7 * 3 / 4 + 3 / 7 / 2)
    assert read["classes"][1] == {"id": 1, "name": "sidewalk", "IoU": 0.5, "accuracy": 2 / 3, "pixels": 3}
    assert read["classes"][2] == {"id": 2, "name": "train", "IoU": None, "accuracy": None, "pixels": 0}
    assert read["absent_classes"] == ["train"] and "truth or prediction" in read["rule"]
    assert {"python", "torch", "numpy"} <= set(read["versions"])


def test_nothing_counted_is_still_valid_json():
    result = result_dict(ConfusionMatrix(3), NAMES, get("whole").to_dict(), partial=True)
    assert result["scores"]["mIoU"] is None and result["partial"] is True
    json.dumps(result, allow_nan=False)


def test_table():
    assert format_table(two_classes().scores(), NAMES).splitlines() == [
        "class                     IoU  accuracy",
        "---------------------------------------",
        "road                    75.00     75.00",
        "sidewalk                50.00     66.67",
        "train                       -         -",
        "---------------------------------------",
        "mean                    62.50     70.83",
        "pixel accuracy                    71.43",
        "frequency-weighted IoU  64.29",
        "left out of the mean IoU, absent from truth and prediction: train",
    ]


def test_table_says_what_becomes_of_absent_classes():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([[0, 0]]), torch.tensor([[0, 1]]))
    last = {name: format_table(confusion.scores(name), NAMES).splitlines()[-1] for name in CONVENTIONS}
    assert last["encoding"] == "counted as 0 in the mean IoU, absent from truth and prediction: train"
    assert last["paddleseg"] == "counted as 1 in the mean IoU, absent from truth and prediction: train"
    assert last["torchmetrics"] == "left out of the mean IoU, absent from truth and prediction: train"
    assert last["detectron2"] == "left out of the mean IoU, absent from the truth: sidewalk, train"


def test_names_must_fit():
    with pytest.raises(InputError, match="2 class names for 3 classes"):
        result_dict(two_classes(), NAMES[:2], get("whole").to_dict())
    with pytest.raises(InputError, match="class names"):
        format_table(two_classes().scores(), NAMES[:2])


def test_versions():
    assert versions()["torch"] == torch.__version__.split("+")[0] or versions()["torch"] == torch.__version__


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """`segkit test` of an untrained network on two images; class 2 is in no mask."""
    root = tmp_path_factory.mktemp("folder")
    mask = np.zeros((40, 56), np.uint8)
    mask[:, 28:], mask[:2] = 1, 255
    for kind, array in (("images", np.stack([mask * 90] * 3, -1)), ("labels", mask)):
        for split in ("train", "val", "test"):
            (root / kind / split).mkdir(parents=True)
            cv2.imwrite(str(root / kind / split / "0.png"), array)
    (root / "classes.txt").write_text("left\nright\nnever\n")
    return (
        f"--data FolderDataModule --data.root {root} --data.num_workers 0 --model.network FCN "
        "--model.network.encoder resnest14_tiny --trainer.accelerator cpu --trainer.enable_progress_bar false"
    ).split()


@pytest.mark.slow
@pytest.mark.parametrize(("subcommand", "metric"), [("test", "paddleseg"), ("validate", "all"), ("test", None)])
def test_metric_option(command, tmp_path, capfd, caplog, subcommand, metric):
    option = [] if metric is None else ["--metric", metric]
    assert main([subcommand, *command, *option, "--run_dir", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    said = "\n".join([*capfd.readouterr(), *caplog.messages])
    headline = "paddleseg" if metric == "paddleseg" else "segkit"
    assert result["metric"] == headline and result["rule"] == CONVENTIONS[headline].rule
    assert f"metric {headline}: {result['rule']}\n" in said
    assert ("vs segkit" in said) == (metric == "all")
    matrix, missed = np.array(result["confusion_matrix"]), np.array(result["missed"])
    counts = np.vstack([np.column_stack([matrix, missed]), result["void"], np.zeros((1, 4))])
    for name in CONVENTIONS:
        score = convention_scores(counts, name)
        for key, value in (("mIoU", score.miou), ("pixel_accuracy", score.pixel_accuracy)):
            assert result["conventions"][name][key] == (None if np.isnan(value) else value)
    means = result["conventions"][headline]
    assert {key: result["scores"][key] for key in means} == means
    assert f"{100 * means['mIoU']:.2f}" in said
    assert "test/mIoU" not in said and "val/mIoU" not in said  # Lightning's own table has segkit's numbers


@pytest.mark.slow
def test_wrong_metric_is_one_line(command, tmp_path, capsys):
    assert main(["test", *command, "--metric", "miou", "--run_dir", str(tmp_path)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert (
        "metric: no such convention 'miou'" in line
        and "torchmetrics, void-class, all, or my_module.MY_CONVENTION" in line
    )
    assert main(["test", *command, "--metric", "no_such.RULE", "--run_dir", str(tmp_path)]) == 2
    assert "metric: no_such.RULE: there is no module 'no_such', neither" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
