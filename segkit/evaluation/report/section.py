"""What the page says about one subject: sentences, rows of tables and charts, as `report.html.j2` takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from segkit.evaluation.report import charts
from segkit.evaluation.report.content import Example, Subject
from segkit.evaluation.results import images_scored, most_confused_pairs
from segkit.evaluation.statistics import Interval
from segkit.text import counted, percent, points

_VERDICTS = {"A": "worse", "B": "better", "=": "undecided", "": "no truth"}  # of the subject, which is B
_SCORES = ("mIoU", "pixel_accuracy", "mean_accuracy")


def section(subject: Subject, anchor: str) -> dict[str, Any]:
    """What the template says about a subject."""
    result, calibration = subject.result, subject.result.get("calibration") or {}
    bins = calibration.get("bins") or []
    thresholds = [{key: _number(value) for key, value in row.items()} for row in calibration.get("thresholds") or []]
    examples = in_order(subject)
    ids = {example.name: f"{anchor}-e{i}" for i, example in enumerate(examples)}
    change, names = subject.comparison, subject.space.class_names
    speed = result.get("speed") or {}
    pairs = [] if subject.confusion is None else [
        ("Most confused, by pixels", most_confused_pairs(subject.confusion, names)),
        ("Most confused, by share of the true class", most_confused_pairs(subject.confusion, names, by="share")),
    ]  # fmt: skip
    return {
        "id": anchor,
        "subject": subject,
        "name": subject.name,
        "baseline": subject.baseline or "the baseline",
        "scores": {name: _number((result.get("scores") or {}).get(name)) for name in _SCORES},
        "between": between(subject.interval.miou if subject.interval else None),
        "verdict": change and (points(change.miou.difference.value), _VERDICTS[change.miou.verdict]),
        "sentence": _sentence(subject),
        "rule": result.get("rule"),
        "data": _data_name(result),
        "num_images": result.get("num_images"),
        "protocol": _protocol(result)[0],
        "speed": _number(speed.get("images_per_second")),
        "memory": _number(speed.get("peak_memory_bytes")),
        "facts": _facts(result),
        "rows": _class_rows(subject),
        "pairs": pairs,
        "calibration_error": _number(calibration.get("expected_calibration_error")),
        "calibrated": _calibrated(calibration),
        "reliability": charts.reliability(bins) if bins else "",
        "thresholds": thresholds,
        "coverage": _coverage(thresholds),
        "groups": [(one, _capital(one.rule), [(name, charts.bar(iou), iou, n) for name, iou, n in one.rows])
                   for one in subject.groups],
        "histogram": _histogram(subject, ids),
        "examples": [(ids[example.name], example) for example in examples],
        "reasons": sorted({reason for example in subject.examples for reason in example.reasons}),
        "to_check": [(ids[one.name], one) for one in examples if "mislabelled" in one.reasons],
    }  # fmt: skip


def in_order(subject: Subject) -> list[Example]:
    """Its examples, the lowest mIoU first, then the least confidence."""
    return sorted(
        subject.examples, key=lambda one: tuple(2 if x is None else x for x in (one.miou, one.confidence_mean))
    )


def between(found: Interval | None, signed: bool = False) -> str:
    """Its ends, "41.02 to 42.48", in percent or, with signs, in points; "" for None."""
    return " to ".join(map(points if signed else percent, (found.low, found.high))) if found else ""


def _sentence(subject: Subject) -> tuple[str, str]:
    """The score, and what it depends on and is compared with."""
    result, found = subject.result, subject.interval
    score, count = _number((result.get("scores") or {}).get("mIoU")), result.get("num_images")
    parts = []
    if found is not None and math.isfinite(found.miou.low):
        parts.append(f" ({100 * found.level:g} % CI {between(found.miou)})")
    if count is not None:
        expected = (result.get("dataset") or {}).get("num_images", count)
        partial = count != expected
        parts.append(f" on {images_scored(count, expected, True) if partial else counted(count, 'image')}")
    parts += [f" of {_data_name(result)}"] if _data_name(result) else []
    parts += [f", protocol {_protocol(result)[0]}"] if _protocol(result)[0] else []
    parts += [f", metric {result['metric']}"] if result.get("metric") and score is not None else []
    if subject.comparison is not None:
        parts.append(f"; {subject.comparison.sentence(subject.baseline or 'the baseline', subject.name)}")
    return "No score" if score is None else f"mIoU {percent(score)} %", f"{''.join(parts)}."


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _data_name(result: Mapping[str, Any]) -> str:
    dataset = result.get("dataset") or {}
    return " ".join(str(dataset[key]) for key in ("name", "split") if dataset.get(key))


def _protocol(result: Mapping[str, Any]) -> tuple[str, str]:
    """Its name, and its fields in words."""
    fields = dict(result.get("protocol") or {})
    return str(fields.pop("name", "")), _words(fields)


def _words(value: object) -> str:
    """Plain data as words: "images per second 14.2, device cpu"; what is None is left out."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {_words(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, (list, tuple)):
        return " ".join(map(_words, value))
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a reader can check: (what, value)."""
    keys = ("command", "date", "weights", "dataset", "precision", "num_pixels", "speed", "note", "versions")
    shown = dict(result) | ({"num_pixels": f"{result['num_pixels']:,}"} if result.get("num_pixels") else {})
    found = [(key.replace("num_", ""), _words(shown.get(key))) for key in keys]
    found.insert(4, ("protocol", ": ".join(filter(None, _protocol(result)))))
    return [(name, words) for name, words in found if words]


def _class_rows(subject: Subject) -> list[dict[str, Any]]:
    """The table of classes, the worst first, those without a score last."""
    rows, palette = list(subject.result.get("classes") or []), subject.space.palette
    intervals = _by_id(subject.interval.classes if subject.interval else (), subject)
    changes = _by_id(subject.comparison.classes if subject.comparison else (), subject)
    ends = [abs(end) for one in changes.values() for end in (one.difference.low, one.difference.high)]
    limit = max(filter(math.isfinite, ends), default=0) or 1.0
    made = []
    for plain in rows:
        row = plain | {key: _number(plain[key]) for key in ("IoU", "accuracy")} | {"pixels": int(plain["pixels"])}
        found, change = intervals.get(row["id"]), changes.get(row["id"])
        colour = {"A": "worse", "B": "better"}.get(change.verdict if change else "", "same")
        made.append(row | {
            "colour": palette[row["id"]] if row["id"] < len(palette) else None,  # a row of void has none
            "between": found,
            "bar": charts.bar(row["IoU"], found),
            "change": change,
            "mark": charts.difference_bar(change.difference, limit, colour) if change else "",
            "verdict": _VERDICTS[change.verdict] if change else "",
        })  # fmt: skip
    return sorted(made, key=lambda row: (row["IoU"] is None, row["IoU"] or 0, row["id"]))


def _by_id(values: Sequence[Any], subject: Subject) -> dict[int, Any]:
    """Values of classes by their ids; those that all means leave out may be missing among them."""
    names, left_out = subject.space.class_names, subject.result.get("without") or []
    kept = [i for i, name in enumerate(names) if len(values) == len(names) or name not in left_out]
    return dict(zip(kept, values, strict=True)) if len(values) == len(kept) else {}


def _calibrated(calibration: Mapping[str, Any]) -> str:
    error, gap = (calibration.get(f"{kind}_calibration_error") for kind in ("expected", "maximum"))
    said = f"Expected calibration error {percent(error)} %, largest gap of a bin {percent(gap)} %"
    temperature = calibration.get("temperature")
    return f"{said}{f', at temperature {temperature:.3g}' if temperature else ''}."


def _coverage(rows: Sequence[Mapping[str, Any]]) -> Markup | str:
    """mIoU over the share of pixels whose confidence reaches a threshold."""
    kept = sorted(
        (100 * row["coverage"], 100 * row["mIoU"]) for row in rows if None not in (row["coverage"], row["mIoU"])
    )
    line = charts.Line("c0", "mIoU", ([x for x, _ in kept], [y for _, y in kept]))
    return charts.lines([line], "mIoU of the pixels that are kept", "pixels kept, %", "mIoU, %") if kept else ""


def _histogram(subject: Subject, ids: Mapping[str, str]) -> Markup | str:
    values = [(iou, name) for name, iou in subject.image_miou if math.isfinite(iou)]
    links = [(iou, ids[name]) for iou, name in values if name in ids]
    return charts.histogram([iou for iou, _ in values], links) if values else ""
