"""Arrays in, numbers out: cost-quality curves of routers, and the accuracy of estimates.

Array letters: n prompts, m models, s sweep points (settings of one router, e.g. of
its willingness to pay). Curve functions take a complete block, every model on every
prompt, without NaN: ``success[n, m]`` in [0, 1], ``cost[n, m]`` in US dollars,
``choices[s, n]`` the model index that sweep point s chose for prompt n.
`complete_block` cuts such a block out of a table with holes. Wrong shapes and NaN
raise ValueError.

One rule for every router and baseline alike. Its **curve** is the non-decreasing
upper concave hull, as in RouterBench (Hu et al. 2024, arXiv:2403.12031, section 3;
its published code computes the same hull), of its sweep points and of the cheapest
single model, linear between the vertices and flat beyond the last one:

- a point between two vertices is reached by drawing at random between two settings;
- the cheapest single model belongs to every curve, since any router can be told to
  spend as little as possible; so every curve starts at or left of that cost;
- the best single model does not: reaching its quality is what a router must show;
- money that buys no quality need not be spent: past its last vertex a curve is flat.

**AIQ** here is the mean height of that curve between the cheapest and the best single
model's mean cost. RouterBench's code divides the area from zero to the highest cost
of all routers by that cost instead; the two are not comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True)
class CompleteBlock:
    """The part of a table in which every model was seen on every prompt."""

    rows: Ints
    """Ascending indices of its prompts."""
    columns: Ints
    """Ascending indices of its models."""
    rows_left_out: int
    columns_left_out: Ints
    """Models that a report must name as not compared."""


@dataclass(frozen=True, slots=True)
class SweepPoints:
    """Mean cost and quality of a router's settings and of every single model, on the same prompts."""

    cost: Floats
    """[s], US dollars per prompt."""
    quality: Floats
    """[s], mean success."""
    model_cost: Floats
    """[m]."""
    model_quality: Floats
    """[m]."""
    cheapest: int
    """Index of the model of least mean cost; of equals the better."""
    best: int
    """Index of the model of highest mean success; of equals the cheaper."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Vertices of a concave hull; cost and quality both strictly increase."""

    cost: Floats
    quality: Floats

    def quality_at(self, cost: Floats) -> Floats:
        """Height at each cost; NaN left of the first vertex, flat right of the last."""
        return np.interp(cost, self.cost, self.quality, left=math.nan)

    def cost_at(self, quality: float) -> float | None:
        """Least cost at which the curve reaches `quality`; None when it never does."""
        if quality > self.quality[-1] + 1e-9:  # means of the same outcomes differ in their last bits
            return None
        return float(np.interp(quality, self.quality, self.cost))


@dataclass(frozen=True, slots=True)
class Reliability:
    """Mean prediction against mean outcome, by bins of rising prediction."""

    predicted: Floats
    observed: Floats
    count: Ints


def complete_block(observed: NDArray[np.bool_]) -> CompleteBlock:
    """The largest complete part of `observed[n, m]`, where True means known.

    Greedy: models join in the order in which they keep most of the prompts that all
    models so far share; the best prompts x models product on the way wins. One model
    alone is taken only where no two share a prompt.
    """
    if observed.ndim != 2:
        raise ValueError(f"`observed` must have shape [prompts, models], found {observed.shape}")
    shared = np.ones(observed.shape[0], dtype=bool)
    left = list(range(observed.shape[1]))
    taken: list[int] = []
    best_size, best_models, best_rows = (0, 0), 0, np.zeros(0, dtype=np.int64)
    while left:
        kept = (observed[:, left] & shared[:, None]).sum(axis=0)
        model = left.pop(int(np.argmax(kept)))
        taken.append(model)
        shared &= observed[:, model]
        rows = np.flatnonzero(shared)
        size = (min(len(taken), 2) if rows.size else 0, rows.size * len(taken))
        if size > best_size:
            best_size, best_models, best_rows = size, len(taken), rows
    return CompleteBlock(
        rows=best_rows,
        columns=np.sort(np.asarray(taken[:best_models], dtype=np.int64)),
        rows_left_out=observed.shape[0] - best_rows.size,
        columns_left_out=np.sort(np.asarray(taken[best_models:], dtype=np.int64)),
    )


def sweep_points(success: Floats, cost: Floats, choices: Ints) -> SweepPoints:
    """Means of a router's sweep and of the single models over a complete block."""
    return resampled_points(success, cost, choices, np.ones((1, len(success)), dtype=np.int64))[0]


def resampled_points(success: Floats, cost: Floats, choices: Ints, weights: Ints) -> list[SweepPoints]:
    """Operating points under each row of `weights[b, n]`, how often each prompt counts.

    Which model is cheapest and which best is settled once, on equal weights, so that
    resamples of two models close to each other do not change what is being measured.
    """
    _check_block(success, cost, choices)
    rows = np.arange(len(success))
    share = np.asarray(weights, dtype=np.float64)
    share = share / share.sum(axis=1, keepdims=True)
    costs, qualities = share @ cost[rows, choices].T, share @ success[rows, choices].T
    model_costs, model_qualities = share @ cost, share @ success
    cheapest = int(np.lexsort((-success.mean(axis=0), cost.mean(axis=0)))[0])
    best = int(np.lexsort((cost.mean(axis=0), -success.mean(axis=0)))[0])
    return [
        SweepPoints(costs[i], qualities[i], model_costs[i], model_qualities[i], cheapest, best)
        for i in range(len(share))
    ]


def hull(cost: Floats, quality: Floats) -> Curve:
    """Non-decreasing upper concave hull of points (monotone chain)."""
    order = np.lexsort((-quality, cost))
    x, y = cost[order], quality[order]
    rises = np.r_[True, y[1:] > np.maximum.accumulate(y)[:-1]]
    vertices: list[tuple[float, float]] = []
    for x2, y2 in zip(x[rises].tolist(), y[rises].tolist(), strict=True):
        while len(vertices) > 1:
            (x0, y0), (x1, y1) = vertices[-2:]
            if (y1 - y0) * (x2 - x0) > (y2 - y0) * (x1 - x0):
                break
            vertices.pop()
        vertices.append((x2, y2))
    return Curve(*np.asarray(vertices, dtype=np.float64).T)


def router_curve(points: SweepPoints) -> Curve:
    """Curve of a router by the rule in this module's docstring."""
    return hull(
        np.append(points.cost, points.model_cost[points.cheapest]),
        np.append(points.quality, points.model_quality[points.cheapest]),
    )


def single_model_hull(points: SweepPoints) -> Curve:
    """Curve of random mixing between single models, the baseline that needs no prompt."""
    return hull(points.model_cost, points.model_quality)


def aiq(points: SweepPoints) -> float:
    """Mean height of the router's curve between the cheapest and the best single model's cost."""
    return _mean_height(router_curve(points), points)


def single_model_aiq(points: SweepPoints) -> float:
    """AIQ of the single-model hull."""
    return _mean_height(single_model_hull(points), points)


def quality_at(points: SweepPoints, cost_share: float) -> float | None:
    """Quality at that share of the best single model's cost; None where nothing is so cheap."""
    quality = float(router_curve(points).quality_at(cost_share * points.model_cost[[points.best]])[0])
    return None if math.isnan(quality) else quality


def cost_share(points: SweepPoints, quality_share: float) -> float | None:
    """Least cost, as share of the best single model's, that keeps `quality_share` of its quality.

    None when the router never reaches it; in a resample count that as `math.inf`. 1 when
    the best single model is free.
    """
    cost = router_curve(points).cost_at(quality_share * float(points.model_quality[points.best]))
    best_cost = float(points.model_cost[points.best])
    if cost is None:
        return None
    return cost / best_cost if best_cost > 0 else 1.0


def oracle_choices(success: Floats, cost: Floats) -> Ints:
    """[n], the cheapest of the most successful models of each prompt, known only afterwards."""
    highest = success == success.max(axis=1, keepdims=True)
    choices: Ints = np.where(highest, cost, math.inf).argmin(axis=1)
    return choices


def strong_model_calls(success: Floats) -> Floats:
    """`cost[n, 2]` that counts calls to the better of two models: what `apgr` and `cpt` are defined on."""
    if success.ndim != 2 or success.shape[1] != 2:
        raise ValueError(f"`success` must have shape [prompts, 2], found {success.shape}")
    strong = int(success[:, 1].mean() > success[:, 0].mean())
    return np.tile(np.eye(2)[strong], (len(success), 1))


def apgr(points: SweepPoints) -> float:
    """Average performance gap recovered, of two models, with `strong_model_calls` as cost.

    PGR = (quality - weak) / (strong - weak); APGR is its mean over the share of strong
    calls, by trapezoids between the sweep points and both single models; 0.5 is random.
    NaN where the gap is not positive. Ong et al. 2024 (RouteLLM, arXiv:2406.18665), section 3.
    """
    shares, recovered = _recovered(points)
    return float(np.trapezoid(recovered, shares))


def cpt(points: SweepPoints, recovered: float) -> float:
    """Call-performance threshold: least share of strong calls that recovers that part, in (0, 1], of the gap.

    Linear between sweep points, without hull; inputs and source as for `apgr`.
    """
    if not 0 < recovered <= 1:
        raise ValueError(f"`recovered` must lie in (0, 1], found {recovered}")
    shares, values = _recovered(points)
    if np.isnan(values).any():
        return math.nan
    end = int(np.argmax(values >= recovered))
    low, high = values[end - 1], values[end]
    return float(shares[end - 1] + (shares[end] - shares[end - 1]) * (recovered - low) / (high - low))


def reliability(p: Floats, y: Floats, bins: int = CALIBRATION_BINS) -> Reliability:
    """Bins of equal mass by rising `p`; equal predictions share a bin, so there may be fewer."""
    p, y = _pairs(p, y)
    edges = np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1])
    _, bin_of, count = np.unique(np.searchsorted(edges, p, side="right"), return_inverse=True, return_counts=True)
    return Reliability(np.bincount(bin_of, p) / count, np.bincount(bin_of, y) / count, count)


def calibration_error(p: Floats, y: Floats, bins: int = CALIBRATION_BINS) -> float:
    """ECE: mean gap of prediction and outcome over equal-mass bins; biased upwards on few rows.

    Equal-mass bins as in Nguyen & O'Connor 2015 (arXiv:1508.05154).
    """
    table = reliability(p, y, bins)
    return float(np.average(np.abs(table.predicted - table.observed), weights=table.count))


def brier(p: Floats, y: Floats) -> float:
    """Mean squared difference of probability and success."""
    p, y = _pairs(p, y)
    return float(np.mean((p - y) ** 2))


def log_loss(p: Floats, y: Floats) -> float:
    """Mean cross-entropy in nats; `y` may be fractional, `p` is kept 1e-7 from 0 and 1."""
    p, y = _pairs(p, y)
    p = np.clip(p, 1e-7, 1 - 1e-7)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))


def auc(p: Floats, y: Floats) -> float:
    """Probability that a success was rated above a failure, ties half; NaN without both.

    A fractional success counts as that much success and the rest failure.
    """
    p, y = _pairs(p, y)
    _, level = np.unique(p, return_inverse=True)
    positive, negative = np.bincount(level, y), np.bincount(level, 1 - y)
    pairs = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative / 2
    return float(positive @ below / pairs) if pairs > 0 else math.nan


def pinball_loss(actual: Floats, predicted: Floats, quantile: float) -> float:
    """Loss whose minimiser is that quantile (Koenker & Bassett 1978); in the unit of `actual`."""
    predicted, actual = _pairs(predicted, actual)
    error = actual - predicted
    return float(np.mean(np.maximum(quantile * error, (quantile - 1) * error)))


def relative_error(actual: Floats, predicted: Floats) -> float:
    """Sum of absolute errors over the sum of actual values, e.g. of tokens or cost; NaN when that is zero."""
    predicted, actual = _pairs(predicted, actual)
    total = float(np.abs(actual).sum())
    return float(np.abs(actual - predicted).sum()) / total if total > 0 else math.nan


def by_model(metric: Callable[[Floats, Floats], float], p: Floats, y: Floats) -> Floats:
    """`metric` on each column of `p[n, m]`, over the rows where `y[n, m]` is not NaN; NaN where none is."""
    known = ~np.isnan(y)
    return np.asarray(
        [metric(p[known[:, j], j], y[known[:, j], j]) if known[:, j].any() else math.nan for j in range(y.shape[1])]
    )


def _mean_height(curve: Curve, points: SweepPoints) -> float:
    low, high = float(points.model_cost[points.cheapest]), float(points.model_cost[points.best])
    if high <= low:
        return float(curve.quality_at(np.array([low]))[0])
    inside = curve.cost[(curve.cost > low) & (curve.cost < high)]
    costs = np.concatenate(([low], inside, [high]))
    return float(np.trapezoid(curve.quality_at(costs), costs)) / (high - low)


def _recovered(points: SweepPoints) -> tuple[Floats, Floats]:
    if len(points.model_cost) != 2 or not np.allclose(np.sort(points.model_cost), [0.0, 1.0]):
        raise ValueError("`points` must be of two models with the calls of `strong_model_calls` as cost")
    weak, strong = points.model_quality[np.argsort(points.model_cost)]
    if strong <= weak:
        return np.array([0.0, 1.0]), np.array([math.nan, math.nan])
    order = np.lexsort((points.quality, points.cost))
    shares = np.concatenate(([0.0], points.cost[order], [1.0]))
    quality = np.concatenate(([weak], points.quality[order], [strong]))
    return shares, (quality - weak) / (strong - weak)


def _check_block(success: Floats, cost: Floats, choices: Ints) -> None:
    if success.ndim != 2 or success.shape != cost.shape or not success.size:
        raise ValueError(f"`success` and `cost` must share a shape [n, m], found {success.shape} and {cost.shape}")
    if choices.ndim != 2 or choices.shape[1] != len(success):
        raise ValueError(f"`choices` must have shape [sweep points, {len(success)}], found {choices.shape}")
    for name, table in (("success", success), ("cost", cost)):
        unknown = int(np.isnan(table).sum())
        if unknown:
            raise ValueError(f"`{name}` must be complete, found {unknown} NaN cells; cut a `complete_block` first")


def _pairs(p: Floats, y: Floats) -> tuple[Floats, Floats]:
    p, y = np.asarray(p, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if p.shape != y.shape or p.ndim != 1 or not p.size:
        raise ValueError(f"predictions and outcomes must share a shape [n], found {p.shape} and {y.shape}")
    if not (np.isfinite(p).all() and np.isfinite(y).all()):
        raise ValueError("predictions and outcomes must be finite; drop unknown rows first")
    return p, y
