"""`segkit report` through the front door: every kind of input, comparisons, and what is missing or damaged."""

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from gloo import run_command, said

from segkit.cli import main
from segkit.cli.report import subjects
from segkit.cli.report.subjects import unique_names
from segkit.evaluation.confusion import confusion_counts
from segkit.evaluation.report.content import Subject
from segkit.io import read_label, write_png
from segkit.io.confidence import write_confidence
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.predictions.manifest import Manifest, images_identity

NAMES = ("sky", "road", "<b>side&walk</b>", "car\x1b[31m")
IMAGES = 6
SHA = "a" * 64


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set of six test images, whose class names would be HTML and terminal commands."""
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        truth = rng.integers(0, 4, (4, 6)).astype(np.uint8).repeat(10, 0).repeat(10, 1)
        truth[:3] = 255
        write_png(tmp_path / f"data/images/test/<i>{i}.png", rng.integers(0, 256, (*truth.shape, 3)).astype(np.uint8))
        write_png(tmp_path / f"data/labels/test/<i>{i}.png", truth)
    (tmp_path / "data/classes.txt").write_text("\n".join(NAMES) + "\n")
    return tmp_path


def predict(folder: Path, root: Path, wrong: float, seed: int = 1, confidence: bool = True) -> Path:
    """Label maps with this share of wrong pixels, and a manifest."""
    rng = np.random.default_rng(seed)
    for path in sorted((root / "data/labels/test").iterdir()):
        truth = read_label(path)
        labels = np.where(rng.random(truth.shape) < wrong, rng.integers(0, 4, truth.shape), truth % 4)
        write_png(folder / path.name, labels.astype(np.uint8))
        if confidence:
            sure = rng.random(truth.shape).astype(np.float32)
            write_confidence(folder / f"{path.stem}_confidence.png", sure)
    space = LabelSpace(NAMES, distinct_palette(4), identity_table(4))
    about = {"weights": {"file": "last.ckpt", "sha256": SHA}, "protocol": {"name": "whole"}, "precision": "32-true"}
    images = images_identity({"a": 1})
    Manifest(
        **about,
        dataset={"name": "FolderDataModule", "split": "test"},
        images=images,
        label_space=space.to_dict(),
        complete=True,
        run={"command": "segkit test <script>alert(1)</script>", "versions": {}, "date": "today"},
    ).write(folder)
    return folder


@pytest.fixture
def report(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Sequence[Subject]]]:
    """Run the command; return its exit code, and the subjects of the page that was written."""
    drawn: list[Sequence[Subject]] = []
    write = subjects.write_report

    def recorded(path: Path, found: Sequence[Subject], title: str, command: str) -> None:
        drawn.append(found)
        write(path, found, title, command)

    monkeypatch.setattr(subjects, "write_report", recorded)

    def call(*inputs: object, data: bool = True) -> tuple[int, Sequence[Subject]]:
        named = ["--data", "folder", "--data.root", str(root / "data")] if data else []
        code = main(["report", *map(str, inputs), *named, "-o", str(root / "report.html")])
        return code, drawn[-1]

    return call


def counted(root: Path, folder: Path) -> np.ndarray:
    total = 0
    for path in sorted((root / "data/labels/test").iterdir()):
        total = total + confusion_counts(
            *map(torch.from_numpy, map(np.copy, map(read_label, (path, folder / path.name)))), 4
        )
    return np.asarray(total)


def test_label_maps_are_scored_and_shown(root: Path, report, capsys) -> None:
    found = predict(root / "found", root, wrong=0.3)
    code, (subject,) = report(found)
    assert code == 0 and capsys.readouterr().out.strip() == str(root / "report.html")
    assert subject.name == "found" and not subject.missing and subject.interval is not None
    np.testing.assert_array_equal(subject.confusion, counted(root, found)[:4, :4])
    assert subject.result["scores"]["mIoU"] == pytest.approx(subject.interval.miou.value)
    assert subject.result["weights"]["sha256"] == SHA and len(subject.image_miou) == IMAGES
    assert len(subject.groups) == 2 and sum(b["pixels"] for b in subject.result["calibration"]["bins"]) > 0
    assert {reason for e in subject.examples for reason in e.reasons} >= {"worst", "uncertain", "random"}
    assert all(e.image is not None and e.truth is not None and e.confidence is not None for e in subject.examples)
    assert len(subject.examples) == IMAGES  # each once
    page = (root / "report.html").read_text(encoding="utf-8")
    assert "<b>side&walk" not in page and "<script>alert" not in page and "<i>0" not in page and "\x1b" not in page
    assert "&lt;b&gt;side&amp;walk" in page and len(page) < 15e6
    assert report(found)[0] == 0 and (root / "report-2.html").exists()  # nothing is written over


@pytest.mark.slow
def test_a_planted_better_one_is_better_and_the_same_one_is_equal(root: Path, report) -> None:
    good, bad = predict(root / "good", root, 0.1), predict(root / "bad", root, 0.6)
    code, (better, same, base) = report(good, bad, "--baseline", bad)
    assert code == 0 and (better.name, same.name, base.name) == ("good", "bad", "bad (2)")
    assert better.comparison.miou.difference.low > 0 and better.baseline == "bad (2)"
    assert same.comparison.miou.difference.value == 0 and same.comparison.miou.verdict == "="
    assert base.comparison is None
    shown = [{e.name for e in s.examples if "random" in e.reasons} for s in (better, same)]
    assert shown[0] == shown[1]


def test_a_run_has_curves_config_and_its_own_data(root: Path, report) -> None:
    run = root / "run"
    predict(run / "predictions", root, 0.2)
    (run / "metrics.csv").write_text("epoch,step,train/loss\n0,0,2.5\n0,1,1.5\n")
    (run / "config.yaml").write_text(
        f"data:\n  class_path: FolderDataModule\n  init_args:\n    root: {root / 'data'}\n# <script>\n"
    )
    code, (subject,) = report(run, data=False)
    assert code == 0 and subject.curves == {"train/loss": ([0, 1], [2.5, 1.5])} and "<script>" in subject.config
    assert len(subject.image_miou) == IMAGES and not subject.missing
    assert report(run / "predictions", data=False)[1][0].image_miou == subject.image_miou  # by the run's config, too


@pytest.mark.slow
@pytest.mark.parametrize("where", ["predictions.json", "config.yaml"])
def test_a_file_of_a_stranger_imports_nothing(root: Path, report, monkeypatch, where: str) -> None:
    (root / "modules").mkdir()
    (root / "modules/stranger.py").write_text(f"open({str(root / 'imported')!r}, 'w')\nclass Module: ...\n")
    monkeypatch.syspath_prepend(str(root / "modules"))
    run = root / "run"
    file = predict(run / "predictions", root, 0.2) / "predictions.json"
    honest, own = json.loads(file.read_text()), {"root": str(root / "data")}
    (run / "metrics.csv").write_text("epoch,step,train/loss\n0,0,2.5\n0,1,1.5\n")

    def missing(class_path: object, init_args: object) -> tuple[str, ...]:
        described = {"class_path": class_path, "init_args": init_args}
        if where == "config.yaml":  # JSON is YAML
            (run / where).write_text(json.dumps({"data": described}))
        else:
            file.write_text(json.dumps(honest | {"run": {"data": described}}))
        code, (subject,) = report(run, data=False)
        assert code == 0 and len(subject.examples) == IMAGES and not (root / "imported").exists()
        return subject.missing

    assert any("the data module stranger.Module, which is not one of segkit's" in line for line in missing(
        "stranger.Module", own))  # fmt: skip
    assert any("names no data" in line for line in missing(["stranger.Module"], "stranger.Module"))
    assert not missing("segkit.data.sets.folder.FolderDataModule", own)  # by which the test would notice an import
    assert not missing("FolderDataModule", own | {"augmentations": [{"class_path": "stranger.Module"}]})


def test_a_result_has_intervals_of_its_areas(root: Path, report) -> None:
    found = predict(root / "found", root, 0.3)
    score = [
        "benchmark",
        "score",
        str(found),
        str(root / "data/labels/test"),
        "--labels",
        str(root / "data/classes.txt"),
        "--bootstrap",
        "10",
    ]
    for name in ("a", "b"):
        assert main([*score, "--output", str(root / name / "result.json")]) == 0
    code, (subject, other) = report(root / "a/result.json", "--baseline", root / "b/result.json", data=False)
    assert code == 0 and (subject.name, other.name) == ("a/result", "b/result")
    assert subject.interval is not None and subject.comparison.miou.difference.value == 0
    np.testing.assert_array_equal(subject.confusion, counted(root, found)[:4, :4])
    assert not subject.examples and any(line.startswith("images: ") for line in subject.missing)
    (root / "b/result.npz").unlink()
    code, (subject, other) = report(root / "a/result.json", "--baseline", root / "b/result.json", data=False)
    assert code == 0 and subject.comparison is None and other.interval is None
    assert "comparison with b/result: scores of single images of b/result are not known" in subject.missing


def test_label_maps_of_other_weights_are_not_mixed_with_a_result(root: Path, report) -> None:
    run = root / "run"
    predict(run / "predictions", root, 0.2)
    assert report(run / "predictions")[0] == 0
    result = {"classes": [{"id": i, "name": n, "IoU": 0.5} for i, n in enumerate(NAMES)], "weights": {"sha256": "b"}}
    (run / "result.json").write_text(json.dumps(result | {"scores": {"mIoU": 0.5}}))
    code, (subject,) = report(run)
    assert (
        code == 0
        and not subject.examples
        and any("of other weights or protocol than" in line for line in subject.missing)
    )
    result |= {
        "weights": {"sha256": SHA},
        "protocol": {"name": "whole"},
        "confusion_matrix": np.eye(4, dtype=int).tolist(),
    }
    (run / "result.json").write_text(json.dumps(result | {"scores": {"mIoU": 0.5}}))
    code, (subject,) = report(run)
    assert subject.examples and any("do not give the numbers of" in line for line in subject.missing)


@pytest.mark.slow
def test_other_images_and_another_class_count_are_said(root: Path, report) -> None:
    found, part = predict(root / "found", root, 0.3), predict(root / "part", root, 0.3)
    (part / "<i>0.png").unlink()
    code, (subject, _) = report(found, "--baseline", part)
    assert code == 0 and subject.comparison is None
    assert any("1 images are in only one of A (5) and B (6)" in line for line in subject.missing)
    (root / "data/classes.txt").write_text("\n".join([*NAMES, "boat"]) + "\n")
    code, (subject,) = report(found)
    assert code == 0 and subject.confusion is None and len(subject.examples) == IMAGES
    assert any(re.match("truth and images: .*FolderDataModule.* has 5", line) for line in subject.missing)
    (root / "data/classes.txt").write_text("\n".join(reversed(NAMES)) + "\n")
    code, (subject,) = report(found)
    assert code == 0 and subject.confusion is None and len(subject.examples) == IMAGES
    assert any("in another order" in line for line in subject.missing) and subject.space.class_names[0] == "sky"


def test_images_that_are_gone_leave_the_rest(root: Path, report) -> None:
    found = predict(root / "found", root, 0.3)
    for path in (root / "data/images/test").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    code, (subject,) = report(found)
    assert code == 0 and len(subject.image_miou) == IMAGES and all(e.image is None for e in subject.examples)
    assert any("images: " in line for line in subject.missing)
    shutil.rmtree(root / "data")
    code, (subject,) = report(found, data=False)
    assert code == 0 and subject.confusion is None and len(subject.examples) == IMAGES
    assert all(e.words == "" and e.truth is None for e in subject.examples) and subject.missing


def test_label_maps_whose_manifest_is_damaged_need_data(root: Path, report, capsys) -> None:
    found = predict(root / "found", root, 0.3)
    (found / "predictions.json").write_text("{")
    assert main(["report", str(found), "-o", str(root / "report.html")]) == 2
    assert re.search(r"nothing names the classes \(origin of .*predictions\.json: not what", capsys.readouterr().err)
    code, (subject,) = report(found)
    assert code == 0 and len(subject.image_miou) == IMAGES and "origin of the label maps" in subject.missing[0]


def test_bands_that_cannot_be_measured_leave_the_label_maps(root: Path, report) -> None:
    found = predict(root / "found", root, 0.3)
    shutil.rmtree(root / "data/images")
    for split, name in [("train", "0"), *(("test", path.stem) for path in found.glob("*[0-9].png"))]:
        (root / "data/images" / split).mkdir(parents=True, exist_ok=True)
        np.save(root / f"data/images/{split}/{name}.npy", np.zeros((40, 60, 4), np.uint16))
    (root / "data/images/train/0.npy").write_bytes(b"damaged")
    data = ("--data", "folder", "--data.root", root / "data", "--data.bands", "4", "--data.range", "percentile")
    code, (subject,) = report(found, *data, data=False)
    assert code == 0 and len(subject.examples) == IMAGES and subject.confusion is None
    assert any(re.match("images: .*0.npy: ", line) for line in subject.missing)


def test_a_damaged_label_map_is_listed_and_the_others_go_on(root: Path, report, capsys) -> None:
    found = predict(root / "found", root, 0.3)
    path = found / "<i>2.png"
    path.write_bytes(path.read_bytes()[:-30])
    write_png(found / "<i>3.png", np.full((40, 60), 9, np.uint8))
    write_png(found / "<i>4.png", np.zeros((4, 6), np.uint8))
    code, (subject,) = report(found)
    said = capsys.readouterr().err
    assert code == 1 and len(subject.image_miou) == IMAGES - 3 and subject.result["partial"]
    assert "<i>2.png" in said and "value 9 is not declared" in said and "6x4, its truth is 60x40" in said
    assert any(line.startswith("3 of 6 images: label maps: ") for line in subject.missing)


def test_an_image_may_have_the_name_of_a_confidence_map(root: Path, report) -> None:
    for path in (root / "data/images/test/<i>1.png", root / "data/labels/test/<i>1.png"):
        path.rename(path.with_stem("<i>0_confidence"))
    found = predict(root / "found", root, 0.3, confidence=False)
    code, (subject,) = report(found)
    assert code == 0 and not [line for line in subject.missing if "interval" in line]
    assert len(subject.image_miou) == IMAGES and all(e.confidence is None for e in subject.examples)


def test_no_label_map_is_that_of_two_images(root: Path, report) -> None:
    for kind in ("images", "labels"):
        for i, path in enumerate(sorted((root / f"data/{kind}/test").iterdir())):
            (path.parent / f"folder{i % 2}").mkdir(exist_ok=True)
            path.rename(path.parent / f"folder{i % 2}" / (path.name if i > 1 else "same.png"))
    flat = root / "flat"
    for path in sorted((root / "data/labels/test").rglob("*.png")):
        write_png(flat / path.name, read_label(path) % 4)
    code, (subject,) = report(flat)
    assert code == 0 and len(subject.image_miou) == IMAGES - 2 and subject.result["partial"]
    assert "2 of 6 images: they do not have exactly one label map of their own" in subject.missing


def test_without_data_or_confidence(root: Path, report) -> None:
    found = predict(root / "found", root, 0.3, confidence=False)
    code, (subject,) = report(found, data=False)
    assert code == 0 and subject.space.class_names[1] == "road" and subject.groups == () and subject.confusion is None
    assert {reason for e in subject.examples for reason in e.reasons} == {"random"}


@pytest.mark.parametrize("text", ["{}", "[1]", "no JSON", '{"classes": 3}', '{"classes": [1]}'])
def test_what_is_no_result_is_refused_in_one_line(root: Path, capsys, text: str) -> None:
    (root / "result.json").write_text(text)
    assert main(["report", str(root / "result.json"), "-o", str(root / "report.html")]) == 2
    assert re.fullmatch(r"segkit report: error: .*result\.json: .*\n", capsys.readouterr().err)
    assert not (root / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [{"weights": 5}, {"without": 5}, {"rule": [1]}, {"num_pixels": "x"}, {"scores": {"mIoU": "x"}}, {"dataset": "x"}],
)
def test_a_result_of_another_form_does_not_stop_the_others(root: Path, report, capsys, part: dict) -> None:
    plain = {"classes": [{"id": i, "name": name} for i, name in enumerate(NAMES)], "scores": {"mIoU": 0.5}}
    (root / "good.json").write_text(json.dumps(plain))
    (root / "bad.json").write_text(json.dumps(plain | part))
    code, (subject,) = report(root / "bad.json", root / "good.json", data=False)
    said = capsys.readouterr().err
    assert code == 1 and subject.name == "good" and re.search(r"bad.*not of the form that `segkit test` writes", said)


def test_one_input_that_cannot_be_read_does_not_stop_the_others(root: Path, report, capsys) -> None:
    found = predict(root / "found", root, 0.3)
    code, (subject,) = report(found, root / "nothing")
    assert code == 1 and subject.name == "found" and "nothing: no run, result file" in capsys.readouterr().err
    code, (subject,) = report(found, "--baseline", root / "nothing")
    assert code == 1 and any(line.startswith("comparison with nothing: ") for line in subject.missing)
    (root / "empty").mkdir()
    assert main(["report", str(root / "empty")]) == 2 and main(["report", str(root / "nothing")]) == 2


def test_names_are_short_and_differ() -> None:
    paths = [Path(path) for path in ("/a/x/result.json", "/a/y/result.json", "/a/y/result.json", "/b/z")]
    assert unique_names(paths) == ["x/result", "y/result", "y/result (2)", "b/z"]
    assert unique_names([Path("/a/v1.2"), Path("/a/v1.3")]) == ["v1.2", "v1.3"]
    assert unique_names(paths[:1]) == ["result"] and unique_names([paths[0], paths[3]]) == ["result", "z"]


@pytest.mark.slow
def test_the_comparison_is_that_of_benchmark_compare(root: Path, report) -> None:
    found, other = predict(root / "found", root, 0.3), predict(root / "other", root, 0.5, seed=2)
    _, (subject, _) = report(found, "--baseline", other)
    done = ["benchmark", "compare", str(other), str(found), str(root / "data/labels/test")]
    assert main([*done, "--labels", str(root / "data/classes.txt"), "--output", str(root / "c.json")]) == 0
    assert json.loads((root / "c.json").read_text())["mIoU"] == subject.comparison.miou.to_dict()


@pytest.mark.slow
def test_a_test_makes_its_report_of_what_it_wrote(benchmark_folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    drawn: list[Sequence[Subject]] = []
    write = subjects.write_report
    noted = lambda path, found, *more: (drawn.append(found), write(path, found, *more))  # noqa: E731
    monkeypatch.setattr(subjects, "write_report", noted)
    run, data = tmp_path / "run", ["--data", "FolderDataModule", "--data.root", str(benchmark_folder / "data")]
    test = ["test", "--ckpt_path", str(benchmark_folder / "b.ckpt"), *data, "--data.num_workers", "0"]
    test += ["--trainer.accelerator", "cpu", "--run_dir", str(run), "--report"]
    assert main(test) == 0
    assert str(run / "report.html") in capsys.readouterr().out and (run / "report.html").is_file()
    result = json.loads((run / "result.json").read_text())
    (subject,) = drawn[0]
    assert subject.result == result and result["calibration"]["thresholds"]
    assert result["speed"]["images_per_second"] == pytest.approx(5 / result["speed"]["seconds"])
    assert result["speed"]["peak_memory_bytes"] > 1e6
    assert not [line for line in subject.missing if not line.startswith("curves")]
    assert len(subject.examples) == 5 and all(e.confidence is not None for e in subject.examples)
    assert subject.interval.miou.value == pytest.approx(result["scores"]["mIoU"])  # of the label maps that it wrote
    assert main([*test, "--protocol", "ms-flip"]) == 0  # beside the first, of which nothing is lost
    assert {path.name for path in run.glob("predictions*")} == {"predictions", "predictions-2"}
    assert drawn[1][0].result["protocol"]["flip"] and len(drawn[1][0].examples) == 5
    assert (run / "report-2.html").is_file()
    os.utime(run / "result.json")  # now the newest
    monkeypatch.chdir(tmp_path)  # the label maps know where their data are
    assert main(["report", str(run), "-o", "again.html"]) == 0
    assert drawn[2][0].interval == subject.interval and len(drawn[2][0].examples) == 5


def test_a_folder_without_label_maps_is_told_so(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty"), "-o", str(tmp_path / "r.html")]) == 2
    assert "empty: no label map here" in capsys.readouterr().err and not (tmp_path / "r.html").exists()


def test_report_is_for_tests_alone(capsys) -> None:
    assert main(["fit", "--config", "demo/deeplabv3_resnest14_tiny", "--report"]) == 2
    assert "--report: has no effect on fit, only on test" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_write_their_images_and_one_makes_the_report(benchmark_folder: Path, tmp_path: Path) -> None:
    run, data = tmp_path / "run", ["--data", "FolderDataModule", "--data.root", str(benchmark_folder / "data")]
    test = ["test", "--ckpt_path", str(benchmark_folder / "b.ckpt"), *data, "--data.num_workers", "0", "--report"]
    devices = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    run_command(2, [*test, *devices, "--run_dir", str(run)], tmp_path / "run.log")
    assert len(list((run / "predictions").glob("*.png"))) == 10 and not (run / "predictions-2").exists()
    assert [path.name for path in run.glob("*.html")] == ["report.html"]
    assert said(tmp_path / "run.log").count("report.html") == 1
    result = json.loads((run / "result.json").read_text())
    assert result["num_images"] == 5 and result["calibration"]["thresholds"]
