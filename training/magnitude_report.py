"""How well expected output tokens, cost and latency match what came, beside the mean of each model.

The estimates are means, so what judges them must be least at the mean: the Poisson deviance is
(Gneiting 2011, "Making and evaluating point forecasts", on scoring functions consistent for the
mean). Absolute and pinball errors are least at a quantile; they are given for orientation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Float64Array
from training import metrics
from training.intervals import Interval, Weights, bootstrap

_REPEATS = 300
_FEWEST_VALUES = 30
"""Of a model, for a figure of its own."""
_CONSTANT = 1e-9
"""Deviance over the mean value, below which values are their model's mean but for rounding."""


@dataclass(frozen=True, slots=True)
class MagnitudeFigures:
    """One set of estimates against what came."""

    deviance: float
    """Poisson deviance over the mean value, so without a unit; 0 is perfect, and the true means come nearest to it."""
    relative_error: float
    """Sum of absolute errors over the sum of values."""
    pinball_50: float
    """Half the mean absolute error, in the unit of the value."""
    pinball_90: float


@dataclass(frozen=True, slots=True)
class MagnitudeReport:
    """Estimates of one quantity on held-out outcomes."""

    quantity: str
    """`output_tokens`, `cost_usd` or `latency_ms`."""
    n_values: int
    estimates: MagnitudeFigures
    model_means: MagnitudeFigures
    """What the mean of each model's training rows gives."""
    deviance_saved: Interval
    """Share of the deviance of the model means that the estimates do away with."""
    ratio: Interval
    """Sum of the estimates over the sum of the values; 1 is calibrated in the mean."""
    ratio_of_means: float
    """The same of the model means: how far the held-out rows themselves are from the training rows."""
    ratio_by_model: dict[str, Interval]
    """Of models with at least 30 values."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def report_magnitude(
    quantity: str, models: Sequence[str], actual: Float64Array, predicted: Float64Array, model_means: Float64Array
) -> MagnitudeReport | None:
    """Judge `predicted` [n, m] by `actual` [n, m], NaN where unknown, against `model_means` [m] of training rows.

    Cells count where all three are known and the estimates positive. None where there are too few, where all are
    zero, or where each model's mean says all there is to know, as with a price per request.
    """
    means = np.broadcast_to(model_means, actual.shape)
    known = ~np.isnan(actual) & (predicted > 0) & (means > 0)
    prompts = known.any(axis=1)
    known, actual, predicted, means = known[prompts], actual[prompts], predicted[prompts], means[prompts]
    if known.sum() < _FEWEST_VALUES or len(known) < 2 or not actual[known].sum() > 0:
        return None
    shown = np.flatnonzero((known.sum(axis=0) >= _FEWEST_VALUES) & (np.where(known, actual, 0).sum(axis=0) > 0))
    sums = [np.where(known, values, 0.0) for values in (actual, predicted)]
    lost = [np.where(known, _deviance(np.where(known, actual, 1.0), by), 0.0) for by in (predicted, means)]
    if not lost[1].sum() > _CONSTANT * sums[0].sum():
        return None
    of_prompt = np.column_stack([*(each.sum(axis=1) for each in (*sums, *lost)), *(each[:, shown] for each in sums)])

    def figures(weights: Weights) -> NDArray[np.float64]:
        total = weights.astype(np.float64) @ of_prompt
        own, expected = np.split(total[:, 4:], 2, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.column_stack([1 - total[:, 2] / total[:, 3], total[:, 1] / total[:, 0], expected / own])

    saved, ratio, *by_model = bootstrap(figures, len(known), repeats=_REPEATS)
    return MagnitudeReport(
        quantity=quantity,
        n_values=int(known.sum()),
        estimates=_figures(actual[known], predicted[known]),
        model_means=_figures(actual[known], means[known]),
        deviance_saved=saved,
        ratio=ratio,
        ratio_of_means=float(means[known].sum() / actual[known].sum()),
        ratio_by_model={models[j]: interval for j, interval in zip(shown.tolist(), by_model, strict=True)},
    )


def _deviance(actual: Float64Array, predicted: Float64Array) -> Float64Array:
    """Poisson deviance of each value."""
    safe = np.where(predicted > 0, predicted, 1.0)
    logarithm = np.log(np.where(actual > 0, actual, 1.0) / safe)
    return np.asarray(2 * (np.where(actual > 0, actual * logarithm, 0.0) - actual + safe))


def _figures(actual: Float64Array, predicted: Float64Array) -> MagnitudeFigures:
    return MagnitudeFigures(
        deviance=float(_deviance(actual, predicted).mean() / actual.mean()),
        relative_error=metrics.relative_error(actual, predicted),
        pinball_50=metrics.pinball_loss(actual, predicted, 0.5),
        pinball_90=metrics.pinball_loss(actual, predicted, 0.9),
    )
