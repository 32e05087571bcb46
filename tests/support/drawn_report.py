"""A drawn evaluation with everything that a report can show."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from segkit.evaluation.calibration import Reliability
from segkit.evaluation.comparison import paired_comparison
from segkit.evaluation.confusion import ConfusionMatrix, confusion_counts
from segkit.evaluation.report.content import Example, Group, Subject
from segkit.evaluation.report.page import write_report
from segkit.evaluation.results import result_dict
from segkit.evaluation.statistics import ImageAreas, bootstrap_miou
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table

EVIL = "</script><img src=x onerror=document.title=1>\"' \x1b[2J\x00\u202egpj"
SIZE = 48, 64  # height and width of its images


def draw_subject(num_classes: int = 5, name: str = "run", num_images: int = 6, seed: int = 0) -> Subject:
    """A subject whose truth is in vertical stripes and whose predictions are moved a little to the right."""
    space = LabelSpace(
        tuple(f"thing {i}" for i in range(num_classes)), distinct_palette(num_classes), identity_table(num_classes)
    )
    generator, matrix = np.random.default_rng(seed), ConfusionMatrix(num_classes)
    examples, counts, poorer = [], [], []
    for i in range(num_images):
        truth = stripes(num_classes, i)
        labels, worse = np.roll(truth, 2 + i, axis=1), np.roll(truth, 4 + 2 * i, axis=1)
        truth[:4] = 255
        seen = [torch.from_numpy(array)[None] for array in (truth, labels, worse)]
        matrix.update(seen[0], seen[1])
        image = f"image{i}.png"
        counts.append((image, confusion_counts(seen[0], seen[1], num_classes)))
        poorer.append((image, confusion_counts(seen[0], seen[2], num_classes)))
        examples.append(example(image, i, truth, labels, generator))
    areas, other = ImageAreas.from_counts(counts), ImageAreas.from_counts(poorer)
    result = result_dict(matrix, space.class_names, {"name": "whole", "scales": (1.0,)},
                         dataset={"name": "drawn", "split": "test"}, weights={"sha256": "ab" * 32})  # fmt: skip
    edges = np.linspace(0.05, 0.95, 10)
    bins = Reliability(np.arange(1, 11) ** 4, edges**1.2, edges)
    result["calibration"] = bins.to_dict() | {
        "temperature": 1.25,
        "thresholds": [{"threshold": t, "coverage": 1 - t / 2, "mIoU": 0.5 + t / 4} for t in (0.0, 0.5, 0.9)],
    }
    result["speed"] = {"images_per_second": 12.5, "peak_memory_bytes": 2_500_000}
    steps = list(range(0, 1000, 100))
    curves = {"train/loss": (steps, [1 / (1 + s) for s in steps]), "lr": (steps, [0.1 - s / 1e4 for s in steps]),
              "val/mIoU": (steps[1:], [s / 1000 for s in steps[1:]])}  # fmt: skip
    curves |= {f"val/IoU/{c}": (steps, [s / 1000 + 0.0001 * i for s in steps]) for i, c in enumerate(space.class_names)}
    return Subject(
        name=name, space=space, result=result, confusion=matrix.matrix.numpy(), interval=bootstrap_miou(areas, 50),
        comparison=paired_comparison(other, areas, 50, 50), baseline="older", curves=curves, config="seed: 0\nlr: 0.1",
        groups=(Group("IoU by object size", "Small is below 32 pixels.", (("small", 0.25, 10), ("large", None, 0))),),
        image_miou=tuple((one.name, 0.1 * i) for i, one in enumerate(examples)), examples=tuple(examples),
        missing=("No file of speed.",),
    )  # fmt: skip


def stripes(num_classes: int, shift: int) -> np.ndarray:
    """Train ids (H, W): vertical stripes of 8 pixels, of all classes one after another over the images."""
    columns = (np.arange(SIZE[1]) // 8 + 8 * shift) % num_classes
    return np.broadcast_to(columns.astype(np.uint8), SIZE).copy()


def example(name: str, i: int, truth: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> Example:
    image = generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    sure = np.broadcast_to(np.arange(SIZE[1], dtype=np.uint8) * 4, SIZE).copy()
    reasons = (("worst",), ("uncertain",), ("random", "mislabelled"))[i % 3]
    box = (8, 10, 30, 40) if "mislabelled" in reasons else None
    words, miou, confidence = "thing 0 taken for thing 1: 31 % of its pixels", 0.4 + 0.1 * i, 0.62 - 0.02 * i
    return Example(name, reasons, words, miou, confidence, image, truth, labels, sure, box)


def without(subject: Subject, part: str) -> Subject:
    """The subject without one of its parts, in the form that `Subject` gives to absence."""
    empty = {"baseline": "", "config": "", "groups": (), "image_miou": (), "examples": (), "missing": (), "result": {}}
    return replace(subject, **{part: empty.get(part)})


def hostile() -> Subject:
    subject = draw_subject(name=EVIL)
    space = replace(subject.space, class_names=(EVIL, *subject.space.class_names[1:]))
    rows = [dict(row, name=name) for row, name in zip(subject.result["classes"], space.class_names, strict=True)]
    result = dict(subject.result, classes=rows, command=EVIL, dataset={"name": EVIL}, protocol={"name": EVIL})
    examples = tuple(replace(one, name=EVIL + str(i), words=EVIL) for i, one in enumerate(subject.examples))
    curves = {"train/loss" + EVIL: ([0, 1], [1.0, 2.0]), f"val/IoU/{EVIL}": ([0, 1], [0.1, 0.2])}
    return replace(
        subject, space=space, result=result, examples=examples, curves=curves, config=EVIL, missing=(EVIL,),
        baseline=EVIL, image_miou=((EVIL + "0", 0.5),), groups=(replace(subject.groups[0], title=EVIL, rule=EVIL),),
    )  # fmt: skip


def written(folder: Path, *subjects: Subject, title: str = "a report", command: str = "segkit report run") -> Path:
    write_report(folder / "report.html", subjects, title, command)
    return folder / "report.html"
