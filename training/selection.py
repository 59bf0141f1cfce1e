"""Undoing in a fit what the logging policy did to its rows; whether to, and how far, is chosen by data.

A log holds of each model the prompts that were sent to it. Where what decided that also bears on success beyond what
the features tell, the model's outcomes are no sample of what it would do elsewhere. Each row then weighs
``w = min(share of its model / propensity, clip)``, stabilised weights (Robins, Hernan & Brumback 2000): where a
model's chance is the same for every prompt they are all one, and nothing is changed. Scaled per model so that the rows
count for as many as Kish's effective sample size, since ridge penalty and calibration weigh evidence against priors.

Weights cost variance, and where the features tell all that decided they bring nothing: so a few corrections compete
with none by importance-weighted cross-validation (Sugiyama, Krauledat & Mueller 2007), and none wins unless one is
ahead by two standard errors. Array letters: r rows, m models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Float64Array
from training.dataset import Dataset
from training.fit import FitSettings, SuccessFit, fit_success

_CLIPS = (3.0, 10.0)
_JUDGING_CLIP = 30.0
"""Of the weights that corrections are compared by."""
_STANDARD_ERRORS = 2.0
_EVEN = 1.2
"""Weights that all lie within this factor change nothing worth the time."""
_MOST_PROMPTS = 20_000
"""To choose on."""


@dataclass(frozen=True, slots=True)
class Correction:
    """How the rows of a log are to weigh in a fit."""

    weight: Float64Array | None
    """[r], above 0; None: one each."""
    reason: str
    """For the report; empty where no row has a propensity."""


def stabilised(propensity: Float64Array, model: NDArray[np.int64], m: int, clip: float) -> Float64Array:
    """Weights [r] of rows by their propensities [r] (NaN: 1), each model's adding up to its effective sample size."""
    rows = np.bincount(model, minlength=m)
    weight = np.where(np.isnan(propensity), 1.0, np.minimum(rows[model] / len(model) / propensity, clip))
    total, square = np.bincount(model, weight, m), np.bincount(model, weight**2, m)
    return np.asarray(weight * (total / np.maximum(square, 1e-300))[model])


def choose_correction(data: Dataset, *, vocabulary: int, settings: FitSettings) -> Correction:
    """Choose among no weights and weights of several clips for the rows of `data` by their propensities."""
    m, propensity = len(data.models), data.rows.propensity
    known = ~np.isnan(data.rows.success)
    if not (known & ~np.isnan(propensity)).any():
        return Correction(None, "")
    weights = {clip: np.ones(len(data.rows)) for clip in _CLIPS}
    for clip, weight in weights.items():
        weight[known] = stabilised(propensity[known], data.rows.model[known], m, clip)
    widest = weights[max(_CLIPS)][known]
    if widest.max() < _EVEN * widest.min():
        return Correction(None, "selection by the logging policy: none to correct, each model's chance was even")
    shown = _sample(data, settings.seed) & known
    part = data.where(shown)
    judging = stabilised(propensity[shown], part.rows.model, m, _JUDGING_CLIP)
    plain = fit_success(part, vocabulary=vocabulary, settings=settings)
    same = replace(settings, linear=plain.shrinkage)
    before = _losses(plain, part)
    best, gain = None, 0.0
    for clip, weight in weights.items():
        fit = fit_success(part, vocabulary=vocabulary, settings=same, weight=weight[shown])
        better = judging * (before - _losses(fit, part))
        ahead = float(better.sum() / max(better.std() * np.sqrt(len(better)), 1e-12))
        if ahead > _STANDARD_ERRORS and better.sum() > gain:
            best, gain = clip, float(better.sum())
    if best is None:
        return Correction(None, "selection by the logging policy: weights were tried and no better out of fold")
    reason = (
        f"selection by the logging policy: corrected by weights of up to {best:g}, better out of fold by "
        f"{gain / judging.sum():.2g} nats an outcome"
    )
    return Correction(weights[best], reason)


def _sample(data: Dataset, seed: int) -> NDArray[np.bool_]:
    """[r], rows of at most `_MOST_PROMPTS` prompts."""
    index = data.prompts_with_rows()
    kept = np.zeros(len(data.prompts), dtype=bool)
    kept[np.random.default_rng(seed).permutation(index)[:_MOST_PROMPTS]] = True
    return np.asarray(kept[data.rows.prompt])


def _losses(fit: SuccessFit, data: Dataset) -> Float64Array:
    """Log loss of each row [r], out of fold."""
    place = np.full(len(data.prompts), -1)
    place[fit.index] = np.arange(len(fit.index))
    p = np.clip(fit.p_success[place[data.rows.prompt], data.rows.model], 1e-6, 1 - 1e-6)
    y = data.rows.success
    return np.asarray(-(y * np.log(p) + (1 - y) * np.log1p(-p)))
