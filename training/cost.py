"""What an answer takes: expected output tokens, latency, and billed input tokens per model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import lightgbm as lgb
import numpy as np

from router_ml.types import Float32Array, Float64Array
from training.dataset import Dataset
from training.fit import SuccessFit
from training.trees import TreeSettings, fit_trees, raw_scores

_N_TREES, _N_LEAVES, _LEARNING_RATE, _MIN_ROWS_IN_LEAF = 30, 31, 0.25, 100
"""Fewer and deeper than the success model's: here no linear layer has done the work before, and thirty trees of
five levels take no longer to serve than sixty of two."""
_PRIOR_ROWS = 5.0
"""Rows' worth of the mean of all models that a model's own mean is shrunk by."""


@dataclass(frozen=True, slots=True)
class MagnitudeModel:
    """Expected value of a positive quantity: `level[j] * exp(trees)`."""

    booster: lgb.Booster | None
    level: Float64Array
    """[m]; NaN where the logs never told, for any model."""

    def predict(self, features: Float32Array, n_threads: int) -> Float64Array:
        """[n, m] from rows [n * m, features]."""
        n = len(features) // len(self.level)
        if self.booster is None:
            return np.tile(self.level, (n, 1))
        return np.asarray(self.level * np.exp(raw_scores(self.booster, features, n_threads).reshape(n, -1)))


def fit_magnitude(data: Dataset, values: Float64Array, fit: SuccessFit, settings: TreeSettings) -> MagnitudeModel:
    """Fit the mean of a row value [r], say output tokens, on the prompts of `fit`.

    Each value is divided by its model's mean and the ratio boosted with the Poisson
    likelihood, whose mean is right on the whole whatever the distribution (Gourieroux,
    Monfort & Trognon 1984); a model without any value gets the mean of all models.
    Of `settings` only seed and threads count.
    """
    value, count = data.cells(values)
    value, count = value[fit.index], count[fit.index]
    m = len(data.models)
    if not count.any():
        return MagnitudeModel(None, np.full(m, np.nan))
    total, number = (np.nan_to_num(value) * count).sum(axis=0), count.sum(axis=0)
    overall = total.sum() / number.sum()
    level = np.maximum((total + _PRIOR_ROWS * overall) / (number + _PRIOR_ROWS), 1e-9)
    known = count > 0
    if known.sum() < 200 or not total.any():  # LightGBM refuses a Poisson target that is zero throughout
        return MagnitudeModel(None, level)
    features, model, weight = fit.rows.where(known), np.nonzero(known)[1], count[known]
    deep = replace(
        settings,
        n_trees=_N_TREES,
        n_leaves=_N_LEAVES,
        learning_rate=_LEARNING_RATE,
        min_rows_in_leaf=_MIN_ROWS_IN_LEAF,
    )
    booster = fit_trees(features, (value / level)[known], weight, objective="poisson", offset=None, settings=deep)
    predicted = level[model] * np.exp(raw_scores(booster, features, settings.n_threads))
    off = (total + _PRIOR_ROWS * level) / (np.bincount(model, predicted * weight, m) + _PRIOR_ROWS * level)
    return MagnitudeModel(booster, level * off)


def fit_input_ratio(data: Dataset) -> tuple[float, ...]:
    """Billed input tokens per token of the bundle's tokenizer, [m]; 1 where no log told."""
    rows = data.rows
    own = data.prompts.n_tokens[rows.prompt].astype(np.float64)
    known = ~np.isnan(rows.input_tokens) & ~np.isnan(own) & (own > 0)
    if not known.any():
        return (1.0,) * len(data.models)
    model = rows.model[known]
    billed = np.bincount(model, rows.input_tokens[known], len(data.models))
    counted = np.bincount(model, own[known], len(data.models))
    overall, prior = billed.sum() / counted.sum(), 20 * own[known].mean()
    return tuple(((billed + prior * overall) / (counted + prior)).tolist())
