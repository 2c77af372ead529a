"""Curves as inline SVG: drawn by ourselves, so that the page needs no script and no request.

What differs by colour differs by dashes and by the shape of its points, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hn.evaluation.report.markup import Markup, element
from hn.evaluation.report.scales import Scale, fit
from hn.evaluation.report.wording import number, percent, percent_tick, tick

WIDTH, HEIGHT = 360, 214  # units of the drawing: pixels on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 40
Look = Literal["main", "second", "base", "faint"]


@dataclass(frozen=True)
class Series:
    """One curve: `points` of (x, y), all finite, and the ends (x, low, high) of intervals.

    `band`: the intervals are a surface; otherwise a bar at each point. `marks`: points are shown.
    """

    name: str
    look: Look
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float, float]] = field(default=())
    band: bool = True
    marks: bool = True


@dataclass(frozen=True)
class Plot:
    """What is drawn and how it reads. `summary` says in words what the eye would see.

    `x_at`: a value of x to point out, with its label. `shares`: values of y are written as per
    cent. `log_x`: the horizontal axis may be logarithmic.
    """

    title: str
    summary: str
    series: Sequence[Series]
    x_label: str
    x_at: tuple[float, str] | None = None
    shares: bool = False
    may_be_log: bool = True
    log_x: bool = False
    note: str | None = None


def figure(plot: Plot) -> Markup:
    """A figure with title, legend and drawing; says so where there is nothing to draw."""
    drawn = [one for one in plot.series if one.points]
    if not drawn:
        nothing = element("p", "There are no finite numbers to draw.", class_="missing")
        return element("figure", _caption(plot), nothing)
    x = fit([px for one in drawn for px, _ in one.points], tight=True, may_be_log=plot.log_x)
    y = fit(_heights(drawn), may_be_log=plot.may_be_log)
    return element(
        "figure",
        _caption(plot, "The vertical axis is logarithmic." if y.logarithmic else None),
        _legend(drawn) if len(drawn) > 1 else None,
        _drawing(plot, drawn, x, y),
    )


def _caption(plot: Plot, about_axes: str | None = None) -> Markup:
    words = " ".join(filter(None, (plot.summary, plot.note, about_axes)))
    return element("figcaption", element("h3", plot.title), element("p", words))


def _heights(drawn: Sequence[Series]) -> list[float]:
    ends = [end for one in drawn for _, low, high in one.intervals for end in (low, high)]
    return [y for one in drawn for _, y in one.points] + ends


def _legend(drawn: Sequence[Series]) -> Markup:
    """Each curve's name beside a sample of its line."""
    entries = []
    for one in drawn:
        sample = element(
            "svg",
            element("path", d="M1 7H31", class_="line"),
            _mark(one, 16, 7) if one.marks else None,
            viewBox="0 0 32 14",
            class_=f"sample {one.look}",
            aria_hidden="true",
        )
        entries.append(element("li", sample, one.name))
    return element("ul", entries, class_="legend")


def _drawing(plot: Plot, drawn: Sequence[Series], x: Scale, y: Scale) -> Markup:
    def place(px: float, py: float) -> tuple[float, float]:
        across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return round(LEFT + x(px) * across, 1), round(TOP + (1 - y(py)) * up, 1)

    return element(
        "svg",
        _y_axis(y, percent_tick if plot.shares else tick),
        _x_axis(x, plot.x_label),
        _pointer(plot.x_at, x),
        [_curve(one, place, plot) for one in drawn],
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{plot.title}. {plot.summary}",
        class_="plot",
    )


def _y_axis(y: Scale, write: Callable[[float], str]) -> list[Markup]:
    parts = []
    for value in y.ticks:
        at = round(TOP + (1 - y(value)) * (HEIGHT - TOP - BOTTOM), 1)
        parts.append(element("path", d=f"M{LEFT} {at}H{WIDTH - RIGHT}", class_="grid"))
        parts.append(element("text", write(value), x=LEFT - 6, y=at + 4, class_="end"))
    return parts


def _x_axis(x: Scale, label: str) -> list[Markup]:
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts = [
        element(
            "text",
            tick(value),
            x=round(LEFT + x(value) * (WIDTH - LEFT - RIGHT), 1),
            y=HEIGHT - BOTTOM + 16,
            class_="middle",
        )
        for value in x.ticks
    ]
    return [*parts, element("text", label, x=middle, y=HEIGHT - 6, class_="middle label")]


def _pointer(x_at: tuple[float, str] | None, x: Scale) -> list[Markup]:
    """A vertical line at what is recommended, with its label on the side that has room."""
    if x_at is None or not x.low <= x_at[0] <= x.high:
        return []
    share = x(x_at[0])
    at = round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)
    left = share > 0.5
    label = element(
        "text",
        x_at[1],
        x=at + (-5 if left else 5),
        y=TOP + 9,
        class_="pointed end" if left else "pointed",
    )
    return [element("path", d=f"M{at} {TOP}V{HEIGHT - BOTTOM}", class_="pointer"), label]


def _curve(one: Series, place: Callable[[float, float], tuple[float, float]], plot: Plot) -> Markup:
    line = "L".join(f"{px} {py}" for px, py in (place(*point) for point in one.points))
    parts: list[Markup] = []
    if one.intervals and one.band:
        upper = [place(px, high) for px, _, high in one.intervals]
        lower = [place(px, low) for px, low, _ in reversed(one.intervals)]
        around = "L".join(f"{px} {py}" for px, py in [*upper, *lower])
        parts.append(element("path", d=f"M{around}Z", class_="band"))
    elif one.intervals:
        parts += [_bar(place(px, low), place(px, high)) for px, low, high in one.intervals]
    parts.append(element("path", d=f"M{line}", class_="line"))
    if one.marks:
        write = percent if plot.shares else number
        parts += [
            _mark(one, *place(px, py), f"{plot.x_label} {tick(px)}: {write(py)}")
            for px, py in one.points
        ]
    return element("g", parts, class_=one.look)


def _bar(low: tuple[float, float], high: tuple[float, float]) -> Markup:
    (x, bottom), (_, top) = low, high
    return element(
        "path",
        d=f"M{x} {bottom}V{top}M{x - 4} {bottom}h8M{x - 4} {top}h8",
        class_="bar",
    )


def _mark(one: Series, x: float, y: float, hint: str | None = None) -> Markup:
    """A point of the curve: a disc, or a square for the second; `hint` is shown under the mouse."""
    title = element("title", f"{one.name}, {hint}") if hint else None
    if one.look == "second":
        return element("rect", title, x=x - 3, y=y - 3, width=6, height=6, class_="mark")
    return element("circle", title, cx=x, cy=y, r=3, class_="mark")
