"""Whether the evidence carries a router, judged on rows that it was not fitted on; and if not, what serves instead.

Three layers compete, the simpler ones first: single models (nothing is known of a prompt),
mean success per segment, the router. All three are rated out of fold on the rows to fit on,
so the rows that set operating points and those that judge stay unseen.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from router_ml.types import Float64Array
from training.intervals import LEVEL, Interval, bootstrap
from training.operating import Outcomes

_REPEATS = 300
_ONE_STANDARD_ERROR = 0.68
_STAKES = np.geomspace(0.01, 10, 48)
"""Lambdas, in units of one over the range of mean prices: from quality whatever it costs to hardly any spending."""


class Layer(StrEnum):
    """What a version decides by."""

    SINGLE_MODELS = "single models"
    SEGMENT_MEANS = "segment means"
    ROUTER = "router"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Deploy the router, or not and why."""

    deploy: bool
    serves: Layer
    """What this version decides by: the router, or what it falls back to."""
    reason: str
    n_prompts: int
    measure: str
    """`decision value` in units of success, or `log loss` in nats where the logs cannot tell what another choice
    would have brought."""
    over_single_models: Interval
    """How much better the router is, out of fold."""
    over_segment_means: Interval

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Rating:
    """What layers are rated on: n prompts, m models."""

    p_success: dict[Layer, Float64Array]
    """[n, m], out of fold."""
    price: Float64Array
    """[n, m], expected cost in US dollars; NaN where not offered."""
    success: Float64Array
    """[n, m], mean of the outcomes seen; NaN unknown."""
    outcomes: Outcomes | None
    """Complete or weighted by propensities; None where the logs hold neither."""


def judge(rating: Rating) -> Verdict:
    """Deploy the router where it is ahead of single models beyond noise, and not behind segment means.

    Ahead in the value of decisions by a 95 % paired bootstrap: success minus lambda times cost, mean over
    lambdas. It is a plain mean over prompts; a curve's hull would pick the best of many noisy settings,
    and call a router ahead that only adds noise. Ahead in log loss where outcomes are neither complete
    nor weighted. Otherwise segment means serve, if they are ahead
    of single models by a standard error, or else single models.
    """
    gain, measure = (_log_loss_gain, "log loss") if rating.outcomes is None else (_value_gain, "decision value")
    over_single = gain(rating, Layer.ROUTER, Layer.SINGLE_MODELS)
    over_segments = gain(rating, Layer.ROUTER, Layer.SEGMENT_MEANS)
    n = len(rating.price)
    where = f"out of fold on {n:,} prompts its {measure} is"
    if over_single.low > 0 and over_segments.estimate >= 0:
        reason = f"{where} better than that of single models by {over_single}, of segment means by {over_segments}"
        return Verdict(True, Layer.ROUTER, reason, n, measure, over_single, over_segments)
    segments_ahead = gain(rating, Layer.SEGMENT_MEANS, Layer.SINGLE_MODELS, _ONE_STANDARD_ERROR).low > 0
    serves = Layer.SEGMENT_MEANS if segments_ahead else Layer.SINGLE_MODELS
    if over_single.low > 0:
        reason = f"{where} worse than that of segment means: {over_segments}"
    else:
        reason = f"{where} not better than that of single models beyond noise: {over_single}"
    return Verdict(False, serves, f"{reason}; add logs", n, measure, over_single, over_segments)


def _value_gain(rating: Rating, layer: Layer, other: Layer, level: float = LEVEL) -> Interval:
    assert rating.outcomes is not None
    better = _value(rating, rating.outcomes, layer) - _value(rating, rating.outcomes, other)
    return _mean_of(better, level)


def _value(rating: Rating, outcomes: Outcomes, layer: Layer) -> Float64Array:
    """Success minus lambda times cost of what the layer chooses, [n], mean over lambda."""
    offered = ~np.isnan(rating.price).any(axis=0)
    p, price = rating.p_success[layer][:, offered], rating.price[:, offered]
    success, cost = outcomes.success[:, offered], outcomes.cost_usd[:, offered]
    means, rows = price.mean(axis=0), np.arange(len(p))
    spread = float(means.max() - means.min()) or 1.0
    value = np.zeros(len(p))
    for willingness in _STAKES / spread:
        chosen = (p - willingness * price).argmax(axis=1)
        value += success[rows, chosen] - willingness * cost[rows, chosen]
    return value / len(_STAKES)


def _log_loss_gain(rating: Rating, layer: Layer, other: Layer, level: float = LEVEL) -> Interval:
    """Of `other` minus that of `layer`, mean over prompts with an outcome."""
    known = ~np.isnan(rating.success)
    y = np.nan_to_num(rating.success)

    def loss(p: Float64Array) -> Float64Array:
        p = np.clip(p, 1e-7, 1 - 1e-7)
        cells = -(y * np.log(p) + (1 - y) * np.log1p(-p)) * known
        return np.asarray(cells.sum(axis=1) / np.maximum(known.sum(axis=1), 1))

    better = loss(rating.p_success[other]) - loss(rating.p_success[layer])
    return _mean_of(better, level)


def _mean_of(gain: Float64Array, level: float) -> Interval:
    return bootstrap(lambda weights: weights @ gain / len(gain), len(gain), repeats=_REPEATS, level=level)[0]
