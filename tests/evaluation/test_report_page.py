"""The report's page: what is in it and that it is safe."""

import base64
import hashlib
import json
import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_report import EVIL, draw_subject, hostile, without, written

from segkit.errors import InputError
from segkit.evaluation.report.content import LONGEST, Subject
from segkit.text import percent

OPTIONAL = [field.name for field in fields(Subject) if field.name not in ("name", "space")]


class Page(HTMLParser):
    """The elements of a page in order, with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_structure_for_people_and_screen_readers(tmp_path: Path) -> None:
    page = Page(written(tmp_path, draw_subject(name="one"), draw_subject(name="two")).read_text(encoding="utf-8"))
    assert not page.open and page.all("html") == [{"lang": "en"}] and page.texts["title"][0] == "a report"
    assert all(len(page.all(tag)) == 1 for tag in ("h1", "main", "header", "nav", "noscript"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [one["href"] or "" for one in page.all("a")]
    assert links and all(link.startswith("#") and link[1:] in ids for link in links)
    assert {one["aria-labelledby"] for one in page.all("section")} <= set(ids)
    text = " ".join(part for parts in page.texts.values() for part in parts)
    for words in ("mIoU 28.00 %", "protocol whole", "metric segkit", "6 images", "one is better than older", "segkit",
                  "ab" * 32, "segkit report run", "seed: 0", "No file of speed.",
                  "Small is below 32 pixels."):  # fmt: skip
        assert words in text, words


def test_nothing_is_asked_for_and_only_this_script_and_style_may_run(tmp_path: Path) -> None:
    page = Page(written(tmp_path, draw_subject()).read_text(encoding="utf-8"))
    (policy,) = (one["content"] or "" for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
              for text in (page.texts["style"][0], page.texts["script"][1])]  # fmt: skip
    assert policy == (
        f"default-src 'none'; img-src data:; style-src {hashes[0]}; script-src {hashes[1]}; base-uri 'none'; "
        "form-action 'none'"
    )
    for _, attributes in page.elements:
        assert not {"style", "src"} & attributes.keys() and not any(name.startswith("on") for name in attributes)
    assert "http://" not in page.texts["style"][0] and "https://" not in page.texts["script"][1]


def test_names_from_outside_are_text(tmp_path: Path) -> None:
    text = written(tmp_path, hostile(), title=EVIL, command=EVIL).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and len(page.all("script")) == 2 and not page.all("img")
    assert not any(char in text for char in "\x00\x1b\u202e")
    assert "onerror=document.title=1" in page.texts["h4"][1] and "\\x1b[2J\\x00\\u202egpj" in page.texts["h4"][1]


@pytest.mark.slow
@pytest.mark.parametrize("part", OPTIONAL)
def test_a_part_that_is_absent_is_left_out(part: str, tmp_path: Path) -> None:
    assert not Page(written(tmp_path, without(draw_subject(), part)).read_text(encoding="utf-8")).open


@pytest.mark.slow
@pytest.mark.parametrize("part", ["image", "truth", "confidence", "miou", "confidence_mean", "box"])
def test_a_part_of_the_images_that_is_absent_is_left_out(part: str, tmp_path: Path) -> None:
    subject = draw_subject()
    bare = replace(subject, examples=tuple(replace(one, **{part: None}) for one in subject.examples))
    data = embedded(written(tmp_path, bare))
    assert part == "confidence_mean" or all(one[part] is None for one in data["subjects"][0]["examples"])


def test_scores_of_nothing_make_a_page(tmp_path: Path) -> None:
    subject = draw_subject()
    rows = [dict(row, IoU=None, accuracy=None) for row in subject.result["classes"]]
    result = dict(subject.result, classes=rows, scores={"mIoU": None}, calibration={"bins": []})
    assert "No score" in written(tmp_path, replace(subject, result=result)).read_text(encoding="utf-8")


def test_classes_that_a_mean_leaves_out_have_no_interval_and_shift_none(tmp_path: Path) -> None:
    subject = draw_subject()
    assert subject.interval is not None
    fewer = replace(subject.interval, classes=subject.interval.classes[1:])
    result = dict(subject.result, without=["thing 0"])
    path = written(tmp_path, replace(subject, interval=fewer, comparison=None, result=result))
    text = path.read_text(encoding="utf-8")
    for i, found in enumerate(subject.interval.classes):
        row = text.split(f"</svg>thing {i}</th>")[1].split("</tr>")[0]
        assert (f"{percent(found.low)} to {percent(found.high)}" in row) == (i > 0)


@pytest.mark.slow
@pytest.mark.parametrize(("part", "value"), [
    ("scores", "good"), ("scores", {"mIoU": "good"}), ("protocol", ["whole"]), ("num_images", [3]),
    ("classes", [{"id": 0, "name": "a", "IoU": "<b>", "accuracy": None, "pixels": 1}]), ("classes", [{"name": "a"}]),
    ("calibration", {"bins": [{"low": 0}]}), ("calibration", {"thresholds": [3]}),
    ("speed", {"images_per_second": "x"}), ("dataset", 3), ("metric", {}), ("rule", 5), ("versions", [1]),
])  # fmt: skip
def test_a_result_of_another_form_is_one_line_or_text(part: str, value: object, tmp_path: Path) -> None:
    subject = draw_subject()
    broken = replace(subject, result=dict(subject.result, **{part: value}))
    try:
        assert not Page(written(tmp_path, broken).read_text(encoding="utf-8")).open
    except InputError as error:
        assert "run: its result is not of the form" in str(error)
        assert part in ("scores", "protocol", "num_images", "classes", "calibration", "speed", "dataset")


def embedded(path: Path) -> dict[str, Any]:
    return json.loads(Page(path.read_text(encoding="utf-8")).texts["script"][0])


def test_the_same_image_of_two_subjects_is_there_once(tmp_path: Path) -> None:
    subject = draw_subject()
    once = embedded(written(tmp_path, subject))["images"]
    assert embedded(written(tmp_path, subject, replace(subject, name="again")))["images"] == once


@pytest.mark.slow
def test_forty_large_images_of_150_classes_are_below_15_megabytes(tmp_path: Path) -> None:
    subject, generator = draw_subject(150), np.random.default_rng(0)
    coarse = generator.integers(0, 150, (64, 64), dtype=np.uint8)
    labels = coarse.repeat(LONGEST // 64, 0).repeat(LONGEST // 64, 1)
    examples = []
    for i in range(40):
        # Ripples as fine as the detail of a photograph, and a confidence that changes from pixel to pixel.
        waves = np.sin(np.arange(LONGEST * LONGEST * 3).reshape(LONGEST, LONGEST, 3) * (0.3 + i / 99))
        image = (128 + 100 * waves).astype(np.uint8)
        sure = generator.integers(128, 256, (LONGEST, LONGEST), dtype=np.uint8)
        turned = np.roll(labels, i, axis=0)
        examples.append(
            replace(subject.examples[0], name=f"{i}", image=image, truth=turned, labels=turned.T, confidence=sure)
        )
    path = written(tmp_path, replace(subject, examples=tuple(examples)))
    assert path.stat().st_size < 15_000_000
    assert max(embedded(path)["subjects"][0]["examples"][0]["size"]) >= 256
