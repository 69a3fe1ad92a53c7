"""Draws a run as inline SVG: its steps as bars on a time line, and below, on the same axis, the rates as a stack.

Pure functions. Places along the time are percents of the width, so that a chart fits any screen while its text and its
lines keep their size; only the area of the rates is stretched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from console.figures import size
from console.language import listed, translate
from console.markup import NOTHING, Attributes, Markup, element, joined
from console.recorder import Press, Span
from console.report_rates import Band, Kind, Series, band, edges_of, fewer
from wire.phrase import COLON

# How finely the rates are drawn: a bucket is 4 to 5 pixels wide on a usual screen, and as many can be pointed at.
_BUCKETS = 160
# More bands than that, and nobody tells their colours apart.
_DISKS = 5
_ROW = 26
_BAR = 12
_PLOT = 250
_AXIS = 24
_MOST_TICKS = 6
_TICK_SECONDS = (
    0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
# A link that carries so many times what crossed would press the rest flat: it is only told.
_LINK_SHOWN = 3.0
# The width of what is stretched, in its own coordinates.
_WIDE = 1000.0


@dataclass(frozen=True)
class Axis:
    """The time line: from the run's begin to so many seconds after it, with a mark every `step` seconds."""

    seconds: float
    step: float

    @classmethod
    def of(cls, seconds: float) -> Axis:
        """The axis of a run of that length."""
        length = max(seconds, 0.1)
        fitting = (step for step in _TICK_SECONDS if length / step <= _MOST_TICKS)
        return cls(length, next(fitting, 86400.0 * math.ceil(length / 86400 / _MOST_TICKS)))

    def percent(self, at: float) -> float:
        """Where a time is, in percent of the width."""
        return 100 * min(max(at / self.seconds, 0.0), 1.0)

    def place(self, at: float) -> str:
        """The same as an attribute."""
        return f"{self.percent(at):.3f}%"

    def ticks(self) -> Iterator[float]:
        """The times that are marked, the beginning left out."""
        return (number * self.step for number in range(1, int(self.seconds / self.step + 1e-9) + 1))


def moment(seconds: float) -> str:
    """A time on the axis: 0.5 s, 45 s, 1:30 min, 2 min, 1:30 h."""
    if seconds < 60:
        return f"{seconds:g} s"
    number, unit = (seconds / 60, "min") if seconds < 3600 else (seconds / 3600, "h")
    whole, rest = int(number), round(number % 1 * 60)
    return f"{whole}:{rest:02} {unit}" if rest else f"{whole} {unit}"


def stretch(began: float, ended: float) -> str:
    """From when until when, in seconds since the run began."""
    return translate("{began} to {ended} s").format(began=f"{began:.1f}", ended=f"{ended:.1f}")


def _canvas(height: float, attributes: Attributes, *content: str) -> Markup:
    return element("svg", {"width": "100%", "height": height, **attributes}, *content)


def _drawing(height: float, attributes: Attributes, *content: str) -> Markup:
    """A canvas along the time line."""
    return _canvas(height, {"class": "drawing", **attributes}, *content)


def _grid(axis: Axis, height: float) -> Markup:
    return joined(
        element("line", {"class": "grid", "x1": axis.place(at), "x2": axis.place(at), "y1": 0, "y2": height})
        for at in axis.ticks())


# The steps.


def bar(span: Span, axis: Axis, where: str, told: str) -> Markup:
    """One step as a bar; `where` is the class of its host, `told` what a pointer and a screen reader are told."""
    look = "going-on" if span.result is None else "failed" if span.result.error or span.result.obstacles else "ok"
    shape: Attributes = {"class": f"bar {where} {look}", "x": axis.place(span.began), "y": (_ROW - _BAR) / 2,
                         "height": _BAR, "rx": 3}
    width = f"{max(axis.percent(span.ended) - axis.percent(span.began), 0):.3f}%"
    return _drawing(
        _ROW, {"role": "img", "aria-label": told}, element("title", {}, told), _grid(axis, _ROW),
        # However short it was, it can be seen.
        element("rect", {**shape, "width": 3, "rx": 1.5}), element("rect", {**shape, "width": width}))


def press_mark(press: Press, axis: Axis, told: str) -> Markup:
    """A Ctrl-C as a mark."""
    x = axis.place(press.at)
    return _drawing(
        _ROW, {"role": "img", "aria-label": told}, element("title", {}, told), _grid(axis, _ROW),
        element("line", {"class": "press", "x1": x, "x2": x, "y1": 3, "y2": _ROW - 3}),
        element("circle", {"class": "press", "cx": x, "cy": _ROW / 2, "r": 4}))


def time_axis(axis: Axis) -> Markup:
    """The times below the bars."""
    return _drawing(_AXIS, {"aria-hidden": "true"}, _times(axis, 0))


def _times(axis: Axis, top: float) -> Markup:
    return joined(
        element("text", {
            "class": "tick", "x": axis.place(at), "y": top + 16,
            "text-anchor": "end" if axis.percent(at) > 95 else "middle"}, moment(at))
        for at in axis.ticks())


# The rates.


@dataclass(frozen=True)
class RateChart:
    """The rates of a run, ready to be drawn. Bytes per second."""

    axis: Axis
    edges: tuple[float, ...]
    bands: tuple[Band, ...]
    """What crossed, from the lowest of the stack to the highest."""
    dirty: Band | None
    link: float | None
    """What was measured beforehand, where it fits the scale."""
    top: float
    """The highest rate on the scale."""

    @classmethod
    def of(cls, series: Sequence[Series], axis: Axis, link: float | None) -> RateChart | None:
        """None where nothing was told of any rate."""
        crossing = [each for each in series if each.kind is not Kind.DIRTY]
        if not crossing:
            return None
        edges = edges_of(series, _BUCKETS)
        disks = fewer([each for each in crossing if each.kind is Kind.DISK], _DISKS, translate("other disks"))
        stack = [each for each in crossing if each.kind is Kind.FILES] + list(disks) + [
            each for each in crossing if each.kind is Kind.MEMORY]
        bands = tuple(band(each, edges) for each in stack)
        dirty = next((band(each, edges) for each in series if each.kind is Kind.DIRTY), None)
        highest = max(*(sum(rates) for rates in zip(*(each.rates for each in bands))),
                      *(dirty.rates if dirty is not None else ()), 1.0)
        shown = link if link is not None and link <= _LINK_SHOWN * highest else None
        return cls(axis, edges, bands, dirty, shown, max(highest, shown or 0.0) * 1.08)

    def y(self, rate: float) -> float:
        """Where a rate is, in pixels from the top."""
        return _PLOT * (1 - rate / self.top)

    def x(self, at: float) -> float:
        """Where a time is in what is stretched."""
        return _WIDE * self.axis.percent(at) / 100


def class_of(chart: RateChart, place: int) -> str:
    """The class that gives a band its colour."""
    kind = chart.bands[place].series.kind
    if kind is not Kind.DISK:
        return str(kind.value)
    disks = [each for each in chart.bands if each.series.kind is Kind.DISK]
    return f"disk-{disks.index(chart.bands[place]) + 1}"


def name_of(series: Series) -> str:
    """What a series is called."""
    names: Mapping[Kind, str] = {
        Kind.FILES: translate("files"), Kind.DISK: series.name or translate("disks"),
        Kind.MEMORY: translate("memory"), Kind.DIRTY: translate("written by the guest")}
    return names[series.kind]


def draw_rates(chart: RateChart, title: str, description: str) -> Markup:
    """The stack of what crossed, the guest's writing and the link as lines, and the axes."""
    stack = [*_stack(chart)]
    return _drawing(
        _PLOT + _AXIS, {"role": "img", "aria-labelledby": "rates-title rates-description"},
        element("title", {"id": "rates-title"}, title), element("desc", {"id": "rates-description"}, description),
        _grid(chart.axis, _PLOT), *_scale(chart),
        _canvas(_PLOT, {"viewBox": f"0 0 {_WIDE:.0f} {_PLOT}", "preserveAspectRatio": "none"}, *stack, _dirty(chart)),
        element("line", {"class": "base", "x1": 0, "x2": "100%", "y1": _PLOT, "y2": _PLOT}),
        *_link(chart), *_names(chart), _times(chart.axis, _PLOT), *_pointed(chart))


def _steps(chart: RateChart, rates: Sequence[float], first: int, last: int, *, backwards: bool = False) -> str:
    """The levels of the buckets from `first` up to `last`, as the middle of a path."""
    points = [
        f"{chart.x(edge):.1f} {chart.y(rates[place]):.1f}"
        for place in range(first, last) for edge in (chart.edges[place], chart.edges[place + 1])]
    return "L".join(reversed(points) if backwards else points)


def _runs(rates: Sequence[float], least: float = 0.0) -> Iterator[tuple[int, int]]:
    """The stretches of buckets in which the rate is above `least`: their first, and the one after their last."""
    began = None
    for place, rate in enumerate((*rates, least)):
        if rate > least and began is None:
            began = place
        elif rate <= least and began is not None:
            yield began, place
            began = None


def _stack(chart: RateChart) -> Iterator[Markup]:
    lower = [0.0] * (len(chart.edges) - 1)
    for place, each in enumerate(chart.bands):
        upper = [below + rate for below, rate in zip(lower, each.rates)]
        for first, last in _runs(each.rates):
            over, under = _steps(chart, upper, first, last), _steps(chart, lower, first, last, backwards=True)
            yield element("path", {"class": f"area {class_of(chart, place)}", "d": f"M{over}L{under}Z"})
            yield element("path", {
                "class": f"edge {class_of(chart, place)}", "d": f"M{over}", "vector-effect": "non-scaling-stroke"})
        lower = upper


def _dirty(chart: RateChart) -> Markup:
    if chart.dirty is None:
        return NOTHING
    told = [
        place for place in range(len(chart.edges) - 1)
        if chart.dirty.series.levels[0].began <= chart.edges[place] < chart.dirty.series.levels[-1].ended]
    path = _steps(chart, chart.dirty.rates, told[0], told[-1] + 1) if told else ""
    return element("path", {"class": "edge dirty", "d": f"M{path}", "vector-effect": "non-scaling-stroke"}) if (
        path) else NOTHING


def _link(chart: RateChart) -> Iterator[Markup]:
    if chart.link is None:
        return
    y = chart.y(chart.link)
    yield element("line", {"class": "link", "x1": 0, "x2": "100%", "y1": y, "y2": y})
    words = translate("link: {rate}/s").format(rate=size(chart.link))
    # Above the line, or below where the chart ends.
    yield element("text", {
        "class": "label", "x": "100%", "y": y - 6 if y > 18 else y + 14, "text-anchor": "end"}, words)


def _scale(chart: RateChart) -> Iterator[Markup]:
    """Lines across the chart, each with its rate beside it."""
    unit, name = next(
        (unit, name) for unit, name in ((1 << 30, "GiB/s"), (1 << 20, "MiB/s"), (1 << 10, "KiB/s"), (1, "B/s"))
        if chart.top >= unit or unit == 1)
    about = chart.top / unit / 5
    power = 10 ** math.floor(math.log10(about))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= about)
    for number in range(1, int(chart.top / unit / step) + 1):
        y = chart.y(number * step * unit)
        yield element("line", {"class": "grid", "x1": 0, "x2": "100%", "y1": y, "y2": y})
        yield element("text", {"class": "tick", "x": "100%", "dx": 8, "y": y + 4}, f"{number * step:g} {name}")


def _names(chart: RateChart) -> Iterator[Markup]:
    """The name of each band inside of it, where there is room."""
    lower = [0.0] * (len(chart.edges) - 1)
    for each in chart.bands:
        # Where it is tall, not in a dip: 18 pixels at least, and more than half of what it comes to elsewhere.
        least = max(chart.top * 18 / _PLOT, 0.6 * max(each.rates))
        tall = [rate if rate >= least else 0.0 for rate in each.rates]
        longest = max(_runs(tall), key=lambda run: chart.edges[run[1]] - chart.edges[run[0]], default=None)
        if longest is not None:
            began, ended = chart.edges[longest[0]], chart.edges[longest[1]]
            middle = next(place for place in range(*longest) if chart.edges[place + 1] >= (began + ended) / 2)
            if chart.axis.percent(ended) - chart.axis.percent(began) >= 7:
                yield element("text", {
                    "class": "name", "x": chart.axis.place((began + ended) / 2), "text-anchor": "middle",
                    "y": chart.y(lower[middle] + each.rates[middle] / 2) + 4}, name_of(each.series))
        lower = [below + rate for below, rate in zip(lower, each.rates)]


def _pointed(chart: RateChart) -> Iterator[Markup]:
    """What a pointer is told over each bucket."""
    every = [*chart.bands, *([chart.dirty] if chart.dirty is not None else [])]
    for place, (began, ended) in enumerate(zip(chart.edges, chart.edges[1:])):
        told = [listed((name_of(each.series), f"{size(each.rates[place])}/s"), COLON)
                for each in every if each.rates[place] > 0]
        if told:
            words = listed((stretch(began, ended), listed(told)), COLON)
            yield element("rect", {
                "class": "pointed", "x": chart.axis.place(began), "y": 0, "height": _PLOT,
                "width": f"{chart.axis.percent(ended) - chart.axis.percent(began):.3f}%"}, element("title", {}, words))


def swatch(name: str) -> Markup:
    """A sample of how a series is drawn, for the legend."""
    line: Attributes = {"x1": 0, "x2": 22, "y1": 6, "y2": 6}
    content = [element("line", {**line, "class": "link"})] if name == "link" else [
        element("path", {"class": f"edge {name}", "d": "M0 6L22 6"})] if name == "dirty" else [
        element("rect", {"class": f"area {name}", "width": 22, "height": 12}),
        element("path", {"class": f"edge {name}", "d": "M0 1L22 1"})]
    return element("svg", {"width": 22, "height": 12, "aria-hidden": "true"}, *content)
