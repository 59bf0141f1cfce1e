"""Scores to probabilities: Platt scaling per model, shrunk to no change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from router_ml.types import Float64Array

_SHRINKAGE = 25.0
"""Precision of the prior on slope and offset, in units of log loss: a model needs tens of outcomes to move."""


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
    around it. Newton's method on two parameters.
    """
    observed = count > 0
    pooled = _newton(logits[observed], success[observed], count[observed], np.array([1.0, 0.0]))
    per_model = [
        _newton(logits[rows, j], success[rows, j], count[rows, j], pooled) for j, rows in enumerate(observed.T)
    ]
    slope, offset = np.array(per_model).T
    return Calibration(slope, offset)


def _newton(logit: Float64Array, success: Float64Array, count: Float64Array, centre: Float64Array) -> Float64Array:
    found = centre.copy()
    design = np.stack([logit, np.ones_like(logit)], axis=1)
    for _ in range(50):
        p = 1 / (1 + np.exp(-(design @ found)))
        slope = design.T @ (count * (p - success)) + _SHRINKAGE * (found - centre)
        curve = (design * (count * p * (1 - p))[:, None]).T @ design + _SHRINKAGE * np.eye(2)
        step = np.linalg.solve(curve, slope)
        found = found - step
        if np.abs(step).max() < 1e-9:
            break
    # A falling curve would turn the ranking of prompts round; noise alone can ask for it.
    found[0] = max(found[0], 0.05)
    return found
