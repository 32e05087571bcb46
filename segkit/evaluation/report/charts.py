"""Charts of a report as inline SVG: shapes with class names, which `report.css` colours for light, dark and paper.

Lines have the colours of Okabe and Ito (2008), which survive colour blindness, and dashes from the seventh on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from segkit.errors import printable

_WIDTH, _HEIGHT = (
    380,
    230,
)  # units, about pixels: text keeps its size on a desktop and on a phone
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 10, 38
_POINTS = 200  # of a line at most; more are averaged
_BINS = 20  # of the histogram of images
_BAR = 120  # units of a table's bar
_SVG = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
_RECT = Markup('<rect class="{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"/>')
_LINE = Markup('<path class="{}" d="M{:.2f} {:.2f}L{:.2f} {:.2f}"/>')
_TEXT = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')

Curve = tuple[Sequence[float], Sequence[float]]  # x, y


@dataclass(frozen=True)
class Line:
    """One line of a chart: the CSS classes of its colour, what it is of, and its points."""

    colour: str
    name: str
    curve: Curve


@dataclass(frozen=True)
class _Axes:
    """A rectangle of data, x and y from low to high; `log` for y as powers of 10."""

    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False

    def at(self, x: float, y: float) -> tuple[float, float]:
        right = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return _LEFT + right * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    def bar(self, colour: str, x: tuple[float, float], y: tuple[float, float]) -> Markup:
        (left, bottom), (right, top) = self.at(x[0], min(y)), self.at(x[1], max(y))
        return _RECT.format(colour, left, top, right - left, bottom - top)

    def path(self, colour: str, curve: Curve, name: str = "") -> Markup:
        spots = " ".join("{:.1f} {:.1f}".format(*self.at(x, y)) for x, y in zip(*curve, strict=True))
        title = Markup("<title>{}</title>").format(printable(name)) if name else ""
        return Markup('<path class="line {}" data-name="{}" d="M{}">{}</path>').format(
            colour, printable(name), spots, title
        )

    def chart(self, body: Markup, label: str, x: str, y: str) -> Markup:
        """The chart: grid and numbers, then `body`, then what the axes are."""
        (left, low), (right, high) = self.at(self.x[0], self.y[0]), self.at(self.x[1], self.y[1])
        parts = []
        for tick in _ticks(self.y):
            place, shown = self.at(0, tick)[1], 10**tick if self.log else tick
            parts += [
                _LINE.format("grid", left, place, right, place),
                _TEXT.format(left - 6, place + 4, "end", f"{shown:g}"),
            ]
        for tick in _ticks(self.x):
            place = self.at(tick, 0)[0]
            parts.append(_TEXT.format(place, low + 15, "middle", _short(tick)))
        axis = _LINE.format("axis", left, low, right, low)
        named = _TEXT.format((left + right) / 2, _HEIGHT - 6, "middle", x)
        turned = Markup('<text transform="translate(11 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>')
        whole = Markup("").join([*parts, body, axis, named, turned.format((low + high) / 2, y)])
        return _SVG.format(_WIDTH, _HEIGHT, printable(label), whole)


def lines(drawn: Sequence[Line], label: str, x: str, y: str) -> Markup:
    """A line chart; long lines are averaged down to 200 points."""
    kept = [Line(line.colour, line.name, _thinned(line.curve)) for line in drawn]
    xs, ys = ([value for line in kept for value in line.curve[i]] for i in (0, 1))
    axes = _Axes(_span(xs), _span(ys))
    return axes.chart(Markup("").join(axes.path(one.colour, one.curve, one.name) for one in kept), label, x, y)


def reliability(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Share of right pixels over confidence, the gap to the mean confidence, and the line of "as sure as right"."""
    axes, parts = _Axes((0, 100), (0, 100)), []
    for one in bins:
        if one["accuracy"] is not None and one["confidence"] is not None:
            sides, right, sure = (100 * one["low"], 100 * one["high"]), 100 * one["accuracy"], 100 * one["confidence"]
            parts += [axes.bar("bar", sides, (0, right)), axes.bar("gap", sides, (right, sure))]
    parts.append(axes.path("ideal", ((0, 100), (0, 100))))
    return axes.chart(Markup("").join(parts), "reliability diagram", "confidence, %", "right pixels, %")


def confidences(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """The share of pixels of each bin of confidence, by powers of 10."""
    total, axes = max(1, sum(one["pixels"] for one in bins)), _Axes((0, 100), (-2, 2), log=True)
    shares = [(one, 100 * one["pixels"] / total) for one in bins]
    bars = [
        axes.bar("other", (100 * one["low"], 100 * one["high"]), (-2, math.log10(share)))
        for one, share in shares
        if share > 0.01
    ]
    return axes.chart(Markup("").join(bars), "pixels by confidence", "confidence, %", "share of pixels, %")


def histogram(values: Sequence[float], links: Sequence[tuple[float, str]]) -> Markup:
    """How many images have which mIoU (0..1); a bar leads to the first of `links` (mIoU, anchor) in it."""
    counts, edges = np.histogram(values, _BINS, (0, 1))
    axes, parts = _Axes((0, 100), (0, max(4.0, 1.05 * counts.max()))), []
    for i, count in enumerate(counts):
        bar = axes.bar("bar", (100 * edges[i] + 0.4, 100 * edges[i + 1] - 0.4), (0, count))
        inside = [anchor for value, anchor in links if min(_BINS - 1, int(value * _BINS)) == i]
        words = f"{count} of {len(values)} images: mIoU {100 * edges[i]:.0f} to {100 * edges[i + 1]:.0f} %"
        if inside and count:
            bar = Markup('<a href="#{}" aria-label="{}; to the first that is shown">{}<title>{}</title></a>').format(
                inside[0], words, bar, words
            )
        parts.append(bar)
    svg = axes.chart(Markup("").join(parts), "images by their mIoU", "mIoU of the image, %", "images")
    return Markup(svg.replace('role="img"', 'role="group"', 1))  # an image's parts could not be links


def bar(value: float | None, low: float | None = None, high: float | None = None) -> Markup:
    """A table's bar of a score, 0..1, with its interval as a line."""
    if value is None or not math.isfinite(value):
        return Markup("")
    body = _RECT.format("rail", 0, 3, _BAR, 8) + _RECT.format("bar", 0, 3, _BAR * value, 8)
    if low is not None and high is not None and math.isfinite(low + high):
        body += _LINE.format("span", _BAR * low, 7, _BAR * high, 7)
    return Markup('<svg class="cell" width="{0}" height="14" viewBox="0 0 {0} 14" aria-hidden="true">{1}</svg>').format(
        _BAR, body
    )


def difference_bar(low: float, value: float, high: float, limit: float, colour: str) -> Markup:
    """A table's mark of a difference with its interval, on -limit..limit, zero in the middle."""
    if not math.isfinite(low + value + high):
        return Markup("")
    a, at, b = (_BAR / 2 * (1 + max(-1.0, min(1.0, x / limit))) for x in (low, value, high))
    body = _LINE.format("axis", _BAR / 2, 0, _BAR / 2, 14) + _LINE.format(f"range {colour}", a, 7, b, 7)
    body += Markup('<circle class="{}" cx="{:.2f}" cy="7" r="3.5"/>').format(colour, at)
    return Markup('<svg class="cell" width="{0}" height="14" viewBox="0 0 {0} 14" aria-hidden="true">{1}</svg>').format(
        _BAR, body
    )


def _thinned(curve: Curve) -> Curve:
    pairs = np.array([(x, y) for x, y in zip(*curve, strict=True) if math.isfinite(x + y)]).reshape(-1, 2)
    parts = np.array_split(pairs, min(len(pairs), _POINTS)) if len(pairs) > _POINTS else [row[None] for row in pairs]
    means = np.array([part.mean(axis=0) for part in parts]).reshape(-1, 2)
    return means[:, 0].tolist(), means[:, 1].tolist()


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(span: tuple[float, float]) -> list[float]:
    slack = 1e-9 * (span[1] - span[0])
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(*span)
    return [float(round(tick, 12)) for tick in ticks if span[0] - slack <= tick <= span[1] + slack]


def _short(tick: float) -> str:
    return f"{tick / 1000:g}k" if abs(tick) >= 10_000 else f"{tick:g}"
