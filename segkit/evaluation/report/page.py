"""The page of a report: text and tables by a template, charts as SVG, images as data that `report.js` draws.

One file that asks for nothing: its policy allows images from the file itself and, by their hashes, this one style and
this one script. What comes from outside (names, configs, commands) is text everywhere: the template escapes it, control
characters show as escapes, and the script's data are JSON without "<".
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from segkit.errors import printable
from segkit.evaluation.comparison import Comparison
from segkit.evaluation.report import charts
from segkit.evaluation.report.content import LONGEST, Example, Subject
from segkit.evaluation.results import images_scored, most_confused_pairs
from segkit.files import write_text
from segkit.metadata.label_space import IGNORE_INDEX
from segkit.text import counted, percent, points
from segkit.visualization import data_url, fit

_HERE = Path(__file__).parent
_MOST = 13_000_000  # characters of all images; the text of 150 classes takes below 1 MB
_FORMS = ((LONGEST, 80), (LONGEST, 60), (384, 60), (288, 50), (192, 50), (128, 40))  # longest side, JPEG quality
_COLOURS = 8  # of lines, in report.css
_SHOWN = 8  # names of images in a sentence
_VERDICTS = {"A": "worse", "B": "better", "=": "not distinguishable", "": ""}  # of the subject, which is B
_PANELS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("loss", "loss", lambda name: "loss" in name.lower()),
    ("learning rate", "learning rate", lambda name: name.split("/")[0].lower().startswith("lr")),
    ("validation mIoU", "mIoU, %", lambda name: name.startswith("val/") and name.lower().endswith("miou")),
)
_CLASS_IOU = "val/IoU/"  # and the name of a class: a column of `metrics.csv`


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
        InputError: A confusion matrix is not (K, K), or the file cannot be written.
    """
    files = {name: (_HERE / f"report.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    examples, images = _embedded(subjects)
    data = {
        "images": images,
        "subjects": [_data(subject, shown) for subject, shown in zip(subjects, examples, strict=True)],
    }
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters |= {"percent": percent, "points": points, "counted": counted}
    page = environment.get_template("report.html.j2").render(
        title=title,
        command=command,
        css=Markup(files["css"]),
        js=Markup(files["js"]),
        hashes={name: _hash(text) for name, text in files.items()},
        data=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
        sections=[_section(subject, f"s{i}", i) for i, subject in enumerate(subjects, 1)],
        curves=_curves(subjects),
    )
    write_text(path, page)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _section(subject: Subject, anchor: str, index: int) -> dict[str, Any]:
    """What the template says about a subject."""
    result, calibration = subject.result, subject.result.get("calibration") or {}
    bins = calibration.get("bins") or []
    ids = {example.name: f"{anchor}-e{i}" for i, example in enumerate(subject.examples)}
    return {
        "id": anchor,
        "colour": f"c{(index - 1) % _COLOURS}",
        "subject": subject,
        "name": subject.name,
        "scores": {name: None for name in ("mIoU", "pixel_accuracy", "mean_accuracy")}
        | dict(result.get("scores") or {}),
        "verdict": _verdict(subject.comparison),
        "sentence": _sentence(subject),
        "rule": result.get("rule"),
        "data": _data_name(result),
        "num_images": result.get("num_images"),
        "protocol": _protocol(result)[0],
        "speed": _speed(result),
        "facts": _facts(result),
        "rows": _class_rows(subject),
        "pairs": _pairs(subject),
        "calibration": calibration,
        "reliability": charts.reliability(bins) if bins else "",
        "confidences": charts.confidences(bins) if bins else "",
        "coverage": _coverage(calibration.get("thresholds") or []),
        "groups": [
            (g, [(label, charts.bar(iou), iou, pixels) for label, iou, pixels in g.rows]) for g in subject.groups
        ],
        "histogram": _histogram(subject, ids),
        "lowest": [(name, iou, ids.get(name)) for name, iou in sorted(subject.image_miou, key=lambda x: x[1])[:_SHOWN]],
        "examples": [(ids[example.name], example) for example in subject.examples],
        "reasons": sorted({reason for example in subject.examples for reason in example.reasons}),
        "to_check": [(ids[e.name], e) for e in subject.examples if "mislabelled" in e.reasons],
    }


def _sentence(subject: Subject) -> tuple[str, str]:
    """The score, and what it depends on and is compared with."""
    result, found = subject.result, subject.interval
    score = (result.get("scores") or {}).get("mIoU")
    start = "No score, for there is no truth" if score is None else f"mIoU {percent(score)} %"
    between = ""
    if found is not None and math.isfinite(found.miou.low):
        between = f" (95 % CI {percent(found.miou.low)} to {percent(found.miou.high)})"
        between = between.replace("95", f"{100 * found.level:g}")
    parts = [f"{between} on {_images(result)}" if "num_images" in result else between]
    parts += [f" of {_data_name(result)}"] if _data_name(result) else []
    parts += [f", protocol {_protocol(result)[0]}"] if _protocol(result)[0] else []
    parts += [f", metric {result['metric']}"] if result.get("metric") and score is not None else []
    if subject.comparison is not None:
        parts.append(f"; {subject.comparison.sentence(subject.baseline or 'the baseline', subject.name)}")
    return start, f"{''.join(parts)}."


def _images(result: Mapping[str, Any]) -> str:
    count = int(result["num_images"])
    expected = (result.get("dataset") or {}).get("num_images", count)
    return counted(count, "image") if count == expected else images_scored(count, expected, bool(result.get("partial")))


def _data_name(result: Mapping[str, Any]) -> str:
    dataset = result.get("dataset") or {}
    return " ".join(str(dataset[key]) for key in ("name", "split") if dataset.get(key))


def _protocol(result: Mapping[str, Any]) -> tuple[str, str]:
    """Its name, and its fields in words."""
    fields = {key: value for key, value in (result.get("protocol") or {}).items() if value is not None}
    return str(fields.pop("name", "")), ", ".join(f"{key} {_plain(value)}" for key, value in fields.items())


def _speed(result: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {_plain(value)}" for key, value in (result.get("speed") or {}).items() if value is not None
    )


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(_plain, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a reader can check: (what, value)."""
    found = [
        ("command of the evaluation", result.get("command")),
        ("date", result.get("date")),
        ("weights", _plain(result.get("weights") or {})),
        ("data", _plain(result.get("dataset") or {})),
        ("protocol", ": ".join(filter(None, _protocol(result)))),
        ("precision", result.get("precision")),
        ("pixels", f"{result['num_pixels']:,}" if result.get("num_pixels") else None),
        ("note", result.get("note")),
        ("versions", _plain(result.get("versions") or {})),
    ]
    return [(name, str(value)) for name, value in found if value]


def _verdict(comparison: Comparison | None) -> tuple[str, str] | None:
    """Difference and verdict of the mIoU."""
    if comparison is None or not math.isfinite(comparison.miou.difference.value):
        return None
    return points(comparison.miou.difference.value), _VERDICTS[comparison.miou.verdict]


def _class_rows(subject: Subject) -> list[dict[str, Any]]:
    """The table of classes, the worst first, those without a score last."""
    rows = list(subject.result.get("classes") or [])
    names = [row["name"] for row in rows]
    intervals = _by_name(subject.interval.classes if subject.interval else (), names, subject)
    changes = _by_name(subject.comparison.classes if subject.comparison else (), names, subject)
    ends = [x for change in changes.values() for x in (change.difference.low, change.difference.high)]
    limit = max((abs(x) for x in ends if math.isfinite(x)), default=0.01) or 0.01
    made = []
    for row in rows:
        between, change = intervals.get(row["name"]), changes.get(row["name"])
        kept = row | {"between": between, "change": change, "mark": "", "verdict": "", "colour": "none"}
        kept["bar"] = charts.bar(row["IoU"], between and between.low, between and between.high)
        if change is not None:
            colour = {"A": "worse", "B": "better"}.get(change.verdict, "same")
            d = change.difference
            kept |= {
                "verdict": _VERDICTS[change.verdict] or "no truth",
                "mark": charts.difference_bar(d.low, d.value, d.high, limit, colour),
            }
        made.append(kept)
    return sorted(made, key=lambda row: (row["IoU"] is None, row["IoU"] or 0, row["id"]))


def _by_name(values: Sequence[Any], names: Sequence[str], subject: Subject) -> dict[str, Any]:
    """Values of classes by their names; those that all means leave out may be missing among them."""
    left_out = subject.result.get("without") or []
    for given in (
        names,
        subject.space.class_names,
        [name for name in subject.space.class_names if name not in left_out],
    ):
        if len(values) == len(given):
            return dict(zip(given, values, strict=True))
    return {}


def _pairs(subject: Subject) -> list[tuple[str, Any]]:
    if subject.confusion is None:
        return []
    names = subject.space.class_names
    return [
        ("Most confused, by pixels", most_confused_pairs(subject.confusion, names)),
        ("Most confused, by share of the true class", most_confused_pairs(subject.confusion, names, by="share")),
    ]


def _coverage(rows: Sequence[Mapping[str, Any]]) -> Markup | str:
    kept = sorted((100 * row["coverage"], 100 * row["mIoU"]) for row in rows if row.get("mIoU") is not None)
    line = charts.Line("c0", "mIoU by coverage", ([x for x, _ in kept], [y for _, y in kept]))
    return charts.lines([line], "mIoU of the pixels that are kept", "pixels kept, %", "mIoU, %") if kept else ""


def _histogram(subject: Subject, ids: Mapping[str, str]) -> Markup | str:
    links = [(iou, ids[name]) for name, iou in subject.image_miou if name in ids and math.isfinite(iou)]
    values = [iou for _, iou in subject.image_miou if math.isfinite(iou)]
    return charts.histogram(values, links) if values else ""


def _curves(subjects: Sequence[Subject]) -> dict[str, Any]:
    """Curves of all subjects, overlaid: (title, lines, chart), and those of the classes."""
    logged = [(i, s.name, s.curves) for i, s in enumerate(subjects) if s.curves]
    panels = []
    for title, y, belongs in _PANELS:
        found = [(i, who, name, c) for i, who, curves in logged for name, c in curves.items() if belongs(name) and c[0]]
        scale = 100 if y.endswith("%") else 1
        # One subject may have several losses, and several subjects one each: each line has a colour of its own.
        several = len({name for _, _, name, _ in found}) > 1
        drawn = [
            charts.Line(
                f"c{(n if several or len(logged) == 1 else i) % _COLOURS}",
                ": ".join(([who] if len(logged) > 1 else []) + ([name] if several or len(logged) == 1 else [])),
                (c[0], [scale * value for value in c[1]]),
            )
            for n, (i, who, name, c) in enumerate(found)
        ]
        if drawn:
            panels.append((title, [(line.colour, line.name) for line in drawn], charts.lines(drawn, title, "step", y)))
    classes = [
        charts.Line(f"c{i % _COLOURS}", name.removeprefix(_CLASS_IOU), (c[0], [100 * value for value in c[1]]))
        for i, _, curves in logged
        for name, c in curves.items()
        if name.startswith(_CLASS_IOU) and c[0]
    ]
    chart = charts.lines(classes, "IoU of each class", "step", "IoU, %") if classes else ""
    return {"panels": panels, "classes": list(dict.fromkeys(line.name for line in classes)), "chart": chart,
            "subjects": [(f"c{i % _COLOURS}", who) for i, who, _ in logged]}  # fmt: skip


def _data(subject: Subject, examples: list[dict[str, Any]]) -> dict[str, Any]:
    """What the script needs of a subject."""
    return {
        "names": [printable(name) for name in subject.space.class_names],
        "palette": [list(colour) for colour in subject.space.palette],
        "confusion": None if subject.confusion is None else subject.confusion.tolist(),
        "examples": examples,
    }


def _embedded(subjects: Sequence[Subject]) -> tuple[list[list[dict[str, Any]]], list[str]]:
    """Examples of each subject with positions in the list of images, in the largest form that fits into the page."""
    for longest, quality in _FORMS:
        images: dict[str, int] = {}
        shown: list[list[dict[str, Any]]] = [[] for _ in subjects]
        for example, kept in [(e, kept) for s, kept in zip(subjects, shown, strict=True) for e in s.examples]:
            kept.append(_drawn(example, longest, quality, images))
            if sum(map(len, images)) > _MOST and longest > _FORMS[-1][0]:
                break
        else:
            break
    return shown, list(images)


def _drawn(example: Example, longest: int, quality: int, images: dict[str, int]) -> dict[str, Any]:
    def keep(url: str) -> int:
        return images.setdefault(url, len(images))

    base = example.labels if example.image is None else example.image
    image, labels = fit(base, example.labels, longest)
    maps = {"labels": labels}
    for name, array in (("truth", example.truth), ("confidence", example.confidence)):
        if array is not None:
            maps[name] = fit(base, array, longest)[1]
    seen = np.unique(np.concatenate([maps[name].ravel() for name in ("labels", "truth") if name in maps]))
    scale = labels.shape[0] / example.labels.shape[0]
    return {
        "size": labels.shape[::-1],  # width, height
        "image": None if example.image is None else keep(data_url(image, quality, subsampling=2)),
        **{name: keep(data_url(maps[name])) if name in maps else None for name in ("truth", "labels", "confidence")},
        "classes": [int(i) for i in seen if i != IGNORE_INDEX],
        "box": None if example.box is None else [round(scale * side) for side in example.box],
        "miou": example.miou,
        "sure": example.confidence_mean,
        "reasons": example.reasons,
    }
