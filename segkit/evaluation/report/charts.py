"""Charts of a report as inline SVG: shapes with class names, which `report.css` colours for light, dark and paper.

Lines have the colours of Okabe and Ito (2008), which survive colour blindness, and dashes from the seventh on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from segkit.errors import printable
from segkit.evaluation.statistics import Interval

_WIDTH, _HEIGHT = 380, 230  # units, about pixels, so that text keeps its size on a desktop and on a phone
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 22, 38
_POINTS = 200  # of a line at most; more are averaged
_BINS = 20  # of the histogram of images
_BAR = 96  # units of a table's bar
_SVG = Markup('<svg viewBox="0 0 {} {}" role="{}" aria-label="{}">{}</svg>')
_CELL = Markup('<svg class="cell" width="{0}" height="14" viewBox="0 0 {0} 14" aria-hidden="true">{1}</svg>')
_RECT = Markup('<rect class="{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"/>')
_STROKE = Markup('<path class="{}" d="M{:.2f} {:.2f}L{:.2f} {:.2f}"/>')
_PATH = Markup('<path class="line {}" data-name="{}" d="M{}"><title>{}</title></path>')
_TEXT = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
_LINK = Markup('<a href="#{}" aria-label="{}; to the first that is shown">{}<title>{}</title></a>')

Bin = Mapping[str, Any]  # as of `Reliability.to_dict`
Curve = tuple[Sequence[float], Sequence[float]]  # x, y
Span = tuple[float, float]  # low, high


class Line(NamedTuple):
    """One line of a chart: the class name of its colour, what it is of, and its points."""

    colour: str
    name: str
    curve: Curve


class _Axes(NamedTuple):
    """What a chart shows of x and of y."""

    x: Span
    y: Span

    def at(self, x: float, y: float) -> tuple[float, float]:
        right, up = (x - self.x[0]) / (self.x[1] - self.x[0]), (y - self.y[0]) / (self.y[1] - self.y[0])
        return _LEFT + right * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    def bar(self, colour: str, x: Span, y: Span) -> Markup:
        (left, bottom), (right, top) = self.at(x[0], min(y)), self.at(x[1], max(y))
        return _RECT.format(colour, left, top, right - left, bottom - top)

    def path(self, line: Line) -> Markup:
        spots = " ".join("{:.1f} {:.1f}".format(*self.at(x, y)) for x, y in zip(*line.curve, strict=True))
        name = printable(line.name)
        return _PATH.format(line.colour, name, spots, name)

    def chart(self, body: Sequence[Markup], label: str, x: str, y: str, role: str = "img") -> Markup:
        """The chart: grid and numbers, then `body`, then what the axes are."""
        (left, low), (right, _) = self.at(self.x[0], self.y[0]), self.at(self.x[1], self.y[1])
        parts = []
        for tick in _ticks(self.y):
            place = self.at(0, tick)[1]
            parts.append(_STROKE.format("grid", left, place, right, place))
            parts.append(_TEXT.format(left - 6, place + 4, "end", f"{tick:g}"))
        for tick in _ticks(self.x):
            number = f"{tick / 1000:g}k" if abs(tick) >= 10_000 else f"{tick:g}"
            parts.append(_TEXT.format(self.at(tick, 0)[0], low + 15, "middle", number))
        axis, across = _STROKE.format("axis", left, low, right, low), _TEXT.format(right, _HEIGHT - 6, "end", x)
        whole = Markup("").join([*parts, *body, axis, across, _TEXT.format(0, 10, "start", y)])
        return _SVG.format(_WIDTH, _HEIGHT, role, printable(label), whole)


def lines(drawn: Sequence[Line], label: str, x: str, y: str, start: float | None = None) -> Markup:
    """A line chart, its x axis from `start` or the least x; long lines are averaged down to 200 points."""
    kept = [Line(line.colour, line.name, _thinned(line.curve)) for line in drawn]
    xs, ys = ([value for line in kept for value in line.curve[i]] for i in (0, 1))
    axes = _Axes(_span(xs if start is None else [start, *xs]), _span(ys))
    return axes.chart([axes.path(line) for line in kept], label, x, y)


def reliability(bins: Sequence[Bin]) -> Markup:
    """The share of right pixels over confidence, the gap to the mean confidence, and where both would be equal."""
    axes, parts = _Axes((0, 100), (0, 100)), []
    for one in bins:
        if one["accuracy"] is not None and one["confidence"] is not None:
            sides = 100 * one["low"], 100 * one["high"]
            right, sure = 100 * one["accuracy"], 100 * one["confidence"]
            parts += [axes.bar("bar", sides, (0, right)), axes.bar("gap", sides, (right, sure))]
    parts.append(axes.path(Line("ideal", "as sure as right", ((0, 100), (0, 100)))))
    return axes.chart(parts, "reliability diagram", "confidence, %", "right pixels, %")


def histogram(values: Sequence[float], links: Sequence[tuple[float, str]]) -> Markup:
    """How many images have which mIoU (0..1); a bar leads to the first of `links` (mIoU, anchor) in it."""
    counts, edges = np.histogram(values, _BINS, (0, 1))
    axes, parts = _Axes((0, 100), (0, max(4.0, 1.05 * counts.max()))), []
    for i, count in enumerate(counts):
        bar = axes.bar("bar", (100 * edges[i] + 0.4, 100 * edges[i + 1] - 0.4), (0, count))
        inside = [anchor for value, anchor in links if min(_BINS - 1, int(value * _BINS)) == i]
        words = f"{count} of {len(values)} images: mIoU {100 * edges[i]:.0f} to {100 * edges[i + 1]:.0f} %"
        parts.append(_LINK.format(inside[0], words, bar, words) if inside else bar)
    return axes.chart(parts, "images by their mIoU", "mIoU of the image, %", "images", "group")  # whose parts are links


def bar(value: float | None, between: Interval | None = None) -> Markup:
    """A table's bar of a score, 0..1, with its interval as a line."""
    if value is None or not math.isfinite(value):
        return Markup("")
    body = _RECT.format("rail", 0, 3, _BAR, 8) + _RECT.format("bar", 0, 3, _BAR * value, 8)
    if between is not None and math.isfinite(between.low + between.high):
        body += _STROKE.format("span", _BAR * between.low, 7, _BAR * between.high, 7)
    return _CELL.format(_BAR, body)


def difference_bar(found: Interval, limit: float, colour: str) -> Markup:
    """A table's mark of a difference with its interval, on -limit..limit, zero in the middle."""
    if not math.isfinite(found.low + found.value + found.high):
        return Markup("")
    low, at, high = (4 + (_BAR - 8) / 2 * (1 + x / limit) for x in (found.low, found.value, found.high))
    body = _STROKE.format("axis", _BAR / 2, 0, _BAR / 2, 14) + _STROKE.format(f"range {colour}", low, 7, high, 7)
    return _CELL.format(_BAR, body + Markup('<circle class="{}" cx="{:.2f}" cy="7" r="3.5"/>').format(colour, at))


def _thinned(curve: Curve) -> Curve:
    pairs = np.array([(x, y) for x, y in zip(*curve, strict=True) if math.isfinite(x + y)]).reshape(-1, 2)
    if len(pairs) > _POINTS:
        pairs = np.array([part.mean(axis=0) for part in np.array_split(pairs, _POINTS)])
    return pairs[:, 0].tolist(), pairs[:, 1].tolist()


def _span(values: Sequence[float]) -> Span:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(span: Span) -> list[float]:
    slack, whole = 1e-9 * (span[1] - span[0]), span[1] - span[0] >= 4
    ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(*span)
    return [float(round(tick, 12)) for tick in ticks if span[0] - slack <= tick <= span[1] + slack]
