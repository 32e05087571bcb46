"""The table of a study against SciPy's paired t-test and hand-made result files."""

import json
from pathlib import Path

import pytest
import torch
from scipy.stats import ttest_rel

from segkit.errors import InputError
from segkit.evaluation.topk import TopK
from segkit.files import write_text
from segkit.study.plan import RESULT, Run, Study
from segkit.study.table import figure, gather, paired_difference, table

A, B = [0.41, 0.43, 0.40, 0.44], [0.45, 0.46, 0.46, 0.47]


def study_of(output: Path, **scores: list[float]) -> Study:
    """Result files of the first seeds of each variant; four runs of each were planned."""
    runs = tuple(Run(name, "camvid/fcn_resnest14_tiny", {}, seed) for seed in range(4) for name in scores)
    for run in runs:
        if run.seed < len(scores[run.variant]):
            score = {"scores": {"mIoU": scores[run.variant][run.seed]}}
            write_text(run.folder(output) / RESULT, json.dumps(score))
    return Study("s", next(iter(scores)), tuple(scores), runs)


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    theirs = ttest_rel(B, A).confidence_interval(0.95)
    ours = paired_difference([b - a for a, b in zip(A, B, strict=True)])
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_what_the_table_says(tmp_path: Path) -> None:
    study = study_of(tmp_path, a=A, better=B, same=[*reversed(A)], worse=[a - 0.1 + 0.01 * a for a in A])
    rows = {row.name: row for row in gather(study, tmp_path)}
    assert [row.shown for row in rows.values()][1:] == ["better", "nothing", "worse"]
    assert rows["a"].summary() == pytest.approx((0.42, 0.40, 0.44))
    lines = table(study, list(rows.values())).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[2:6]] == ["42.00", "40.00 to 44.00", "4", "baseline"]
    assert "+4.00" in lines[3] and "16 of 16 runs" in lines[-1]


def test_a_study_that_is_not_finished_compares_the_seeds_that_both_have(tmp_path: Path) -> None:
    study = study_of(tmp_path, a=A[:3], two=B[:2], one=B[:1], none=[])
    rows = gather(study, tmp_path)
    assert [len(row.scores) for row in rows] == [3, 2, 1, 0]
    assert rows[1].difference.value == pytest.approx(0.035) and rows[2].difference.value == pytest.approx(0.04)
    assert [row.shown for row in rows][2:] == ["", ""]
    assert "6 of 16 runs" in table(study, rows)
    assert figure(study, rows).axes


@pytest.mark.parametrize("text", ["{", "[]", '{"scores": {"mIoU": null}}', '{"scores": {"top1": 0.5}}'])
def test_a_result_without_a_score_is_one_line(text: str, tmp_path: Path) -> None:
    study = study_of(tmp_path, a=A, b=B)
    write_text(tmp_path / "b/seed1" / RESULT, text)
    with pytest.raises(InputError, match=r"seed1.*no mIoU or top-1 of `segkit test`; remove it"):
        gather(study, tmp_path)


def top1(path: Path, logits: list[list[float]]) -> None:
    """The result file of a classifier's test, whose class is always the first."""
    counts = TopK()
    counts.update(torch.tensor(logits), torch.zeros(len(logits), dtype=torch.int64))
    write_text(path, json.dumps(counts.compute().to_dict()))


def test_classifiers_are_compared_by_top_1(tmp_path: Path) -> None:
    study = study_of(tmp_path, a=[], b=[])
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    top1(tmp_path / "a/seed0" / RESULT, [right, wrong, wrong, wrong])
    top1(tmp_path / "b/seed0" / RESULT, [right, right, right, wrong])
    rows = gather(study, tmp_path)
    assert [row.scores for row in rows] == [{0: 0.25}, {0: 0.75}] and rows[1].to_dict()["metric"] == "top-1"
    lines = table(study, rows).splitlines()
    assert "top-1, %" in lines[0] and "25.00" in lines[2] and "+50.00" in lines[3]
    assert figure(study, rows).axes[0].get_xlabel().startswith("top-1")

    write_text(tmp_path / "b/seed1" / RESULT, json.dumps({"scores": {"mIoU": 0.5}}))
    with pytest.raises(InputError, match=r"scored by top-1 .* and mIoU .*; compare those of one task"):
        gather(study, tmp_path)
