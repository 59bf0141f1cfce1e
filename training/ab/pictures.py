"""Pictures of a reading: differences over time with their sequences, cost and quality of the arms, segments.

Drawn in SVG for a page that needs nothing else. Colours as in `training.plots`; arms also differ by dash and marker.
"""

from __future__ import annotations

import io

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.ab.metrics import METRICS, Kind, Metric
from training.ab.reading import Difference, Range, Reading
from training.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, new_figure, set_title

_ARM_STYLES = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, "-.", "^"), (PURPLE, ":", "D"), (SKY, "-", "v"))
_SEGMENT_LIMIT = 20


def reading_figures(reading: Reading) -> dict[str, Figure]:
    """File name without ending -> picture."""
    found = {f"over_time_{name}": over_time(reading, METRICS[name]) for name in reading.deciding}
    found["cost_quality"] = cost_quality(reading)
    if any(challenger.segments for challenger in reading.challengers):
        found["segments"] = segments(reading)
    return found


def svg(figure: Figure) -> str:
    """The picture as an element of a page; the same each time."""
    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "router-ml"}):
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = stream.getvalue()
    return text[text.index("<svg") :]


def over_time(reading: Reading, metric: Metric) -> Figure:
    """The difference to the control after each day, with the sequence that holds the truth at all of them."""
    figure, axes = new_figure((7.6, 3.6))
    scale, unit = {Kind.SHARE: (100, "points"), Kind.USD: (1000, "$ per 1,000"), Kind.MS: (1, "ms")}[metric.kind]
    for challenger, (colour, dash, mark) in zip(reading.challengers, _ARM_STYLES, strict=False):
        one = next(each for each in challenger.differences if each.metric == metric.name)
        days, paths = _points(one)
        if not days:
            continue
        low, middle, high = ([scale * value for value in column] for column in paths)
        axes.fill_between(days, low, high, color=colour, alpha=0.18, linewidth=0)
        if len(days) == 1:  # which no band can be drawn along
            axes.vlines(days, low, high, color=colour, linewidth=1.4)
        axes.plot(days, middle, dash, color=colour, marker=mark, markersize=3.5, label=challenger.arm)
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set_xlim(0.5, reading.days + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("day of the test")
    axes.set_ylabel(f"minus {reading.control}, {unit}")
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    else:
        axes.text(0.5, 0.5, "too little is known", transform=axes.transAxes, ha="center", color=GREY)
    better = "above" if metric.better > 0 else "below"
    set_title(axes, metric.words.capitalize(), f"better is {better} zero; the band holds the truth at every look")
    return figure


def _points(one: Difference) -> tuple[list[int], tuple[list[float], list[float], list[float]]]:
    days, low, middle, high = [], [], [], []
    for day, point in enumerate(one.path, start=1):
        if point.estimate is not None and point.low is not None and point.high is not None:
            days.append(day)
            low.append(point.low)
            middle.append(point.estimate)
            high.append(point.high)
    return days, (low, middle, high)


def cost_quality(reading: Reading) -> Figure:
    """A point per arm; bars are the intervals of the difference to the control."""
    figure, axes = new_figure((5.6, 4.2))
    bars = {challenger.arm: challenger.differences for challenger in reading.challengers}
    styles = iter(_ARM_STYLES)
    for arm in reading.arms:
        colour, _, mark = (RED, "", "*") if arm.arm == reading.control else next(styles, _ARM_STYLES[-1])
        cost, success = arm.metrics["cost_per_request"], arm.metrics["success"]
        if cost is None or success is None:
            continue
        x, y = 1000 * cost, 100 * success
        if arm.arm in bars:
            ranges = {one.metric: one.difference for one in bars[arm.arm]}
            _bar(axes, x, y, ranges["cost_per_request"], 1000, colour, across=True)
            _bar(axes, x, y, ranges["success"], 100, colour, across=False)
        axes.plot([x], [y], mark, color=colour, markersize=13 if mark == "*" else 8, label=arm.arm)
    axes.set_xlabel("cost of 1,000 requests, US dollars")
    axes.set_ylabel("success, percent")
    axes.margins(0.25)
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)
    else:
        axes.text(0.5, 0.5, "cost or success is not known", transform=axes.transAxes, ha="center", color=GREY)
    set_title(axes, "Cost and quality", f"better is up and left; bars: how surely each differs from {reading.control}")
    return figure


def _bar(axes: Axes, x: float, y: float, figure: Range, scale: float, colour: str, *, across: bool) -> None:
    if figure.estimate is None or figure.low is None or figure.high is None:
        return
    ends = [scale * (end - figure.estimate) for end in (figure.low, figure.high)]
    if across:
        axes.plot([x + ends[0], x + ends[1]], [y, y], color=colour, linewidth=1.4)
    else:
        axes.plot([x, x], [y + ends[0], y + ends[1]], color=colour, linewidth=1.4)


def segments(reading: Reading) -> Figure:
    """Differences within segments, a column for success and one for cost."""
    rows = [
        (challenger.arm, one)
        for challenger in reading.challengers
        for one in challenger.segments
        if one.difference.estimate is not None
    ]
    names = list(dict.fromkeys(one.segment for _, one in rows))[:_SEGMENT_LIMIT]
    figure, axes = new_figure((8.4, 1.6 + 0.32 * max(1, len(names)) * len(reading.challengers)))
    axes.remove()
    columns = figure.subplots(1, 2, sharey=True)
    arms = [challenger.arm for challenger in reading.challengers]
    for axes, (name, scale, unit) in zip(columns, (("success", 100, "points"), ("cost_per_request", 1000, "$ per 1,000")), strict=True):  # fmt: skip  # noqa: E501
        for arm, one in rows:
            if one.metric != name or one.segment not in names:
                continue
            place = arms.index(arm)
            y = names.index(one.segment) + (place - (len(arms) - 1) / 2) * 0.25
            d = one.difference
            assert d.estimate is not None and d.low is not None and d.high is not None
            marked = d.low > 0 or d.high < 0
            colour, _, mark = _ARM_STYLES[min(place, len(_ARM_STYLES) - 1)]
            axes.plot([scale * d.low, scale * d.high], [y, y], color=colour if marked else GREY, linewidth=1.6)
            axes.plot([scale * d.estimate], [y], mark, color=colour if marked else GREY, markersize=5)
        axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(f"{METRICS[name].words} minus {reading.control}, {unit}", fontsize=9)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    columns[0].set_ylim(len(names) - 0.4, -0.6)
    set_title(columns[0], "Segments", "coloured: differs beyond noise, corrected for all of these looks")
    return figure
