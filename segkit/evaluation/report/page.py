"""The page of a report: text and tables by a template, charts as SVG, images as data that `images.js` draws.

One file that asks for nothing: its policy allows images from the file itself and, by their hashes, this one style and
this one script. What comes from outside (names, configs, commands) is text everywhere: the template escapes it, control
characters show as escapes, and the script's data are JSON without "<".
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from segkit.errors import InputError, one_line, printable
from segkit.evaluation.report import charts
from segkit.evaluation.report.content import CLASS_IOU, LONGEST, Example, Subject, is_loss, is_rate
from segkit.evaluation.report.section import between, in_order, section
from segkit.files import write_text
from segkit.metadata.label_space import IGNORE_INDEX
from segkit.text import percent, points
from segkit.visualization import data_url, fit

_HERE = Path(__file__).parent
_FILES = ("report.css", "matrix.js", "images.js", "report.js")
_MOST = 13_000_000  # characters of all images; the text of 150 classes takes below 1 MB
_FORMS = ((LONGEST, 80), (LONGEST, 60), (384, 60), (288, 50), (192, 50), (128, 40))  # longest side, JPEG quality
_COLOURS = 8  # of lines, in report.css

# title, factor, which columns belong in it
_PANELS: tuple[tuple[str, float, Callable[[str], bool]], ...] = (
    ("loss",               1,   is_loss),
    ("learning rate",      1,   is_rate),
    ("validation mIoU, %", 100, lambda name: name.startswith("val/") and name.lower().endswith("miou")),
)  # fmt: skip


def write_report(path: Path, subjects: Sequence[Subject], title: str, command: str) -> None:
    """Write one HTML file about one or several evaluations, atomically.

    Images are embedded at up to 512 pixels, smaller ones where all of them would exceed 13 MB; an image that several
    subjects show is there once.

    Args:
        path: The file.
        subjects: One or more; parts that are absent are left out.
        title: Heading of the page.
        command: What makes this report again.

    Raises:
        InputError: A confusion matrix is not (K, K), a result is not of the form of `result_dict`, or the file cannot
            be written.
    """
    css, *scripts = ((_HERE / name).read_text(encoding="utf-8") for name in _FILES)
    js = "\n".join(('"use strict";', *scripts))
    shown, images = _embedded(subjects)
    plain = [_plain_data(subject, examples) for subject, examples in zip(subjects, shown, strict=True)]
    data = json.dumps({"images": images, "subjects": plain}, separators=(",", ":"))
    sections = [checked_section(subject, f"s{i}") for i, subject in enumerate(subjects, 1)]
    curves = _curves(subjects)
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters |= {"percent": percent, "points": points, "between": between}
    page = environment.get_template("report.html.j2").render(
        title=title,
        command=command,
        css=Markup(css),
        js=Markup(js),
        hashes={"css": _hash(css), "js": _hash(js)},
        data=Markup(data.replace("<", "\\u003c")),
        sections=sections,
        contents=_contents(sections, bool(curves["panels"] or curves["classes"])),
        curves=curves,
        level=f"{100 * next((s.interval.level for s in subjects if s.interval), 0.95):g} % CI",
    )
    write_text(path, page)


def checked_section(subject: Subject, anchor: str = "") -> dict[str, Any]:
    """The subject's section; its result may come from a file that anybody wrote.

    Raises:
        InputError: A confusion matrix is not (K, K), or its result is not of the form of `result_dict`.
    """
    try:
        return section(subject, anchor)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{subject.name}: its result is not of the form that `segkit test` writes ({one_line(error)}); give "
            "the file as it was written"
        ) from error


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _contents(sections: Sequence[Mapping[str, Any]], trained: bool) -> list[tuple[str, str]]:
    """Anchors and labels of the contents: the subjects, or the parts of the only one."""
    training = [("training", "Training")] if trained else []
    if len(sections) > 1:
        return [("overview", "Overview"), *training, *((one["id"], one["name"]) for one in sections)]
    (only,) = sections
    parts = (
        ("classes", "Classes", only["rows"]),
        ("confusion", "Confusion", only["pairs"]),
        ("calibration", "Calibration", only["reliability"] or only["thresholds"]),
        ("where", "Where it fails", only["groups"] or only["histogram"]),
        ("images", "Images", only["examples"]),
    )
    return [*((f"{only['id']}-{part}", label) for part, label, there in parts if there), *training]


def _curves(subjects: Sequence[Subject]) -> dict[str, Any]:
    """Curves of all subjects, overlaid: (title, key, chart) of each panel, and a chart of all classes."""
    logged = [(f"c{i % _COLOURS}", s.name, s.curves) for i, s in enumerate(subjects) if s.curves]
    panels = []
    for title, factor, belongs in _PANELS:
        drawn = _lines(logged, belongs, factor)
        apart = len(logged) == 1 or len({name for *_, name in drawn}) > 1  # each line has a colour of its own
        lines = [
            charts.Line(
                f"c{i % _COLOURS}" if apart else line.colour,
                ": ".join([who] * (len(logged) > 1) + [name] * apart),
                line.curve,
            )
            for i, (line, who, name) in enumerate(drawn)
        ]
        if lines:
            panels.append((title, [line[:2] for line in lines], charts.lines(lines, title, "step", "", start=0)))
    classes = [line for line, _, _ in _lines(logged, lambda name: name.startswith(CLASS_IOU), 100)]
    return {
        "panels": panels,
        "classes": list(dict.fromkeys(line.name for line in classes)),
        "chart": charts.lines(classes, "validation IoU of each class, %", "step", "", start=0),
        "subjects": [(colour, name) for colour, name, _ in logged],
    }


def _lines(
    logged: Sequence[tuple[str, str, Mapping[str, charts.Curve]]], belongs: Callable[[str], bool], factor: float
) -> list[tuple[charts.Line, str, str]]:
    """Lines of the columns that belong, with the names of their subject and column."""
    return [
        (charts.Line(colour, name.removeprefix(CLASS_IOU), (steps, [factor * value for value in values])), who, name)
        for colour, who, curves in logged
        for name, (steps, values) in curves.items()
        if belongs(name) and steps
    ]


def _plain_data(subject: Subject, examples: list[dict[str, Any]]) -> dict[str, Any]:
    """What the script needs of a subject."""
    return {
        "names": [printable(name) for name in subject.space.class_names],
        "palette": subject.space.palette,
        "confusion": None if subject.confusion is None else subject.confusion.tolist(),
        "examples": examples,
    }


def _embedded(subjects: Sequence[Subject]) -> tuple[list[list[dict[str, Any]]], list[str]]:
    """Examples of each subject with positions in the list of images, in the largest form that fits into the page."""
    for longest, quality in _FORMS:
        images: dict[str, int] = {}
        shown: list[list[dict[str, Any]]] = [[] for _ in subjects]
        for example, kept in ((one, kept) for s, kept in zip(subjects, shown, strict=True) for one in in_order(s)):
            kept.append(_drawn(example, longest, quality, images))
            if sum(map(len, images)) > _MOST and longest > _FORMS[-1][0]:
                break
        else:
            break
    return shown, list(images)


def _drawn(example: Example, longest: int, quality: int, images: dict[str, int]) -> dict[str, Any]:
    """An example for the script; `images` takes what it shows."""
    base = example.labels if example.image is None else example.image
    image, labels = fit(base, example.labels, longest)
    maps = {"labels": labels}
    for name, array in (("truth", example.truth), ("confidence", example.confidence)):
        if array is not None:
            maps[name] = fit(base, array, longest)[1]
    urls = {name: data_url(array) for name, array in maps.items()}
    if example.image is not None:
        urls["image"] = data_url(image, quality, subsampling=2)
    seen = np.union1d(labels, maps.get("truth", labels))
    scale = labels.shape[0] / example.labels.shape[0]
    places = {name: images.setdefault(url, len(images)) for name, url in urls.items()}
    return dict.fromkeys(("image", "truth", "labels", "confidence")) | places | {
        "size": labels.shape[::-1],  # width, height
        "classes": [int(i) for i in seen if i != IGNORE_INDEX],
        "box": example.box and [round(scale * side) for side in example.box],
        "miou": example.miou,
        "sure": example.confidence_mean,
        "reasons": example.reasons,
    }  # fmt: skip
