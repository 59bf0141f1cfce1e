"""The success model: linear layer, trees that start from it, calibration.

Everything that a later layer learns from is out of fold: the trees see linear scores of
prompts that the linear layer was not fitted on, the calibration sees scores of prompts
that neither was fitted on. Stacking as in Wolpert (1992). Only the choice among the few
shrinkages of `LINEAR_GRID` has seen them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from router_ml.errors import InputError
from router_ml.types import Float32Array, Float64Array
from training.calibrate import Calibration, fit_calibration
from training.dataset import Dataset, Prompts
from training.linear import LinearModel, LinearSettings, blocks, fit_linear
from training.progress import watched
from training.trees import TreeSettings, fit_trees, raw_scores, row_features

_FOLDS = 5
LINEAR_GRID = tuple(
    LinearSettings(scale=scale, own_scale=own_scale)
    for scale, own_scale in (
        (0.1, 1.0), (0.1, 2.0), (0.2, 1.0), (0.2, 2.0), (0.35, 1.0), (0.7, 0.5), (0.7, 1.0), (1.4, 0.5)
    )
)  # fmt: skip
"""From strong to weak shrinkage: the more outcomes, the less of it is best."""
_MOST_PROMPTS_TO_CHOOSE = 20_000
_ENOUGH_PROMPTS_TO_CHOOSE = 2_000
"""Scored out of fold; where one fold holds fewer, more folds are."""
_FEWEST_PROMPTS_FOR_TREES = 200
"""Below it the out-of-fold scores are too noisy to boost on, and the linear layer stands alone."""


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How the success model is fitted."""

    linear: LinearSettings | None = None
    """None: chosen out of fold among `LINEAR_GRID`."""
    trees: TreeSettings = field(default_factory=TreeSettings)
    seed: int = 0


def without_prompts(settings: FitSettings, *, segments: bool) -> FitSettings:
    """The same, but blind to the prompt: mean success per segment and model, or per model alone."""
    linear = LinearSettings(scale=0.0, own_scale=1.0, segment_scale=1.5 if segments else 0.0)
    return replace(settings, linear=linear, trees=replace(settings.trees, n_trees=0))


@dataclass(frozen=True, slots=True)
class SuccessModel:
    """Success probabilities [n, m] of prompts on models."""

    linear: LinearModel
    model_log_odds: Float32Array
    """[m], of the mean outcome of each model, shrunk to that of all."""
    booster: lgb.Booster | None
    calibration: Calibration
    n_threads: int

    def features(self, prompts: Prompts, index: NDArray[np.int64]) -> Float32Array:
        """Rows for the trees, [len(index) * m, features]."""
        return self.features_of(self.linear.logits(prompts, index), prompts, index)

    def features_of(self, logits: Float64Array, prompts: Prompts, index: NDArray[np.int64]) -> Float32Array:
        """The same for given linear logits."""
        p = prompts
        return row_features(logits, p.embedding[index], p.side[index], p.segment[index], self.model_log_odds)

    def probabilities(self, logits: Float64Array, features: Float32Array) -> Float64Array:
        """[n, m] from linear logits [n, m] and the rows [n * m, features] of the trees."""
        return self.calibration.apply(logits + _tree_scores(self.booster, features, logits.shape, self.n_threads))


@dataclass(frozen=True, slots=True)
class TreeRows:
    """Rows of the trees for n prompts and m models, made when asked for: all at once would be the largest array."""

    prompts: Prompts
    index: NDArray[np.int64]
    """[n]"""
    logits: Float64Array
    """[n, m], out of fold."""
    model_log_odds: Float32Array

    def of(self, at: NDArray[np.int64] | slice) -> Float32Array:
        """Every model's row of the prompts at these places in `index`, [len(at) * m, features]."""
        p, i = self.prompts, self.index[at]
        return row_features(self.logits[at], p.embedding[i], p.side[i], p.segment[i], self.model_log_odds)

    def where(self, cells: NDArray[np.bool_]) -> Float32Array:
        """The rows of the marked cells [n, m], in order."""
        parts = [self.of(part)[cells[part].ravel()] for part in blocks(len(cells))]
        return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class SuccessFit:
    """A fitted model and the rows that later stages learn from."""

    model: SuccessModel
    index: NDArray[np.int64]
    """Prompts that it was fitted on."""
    rows: TreeRows
    """Of the same prompts."""
    p_success: Float64Array
    """[len(index), m], out of fold but for the calibration's two numbers a model."""
    count: Float64Array
    """[len(index), m], outcomes of each prompt on each model."""
    linear: LinearSettings
    """The shrinkage that was chosen."""


def fit_success(data: Dataset, *, vocabulary: int, settings: FitSettings) -> SuccessFit:
    """Fit on all rows of `data` with known success; `vocabulary` is the number of token ids."""
    success, count = data.cells(data.rows.success)
    index = np.flatnonzero(count.sum(axis=1) > 0)
    success, count = success[index], count[index]
    prompts, n_segments = data.prompts, len(data.segments)

    def linear_on(part: NDArray[np.bool_], settings: LinearSettings) -> LinearModel:
        return fit_linear(
            prompts,
            index[part],
            success[part],
            count[part],
            vocabulary=vocabulary,
            n_segments=n_segments,
            settings=settings,
        )

    fold = _folds(prompts.prompt_id[index], settings.seed)
    logits = np.zeros(success.shape)
    chosen = settings.linear or _choose_linear(linear_on, prompts, index, success, count, fold)
    for k in watched(np.unique(fold).tolist(), "fitting by folds"):
        logits[fold == k] = linear_on(fold != k, chosen).logits(prompts, index[fold == k])
    linear = linear_on(np.ones(len(index), dtype=bool), chosen)

    log_odds = _log_odds(success, count)
    rows = TreeRows(prompts, index, logits, log_odds)
    booster, scores = _boost(rows, success, count, fold, settings.trees)
    calibration = fit_calibration(logits + scores, success, count)
    model = SuccessModel(linear, log_odds, booster, calibration, settings.trees.n_threads)
    return SuccessFit(model, index, rows, calibration.apply(logits + scores), count, chosen)


def _choose_linear(
    linear_on: Callable[[NDArray[np.bool_], LinearSettings], LinearModel],
    prompts: Prompts,
    index: NDArray[np.int64],
    success: Float64Array,
    count: Float64Array,
    fold: NDArray[np.int64],
) -> LinearSettings:
    """The strongest shrinkage whose out-of-fold log loss is within a standard error of the best.

    The one-standard-error rule of Breiman et al. (1984), with paired differences by prompt.
    """
    used = np.arange(len(index)) < _MOST_PROMPTS_TO_CHOOSE
    sizes = np.cumsum(np.bincount(fold[used]))
    n_folds = min(int(np.searchsorted(sizes, _ENOUGH_PROMPTS_TO_CHOOSE)) + 1, len(sizes))
    losses = []
    for settings in watched(LINEAR_GRID, "choosing the shrinkage"):
        parts = []
        for k in range(n_folds):
            held, rest = (fold == k) & used, (fold != k) & used
            logits = linear_on(rest, settings).logits(prompts, index[held])
            per_cell = np.logaddexp(0, logits) - np.nan_to_num(success[held]) * logits
            parts.append((count[held] * per_cell).sum(axis=1))
        losses.append(np.concatenate(parts))
    best = int(np.argmin([loss.sum() for loss in losses]))
    excess = [loss - losses[best] for loss in losses]  # of the best itself it is zero, so one is always found
    near = (more.sum() <= more.std() * np.sqrt(len(more)) for more in excess)
    return next(settings for settings, is_near in zip(LINEAR_GRID, near, strict=True) if is_near)


def _boost(
    rows: TreeRows, success: Float64Array, count: Float64Array, fold: NDArray[np.int64], settings: TreeSettings
) -> tuple[lgb.Booster | None, Float64Array]:
    """The ensemble on all rows, and out-of-fold scores [n, m] of its like."""
    scores = np.zeros(count.shape)
    if len(count) < _FEWEST_PROMPTS_FOR_TREES or not settings.n_trees:
        return None, scores
    known = count > 0
    features, target, weight, offset = rows.where(known), success[known], count[known], rows.logits[known]
    row_fold = np.broadcast_to(fold[:, None], count.shape)[known]

    def boosted(part: NDArray[np.bool_]) -> lgb.Booster:
        return fit_trees(
            features[part],
            target[part],
            weight[part],
            objective="cross_entropy",
            offset=offset[part],
            settings=settings,
        )

    for k in np.unique(fold):
        booster, held = boosted(row_fold != k), np.flatnonzero(fold == k)
        for part in blocks(len(held)):
            scores[held[part]] = _tree_scores(booster, rows.of(held[part]), (-1, count.shape[1]), settings.n_threads)
    return boosted(np.ones(len(target), dtype=bool)), scores


def _tree_scores(
    booster: lgb.Booster | None, features: Float32Array, shape: tuple[int, ...], n_threads: int
) -> Float64Array:
    if booster is None:
        return np.zeros((len(features) // shape[1], shape[1]))
    return raw_scores(booster, features, n_threads).reshape(shape)


def _folds(prompt_id: NDArray[np.str_], seed: int) -> NDArray[np.int64]:
    """A fold for each prompt; equal prompts of several segments share it."""
    names, group = np.unique(prompt_id, return_inverse=True)
    if len(names) < 2:
        raise InputError(
            f"the rows to fit on hold {len(names)} distinct prompt with a known `success`, expected at least 2; "
            "add logs"
        )
    n_folds = max(2, min(_FOLDS, len(names)))
    shuffled = np.random.default_rng(seed).permutation(len(names)) % n_folds
    return np.asarray(shuffled[group])


def _log_odds(success: Float64Array, count: Float64Array) -> Float32Array:
    total, number = (np.nan_to_num(success) * count).sum(axis=0), count.sum(axis=0)
    mean = total.sum() / number.sum()
    shrunk = np.clip((total + 5 * mean) / (number + 5), 1e-3, 1 - 1e-3)
    return np.asarray(np.log(shrunk / (1 - shrunk)), dtype=np.float32)
