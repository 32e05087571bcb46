"""The report's page in a headless Chromium: it works, asks for nothing, and is read by everybody."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium
from drawn_report import SIZE, draw_subject, hostile, written

from segkit.evaluation.report.content import Subject


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a page of subjects; at the end nothing was asked for, and nothing complained."""
    said, pages = [], []

    def load(*subjects: Subject, width: int = 1280, **context: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, reduced_motion="reduce", **context)
        pages.append(page)
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url)
        )
        page.goto(written(tmp_path, *subjects).as_uri())
        return page

    yield load
    for page in pages:
        page.close()
    assert said == []


def pixel(page: Any, kind: str, x: int, y: int) -> list[int]:
    """RGB of a canvas of the first image, once it is drawn."""
    canvas = page.locator(f"article canvas[data-kind={kind}]").first
    page.locator(f"article canvas[data-kind={kind}][width='{SIZE[1]}']").first.wait_for()
    script = "(canvas, at) => [...canvas.getContext('2d').getImageData(...at, 1, 1).data].slice(0, 3)"
    return canvas.evaluate(script, [x, y])


@pytest.mark.slow
def test_tables_sort_and_the_matrix_reads(opened: Any) -> None:
    subject = draw_subject(2)  # the first table of one subject is that of the classes
    counts = np.array([[880, 20], [300, 700]])
    rows = [
        dict(row, IoU=iou, pixels=n)
        for row, iou, n in zip(subject.result["classes"], (0.7, None), (900, 1000), strict=True)
    ]
    page = opened(replace(subject, confusion=counts, result=dict(subject.result, classes=rows)))
    table, names = page.locator("table.sortable"), page.locator("table.sortable tbody th")
    assert names.all_inner_texts() == ["thing 0", "thing 1"]
    heading = table.get_by_role("columnheader", name="IoU, %")
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert names.all_inner_texts() == ["thing 0", "thing 1"]  # what has no score stays last
    for _ in range(2):
        table.get_by_role("columnheader", name="pixels").get_by_role("button").click()
    assert names.all_inner_texts() == ["thing 1", "thing 0"] and heading.get_attribute("aria-sort") == "none"

    matrix, read = page.locator(".matrix canvas"), page.locator(".matrix output")
    assert read.inner_text() == "true thing 1 predicted as thing 0: 30.0 % (300 pixels)"
    matrix.press("ArrowRight")
    assert read.inner_text() == "true thing 1 predicted as thing 1: 70.0 % (700 pixels)"
    matrix.press("ArrowUp")
    matrix.press("ArrowRight")  # stops at the border
    assert read.inner_text() == "true thing 0 predicted as thing 1: 2.2 % (20 pixels)"
    size = matrix.bounding_box()
    matrix.hover(position={"x": size["width"] - 5, "y": size["height"] - 5})
    assert read.inner_text().startswith("true thing 1 predicted as thing 1")


@pytest.mark.slow
def test_images_are_read_wiped_toggled_and_filtered(opened: Any) -> None:
    subject = draw_subject()
    example, palette = subject.examples[0], subject.space.palette
    page = opened(subject)
    page.locator("article").first.scroll_into_view_if_needed()
    y = SIZE[0] // 2
    wrong = next(x for x in range(SIZE[1]) if example.truth[y, x] != example.labels[y, x])
    right = next(x for x in range(20, SIZE[1]) if example.truth[y, x] == example.labels[y, x])
    assert pixel(page, "truth", right, y) == list(palette[example.truth[y, right]])
    assert pixel(page, "truth", right, 0) == [0, 0, 0]  # ignored
    assert pixel(page, "errors", wrong, y) == [213, 94, 0]
    assert len(set(pixel(page, "errors", right, y))) == 1  # grey

    panel = page.locator("article canvas[data-kind=labels]").first
    size = panel.bounding_box()
    panel.hover(position={"x": (wrong + 0.5) / SIZE[1] * size["width"], "y": (y + 0.5) / SIZE[0] * size["height"]})
    truth, labels = (subject.space.class_names[array[y, wrong]] for array in (example.truth, example.labels))
    sure = round(example.confidence[y, wrong] / 2.55)
    said = page.locator("article > output").first
    assert said.inner_text() == f"truth {truth}, prediction {labels}, confidence {sure} %"
    page.locator(".panels").first.press("Shift+ArrowDown")
    assert said.inner_text().startswith(f"truth {truth}, prediction {labels}")

    page.locator("article summary").first.press("Enter")
    page.locator(".wipe select").nth(0).select_option("truth")
    page.locator(".wipe select").nth(1).select_option("errors")
    assert pixel(page, "wipe", SIZE[1] - 6, y + 9) != list(palette[example.truth[y + 9, SIZE[1] - 6]])
    page.locator(".wipe input").first.press("End")
    assert pixel(page, "wipe", SIZE[1] - 6, y + 9) == list(palette[example.truth[y + 9, SIZE[1] - 6]])

    page.locator(".legend").get_by_label(truth, exact=True).uncheck()
    other = next(x for x in range(20, SIZE[1]) if example.truth[y + 9, x] == example.truth[y, wrong])
    assert len(set(pixel(page, "truth", other, y + 9))) == 1
    page.locator(".legend").get_by_role("button", name="None").click()
    assert len(set(pixel(page, "truth", right, y + 9))) == 1

    shown = page.locator("article:visible h4")
    page.locator("select[name=sort]").select_option("sure")
    assert shown.all_inner_texts() == [f"image{i}.png" for i in range(5, -1, -1)]
    page.locator("select[name=reason]").select_option("mislabelled")
    assert shown.all_inner_texts() == ["image5.png", "image2.png"]
    assert page.locator(".tools output").inner_text() == "2 of 6 images"
    page.locator(".check input").first.uncheck()
    assert page.locator(".check textarea").input_value() == "image5.png"


@pytest.mark.slow
def test_classes_of_the_filter_are_those_of_truth_and_prediction(opened: Any) -> None:
    subject = draw_subject(20)
    page = opened(subject)
    page.locator("select[name=class]").select_option("thing 9")
    expected = [one.name for one in subject.examples if 9 in one.truth or 9 in one.labels]
    assert page.locator("article:visible h4").all_inner_texts() == expected != []
    assert len(expected) < len(subject.examples)
    page.locator(".class-curves select").select_option("thing 9")
    assert page.locator(".class-curves .chosen").count() == 1


@pytest.mark.slow
def test_hostile_names_run_nothing(opened: Any) -> None:
    page = opened(hostile(), hostile())
    page.locator("article").last.scroll_into_view_if_needed()
    assert page.title() == "a report" and page.locator("img").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling_and_text_has_contrast(opened: Any, scheme: str) -> None:
    page = opened(draw_subject(150, "one"), draw_subject(150, "two"), width=390, color_scheme=scheme)
    for summary in page.locator("header summary, .wipe summary").all()[:4]:
        summary.evaluate("summary => { summary.parentElement.open = true; }")
    page.locator(".matrix canvas").first.press("+")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    poor = page.evaluate(CONTRAST)
    assert poor == []
    assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") == (
        scheme == "light"
    )


# Text whose contrast (WCAG 2.2, 1.4.3) is below 4.5, of elements and of SVG.
CONTRAST = """() => {
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = rgb => rgb.slice(0, 3).map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const rgb = numbers(getComputedStyle(e).backgroundColor);
      if (rgb[3] !== 0) return rgb;
    }
  };
  const poor = new Set();
  for (const e of document.querySelectorAll("body *")) {
    const says = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!says || e.closest("script, noscript, .unseen, title")) continue;
    const style = getComputedStyle(e), ink = numbers(e.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.add(`${e.outerHTML.slice(0, 80)}: ${ink} on ${behind(e)}`);
  }
  return [...poor];
}"""


FOCUSED = """() => {
  const e = document.activeElement;
  return [e.tagName, e.name || e.className || e.textContent.trim(), getComputedStyle(e).outlineStyle];
}"""


@pytest.mark.slow
def test_the_keyboard_alone_reaches_everything_in_order(opened: Any) -> None:
    page, reached = opened(draw_subject()), []
    for _ in range(120):
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        if focused[0] == "BODY":
            break
        assert focused[2] != "none", focused
        reached.append(focused[:2])
    tags = [tag for tag, _ in reached]
    assert tags[0] == "SUMMARY" and tags.count("CANVAS") == 1 and ["SELECT", "sort"] in reached
    assert [name for _, name in reached].count("panels") == 6


@pytest.mark.slow
def test_on_paper_folded_parts_are_open_and_controls_are_gone(opened: Any) -> None:
    page = opened(draw_subject(), color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator("nav").is_visible() and not page.locator(".tools").is_visible()
    assert page.get_by_text("segkit report run").is_visible() and page.locator("pre").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
