"""The two pictures of an evaluation, as matplotlib figures without global state.

Colours are those of Okabe & Ito, told apart by colour-blind readers, and every line
has its own dash or marker as well.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from training.metrics import (
    Curve,
    Floats,
    SweepPoints,
    calibration_error,
    reliability,
    router_curve,
    single_model_hull,
)

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY = "#767676"
_SUBTITLE_CHARS = 100
"""In a line, at its size, on the narrowest figure."""
_BASELINE_STYLES = ((ORANGE, "--"), (GREEN, "-."), (PURPLE, (0, (1, 1))), (SKY, (0, (5, 1, 1, 1, 1, 1))))

# Where a label may stand, in points from its marker, the nearest and lowest first.
_PLACES = sorted(
    ((dx, dy) for dx in (8, 24, 44, -8, -24, -44) for dy in (-10, -24, -40, -56, 8, 22, 36)),
    key=lambda place: abs(place[0]) + abs(place[1]) + 6 * (place[0] < 0) + 6 * (place[1] > 0),
)


@dataclass(frozen=True, slots=True)
class _Place:
    offset: tuple[int, int]
    """Points from the marker."""
    box: Bbox
    """Pixels."""


def cost_quality_figure(
    points: SweepPoints,
    models: Sequence[str],
    baselines: Mapping[str, Curve],
    title: str,
    subtitle: str = "",
) -> Figure:
    """Quality against mean cost of the router, the single models and the baselines.

    `models` names the columns of `points`; `baselines` maps a name to its curve, at most
    four. Names stand at the single models that no other beats at its price, and at the
    best one. Costs are drawn per 1,000 prompts, on a log scale unless one is zero.
    """
    if len(baselines) > len(_BASELINE_STYLES):
        raise ValueError(f"at most {len(_BASELINE_STYLES)} `baselines` can be told apart, found {len(baselines)}")
    figure, axes = new_figure((8.4, 5.2))
    _draw_curve(axes, router_curve(points), points, label="router", color=BLUE, linewidth=2.4, zorder=4)
    for (name, line), (colour, dash) in zip(baselines.items(), _BASELINE_STYLES, strict=False):
        _draw_curve(axes, line, points, label=name, color=colour, linestyle=dash, linewidth=1.6)
    mix = {"label": "random mix of single models", "color": GREY, "linestyle": (0, (4, 2)), "linewidth": 1.3}
    _draw_curve(axes, single_model_hull(points), points, **mix)
    axes.plot(points.cost * 1000, points.quality, ".", color=BLUE, markersize=5, zorder=4)
    axes.plot(points.model_cost * 1000, points.model_quality, "o", color=GREY, markersize=5, label="single model")
    best = points.best
    axes.plot(
        points.model_cost[best] * 1000,
        points.model_quality[best],
        "D",
        color=RED,
        markersize=8,
        label="best single model",
        zorder=5,
    )
    axes.axhline(points.model_quality[best], color=RED, linewidth=0.8, linestyle=":", zorder=1)
    _scale_cost(axes, points)
    axes.set_xlabel("mean cost per 1,000 prompts, US dollars")
    axes.set_ylabel("quality, mean success")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    set_title(axes, title, subtitle)
    _label_models(figure, axes, points, models)
    return figure


def calibration_figure(p: Floats, y: Floats, title: str) -> Figure:
    """Mean success against mean prediction in 15 bins of equal mass.

    `p` and `y` have shape [n, m]; NaN in `y` is unknown and left out. The pooled cells
    are drawn strong, each model faint.
    """
    figure, axes = new_figure((5.2, 5.2))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 2)), label="perfect")
    known = ~np.isnan(y)
    columns = [j for j in range(y.shape[1]) if known[:, j].any()]
    for index, j in enumerate(columns):
        table = reliability(p[known[:, j], j], y[known[:, j], j])
        label = f"each of {len(columns)} models" if index == 0 else None
        axes.plot(table.predicted, table.observed, color=SKY, alpha=0.45, linewidth=1, label=label, zorder=2)
    pooled = reliability(p[known], y[known])
    error = calibration_error(p[known], y[known])
    label = f"all models, ECE {error:.3f}"
    axes.plot(pooled.predicted, pooled.observed, "o-", color=BLUE, linewidth=2, markersize=5, label=label, zorder=3)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_xlabel("predicted probability of success")
    axes.set_ylabel("observed success")
    axes.legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    set_title(axes, title, f"{int(known.sum()):,} outcomes, 15 bins of equal mass")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG at 150 dots per inch, or an SVG, by the ending of the name."""
    form = path.suffix.removeprefix(".")
    figure.savefig(path, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)


def new_figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    """An empty picture of so many inches, without global state."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def set_title(axes: Axes, title: str, subtitle: str) -> None:
    """Both to the left, above the axes."""
    lines = textwrap.wrap(subtitle, _SUBTITLE_CHARS)
    axes.set_title(title + "\n" * len(lines), loc="left", fontsize=12, parse_math=False)
    if lines:
        axes.text(
            0, 1.015, "\n".join(lines), transform=axes.transAxes, fontsize=9, color=GREY, va="bottom", parse_math=False
        )


def _draw_curve(axes: Axes, curve: Curve, points: SweepPoints, **style: Any) -> None:
    """The curve with its flat end, out to the dearest thing in the picture."""
    end = max(points.cost.max(), points.model_cost.max(), curve.cost[-1])
    # What is straight between vertices on a linear axis is bent on a log one.
    cost = np.concatenate((curve.cost, np.linspace(curve.cost[0], end, 500)))
    if curve.cost[0] > 0:
        cost = np.concatenate((cost, np.geomspace(curve.cost[0], end, 500)))
    cost = np.unique(np.clip(cost, curve.cost[0], end))
    axes.plot(cost * 1000, curve.quality_at(cost), **style)


def _scale_cost(axes: Axes, points: SweepPoints) -> None:
    if min(points.cost.min(), points.model_cost.min()) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _label_models(figure: Figure, axes: Axes, points: SweepPoints, models: Sequence[str]) -> None:
    """Names at the Pareto points and the best model, each in the best place that is left."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    data = np.column_stack((points.model_cost * 1000, points.model_quality))
    marks = axes.transData.transform(data)
    lines = [line.get_transform().transform(line.get_xydata()) for line in axes.lines]
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in marks]
    for j in [points.best, *(j for j in _pareto(points) if j != points.best)]:
        name = models[j].rsplit("/", 1)[-1]
        label = axes.annotate(name, data[j], (0, 0), textcoords="offset points", fontsize=8, parse_math=False, zorder=6)
        place = _place(marks[j], label.get_window_extent(), axes.bbox, taken, lines, figure.dpi / 72)
        if place is None:
            label.remove()
            continue
        dx, dy = place.offset
        label.set(position=place.offset, ha="left" if dx > 0 else "right", va="bottom" if dy > 0 else "top")
        leader = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
        axes.annotate("", data[j], place.offset, textcoords="offset points", arrowprops=leader)
        taken.append(place.box)


def _pareto(points: SweepPoints) -> list[int]:
    """Models that no cheaper one equals, by rising cost."""
    order = np.lexsort((-points.model_quality, points.model_cost))
    quality = points.model_quality[order]
    rises = np.r_[True, quality[1:] > np.maximum.accumulate(quality)[:-1]]
    return [int(j) for j in order[rises]]


def _place(
    mark: Floats, size: Bbox, frame: Bbox, taken: Sequence[Bbox], lines: Sequence[Floats], scale: float
) -> _Place | None:
    """Where a text of that size crosses fewest lines and covers nothing; None where all is taken.

    Everything in pixels but the offset; `scale` is pixels per point.
    """
    free: list[tuple[int, _Place]] = []
    for dx, dy in _PLACES:
        left = mark[0] + dx * scale - (0 if dx > 0 else size.width)
        low = mark[1] + dy * scale - (0 if dy > 0 else size.height)
        box = Bbox.from_bounds(left, low, size.width, size.height).padded(2)
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        if inside and not box.count_overlaps(taken):
            crossed = sum(bool(((line > box.min) & (line < box.max)).all(axis=1).any()) for line in lines)
            free.append((crossed, _Place((dx, dy), box)))
    return min(free, key=lambda entry: entry[0])[1] if free else None
