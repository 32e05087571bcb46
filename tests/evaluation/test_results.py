"""Result files are valid JSON that says everything; tables are aligned and name what they leave out."""

import json

import pytest
import torch

from segkit import __version__
from segkit.errors import InputError
from segkit.evaluation.confusion import ConfusionMatrix
from segkit.evaluation.results import format_table, result_dict, versions, write_result
from segkit.inference.protocols import get

NAMES = ("road", "sidewalk", "train")


def two_classes():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([[[0, 0, 0, 1]], [[1, 255, 1, 0]]]), torch.tensor([[[0, 0, 1, 1]], [[1, 0, 9, 0]]]))
    return confusion


def test_result_file(tmp_path):
    path = tmp_path / "run" / "result.json"
    result = result_dict(
        two_classes(), NAMES, get("encoding-ms"), dataset={"name": "mine", "split": "val"}, command="segkit test"
    )
    write_result(path, result)

    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads(path.read_text(), parse_constant=refuse)  # NaN is no JSON
    assert read == result
    assert read["segkit"] == __version__ and read["command"] == "segkit test" and read["date"].endswith("+00:00")
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
    result = result_dict(ConfusionMatrix(3), NAMES, get("whole"), partial=True)
    assert result["scores"]["mIoU"] is None and result["partial"] is True
    json.dumps(result, allow_nan=False)


def test_table():
    assert format_table(two_classes().scores(), NAMES).splitlines() == [
        "class                       IoU  accuracy",
        "-----------------------------------------",
        "road                      75.00     75.00",
        "sidewalk                  50.00     66.67",
        "train                         -         -",
        "-----------------------------------------",
        "mean                      62.50     70.83",
        "pixel accuracy                      71.43",
        "frequency-weighted IoU    64.29",
        "left out of the mean IoU, absent from truth and prediction: train",
    ]


def test_names_must_fit():
    with pytest.raises(InputError, match="2 class names for 3 classes"):
        result_dict(two_classes(), NAMES[:2], get("whole"))
    with pytest.raises(InputError, match="class names"):
        format_table(two_classes().scores(), NAMES[:2])


def test_versions():
    assert versions()["torch"] == torch.__version__.split("+")[0] or versions()["torch"] == torch.__version__
