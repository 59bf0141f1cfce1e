"""Scores to probabilities: Platt scaling per model, shrunk to no change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from router_ml.types import Float64Array

_SHRINKAGE = 25.0
"""Precision of the prior on slope and offset, in units of log loss: a model needs tens of outcomes to move."""
_LEAST_SLOPE = 0.05
"""A falling curve would turn the ranking of prompts round; noise alone can ask for it."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Per model: calibrated logit = slope * logit + offset; [m] each."""

    slope: Float64Array
    offset: Float64Array

    def apply(self, logits: Float64Array) -> Float64Array:
        """Probabilities [n, m] of logits [n, m]."""
        return np.asarray(1 / (1 + np.exp(-(self.slope * logits + self.offset))))


def fit_calibration(logits: Float64Array, success: Float64Array, count: Float64Array) -> Calibration:
    """Fit on logits [n, m] that did not see the outcomes; mean outcome NaN and count 0 where there is none.

    Platt (1999) with a normal prior around slope 1 and offset 0, so that few outcomes
    leave the logits as they are. First one pair for all models, then one per model
    around it.
    """
    observed = count > 0
    pooled = _platt(logits[observed], success[observed], count[observed], np.array([1.0, 0.0]))
    per_model = [_platt(logits[rows, j], success[rows, j], count[rows, j], pooled) for j, rows in enumerate(observed.T)]
    slope, offset = np.array(per_model).T
    return Calibration(slope, offset)


def _platt(logit: Float64Array, success: Float64Array, count: Float64Array, centre: Float64Array) -> Float64Array:
    design = np.stack([logit, np.ones_like(logit)], axis=1)
    size = max(1.0, float(count.sum()))

    def loss(at: Float64Array) -> tuple[float, Float64Array]:
        score, move = design @ at, at - centre
        value = (count * (np.logaddexp(0, score) - success * score)).sum() + 0.5 * _SHRINKAGE * (move**2).sum()
        slope = design.T @ (count * (expit(score) - success)) + _SHRINKAGE * move
        return float(value) / size, slope / size

    bounds = [(_LEAST_SLOPE, None), (None, None)]
    found = minimize(loss, centre, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14, "gtol": 1e-9})
    return np.asarray(found.x)
