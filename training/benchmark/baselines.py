"""What a competent engineer would pick instead: each takes prompts with outcomes and predicts success of new ones.

All take ``(train, test)`` and return probabilities [n test, m]. Where the segment is
known each sees it too, as one more feature, so that none loses for want of it.
Settings that matter are chosen on a quarter of the training prompts by log loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lightgbm as lgb
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPRegressor

from router_ml.types import Float32Array, Float64Array
from training.evaluate import segment_means

_LEAST, _MOST = 1e-3, 1 - 1e-3


@dataclass(frozen=True, slots=True)
class Sample:
    """n prompts; `success` [n, m] is NaN where unknown, and all that a baseline may learn from."""

    texts: Sequence[str]
    vectors: Float32Array
    segment: NDArray[np.int64]
    """[n], 0 unknown."""
    n_segments: int
    success: Float64Array

    def take(self, rows: NDArray[np.int64]) -> Sample:
        """Only these rows."""
        return Sample(
            [self.texts[i] for i in rows], self.vectors[rows], self.segment[rows], self.n_segments, self.success[rows]
        )

    def one_hot(self) -> Float32Array:
        """[n, segments]"""
        return np.eye(self.n_segments + 1, dtype=np.float32)[self.segment][:, 1:]

    def dense(self) -> Float32Array:
        """Vectors beside the segment, [n, d + segments]."""
        return np.concatenate([self.vectors, self.one_hot()], axis=1)


Learner = Callable[[Sample, Sample], Float64Array]


def by_segment(train: Sample, test: Sample) -> Float64Array:
    """Mean success per segment and model, shrunk by ten prompts' worth of the model's mean."""
    count = (~np.isnan(train.success)).astype(np.float64)
    return segment_means(train.success, count, train.segment, train.n_segments)[test.segment]


def by_model(train: Sample, test: Sample) -> Float64Array:
    """Mean success per model: what is left where nothing is known of a prompt."""
    count = (~np.isnan(train.success)).astype(np.float64)
    return segment_means(train.success, count, np.zeros_like(train.segment), 0)[np.zeros_like(test.segment)]


def nearest_neighbours(train: Sample, test: Sample) -> Float64Array:
    """Mean outcome of the k nearest prompts by cosine on MiniLM; k among 10, 20, 40, 80."""

    def with_k(k: int) -> Learner:
        return lambda train, test: _neighbours(train, test, k)

    return _best(train, [with_k(k) for k in (10, 20, 40, 80)])(train, test)


def perceptron(train: Sample, test: Sample) -> Float64Array:
    """One hidden layer of 100 on MiniLM, all models at once, stopped early, as in RouterBench."""
    mean = np.nanmean(train.success, axis=0)
    target = np.where(np.isnan(train.success), mean, train.success)
    stopping = {"early_stopping": True, "n_iter_no_change": 15, "max_iter": 300}
    net = MLPRegressor(hidden_layer_sizes=(100,), alpha=1e-3, random_state=0, **stopping)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        net.fit(train.dense(), target)
    return np.asarray(np.clip(net.predict(test.dense()).reshape(len(test.vectors), -1), _LEAST, _MOST))


def tf_idf(train: Sample, test: Sample) -> Float64Array:
    """Logistic regression per model on TF-IDF of words and word pairs; C among 0.3, 1, 3."""

    def with_c(c: float) -> Learner:
        return lambda train, test: TfIdf(train, c).predict(test)

    return _best(train, [with_c(c) for c in (0.3, 1.0, 3.0)])(train, test)


class TfIdf:
    """TF-IDF with logistic regression per model, fitted once."""

    def __init__(self, train: Sample, c: float) -> None:
        self._words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        x = sp.hstack([self._words.fit_transform(train.texts), sp.csr_matrix(train.one_hot())]).tocsr()
        self._models = [self._fitted(x, y, c) for y in train.success.T]

    def predict(self, test: Sample) -> Float64Array:
        """[n, m]"""
        x = sp.hstack([self._words.transform(test.texts), sp.csr_matrix(test.one_hot())]).tocsr()
        columns = [np.full(x.shape[0], m) if isinstance(m, float) else m.predict_proba(x)[:, 1] for m in self._models]
        return np.stack(columns, axis=1)

    def _fitted(self, x: sp.csr_matrix, y: Float64Array, c: float) -> LogisticRegression | float:
        rows, label, weight = _doubled(y)
        if len(np.unique(label)) < 2:
            return float(np.clip(label.mean() if len(label) else 0.5, _LEAST, _MOST))
        model = LogisticRegression(C=c, solver="liblinear", max_iter=300)
        return model.fit(x[rows], label, sample_weight=weight)


def boosted_trees(train: Sample, test: Sample) -> Float64Array:
    """One LightGBM classifier per model on MiniLM."""
    x, new = train.dense(), test.dense()
    columns = []
    for y in train.success.T:
        known = ~np.isnan(y)
        if known.sum() < 40:
            columns.append(np.full(len(new), np.clip(np.nanmean(y), _LEAST, _MOST)))
            continue
        parameters = {
            "objective": "cross_entropy", "num_leaves": 15, "learning_rate": 0.05, "min_data_in_leaf": 20,
            "feature_fraction": 0.3, "bagging_fraction": 0.8, "bagging_freq": 1, "num_threads": 1, "seed": 0,
            "verbose": -1,
        }  # fmt: skip
        booster = lgb.train(parameters, lgb.Dataset(x[known], label=y[known]), num_boost_round=80)
        columns.append(np.asarray(booster.predict(new, num_threads=1)))
    return np.stack(columns, axis=1)


def matrix_factors(train: Sample, test: Sample) -> Float64Array:
    """Matrix factorisation in RouteLLM's manner: logit = model vector times projected MiniLM vector, plus bias.

    RouteLLM (Ong et al. 2024) learns it from preferences between two models; here each
    outcome is a label. Rank 16; the ridge is chosen among 1, 4, 16.
    """

    def with_ridge(ridge: float) -> Learner:
        return lambda train, test: _factors(train, test, ridge)

    return _best(train, [with_ridge(ridge) for ridge in (1.0, 4.0, 16.0)])(train, test)


BASELINES: dict[str, Learner] = {
    "segment means": by_segment,
    "kNN on MiniLM": nearest_neighbours,
    "MLP on MiniLM": perceptron,
    "TF-IDF + LR": tf_idf,
    "LightGBM on MiniLM": boosted_trees,
    "matrix factors": matrix_factors,
}
MEAN_OF_LEARNED = "mean of the learned"
LEARNED = tuple(name for name in BASELINES if name != "segment means")


def mean_of_learned(found: dict[str, Float64Array]) -> Float64Array:
    """Mean of the learned baselines' logits, as a probability."""
    return np.asarray(expit(np.mean([logit(np.clip(found[name], _LEAST, _MOST)) for name in LEARNED], axis=0)))


def log_loss(p: Float64Array, success: Float64Array) -> float:
    """Mean over the known outcomes."""
    p, known = np.clip(p, _LEAST, _MOST), ~np.isnan(success)
    y = success[known]
    return float(-(y * np.log(p[known]) + (1 - y) * np.log1p(-p[known])).mean())


def _best(train: Sample, learners: Sequence[Learner]) -> Learner:
    order = np.random.default_rng(0).permutation(len(train.texts))
    cut = max(1, len(order) // 4)
    held, rest = train.take(order[:cut]), train.take(order[cut:])
    losses = [log_loss(learner(rest, held), held.success) for learner in learners]
    return learners[int(np.argmin(losses))]


def _neighbours(train: Sample, test: Sample, k: int) -> Float64Array:
    known = ~np.isnan(train.success)
    filled = np.where(known, train.success, 0.0)
    mean = filled.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    k = min(k, len(train.vectors))
    own, new = train.dense(), test.dense()
    found = np.empty((len(new), filled.shape[1]))
    for start in range(0, len(new), 2000):
        near = np.argpartition(-(new[start : start + 2000] @ own.T), k - 1, axis=1)[:, :k]
        total, number = filled[near].sum(axis=1), known[near].sum(axis=1)
        found[start : start + 2000] = (total + mean) / (number + 1)  # a model unseen among them keeps its mean
    return found


def _factors(train: Sample, test: Sample, ridge: float, rank: int = 16) -> Float64Array:
    x, known = train.dense().astype(np.float64), ~np.isnan(train.success)
    middle = x.mean(axis=0)
    x = x - middle
    y = np.where(known, train.success, 0.0)
    d, m = x.shape[1], y.shape[1]
    rank = min(rank, m)
    rng = np.random.default_rng(0)
    base = logit(np.clip(y.sum(axis=0) / np.maximum(known.sum(axis=0), 1), _LEAST, _MOST))
    start = np.concatenate([rng.normal(0, 0.1, d * rank + m * rank), base])

    def parts(flat: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
        edge = d * rank
        return flat[:edge].reshape(d, rank), flat[edge : edge + m * rank].reshape(m, rank), flat[edge + m * rank :]

    def loss(flat: Float64Array) -> tuple[float, Float64Array]:
        project, models, bias = parts(flat)
        hidden = x @ project
        score = hidden @ models.T + bias
        value = ((np.logaddexp(0, score) - y * score) * known).sum()
        value += 0.5 * ridge * ((project**2).sum() + (models**2).sum())
        residual = (expit(score) - y) * known
        slope = (x.T @ (residual @ models) + ridge * project, residual.T @ hidden + ridge * models)
        return float(value), np.concatenate([slope[0].ravel(), slope[1].ravel(), residual.sum(axis=0)])

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    project, models, bias = parts(found.x)
    return np.asarray(expit((test.dense() - middle) @ project @ models.T + bias))


def _doubled(y: Float64Array) -> tuple[NDArray[np.int64], NDArray[np.int64], Float64Array]:
    """A fractional success as that much success and the rest failure."""
    rows = np.flatnonzero(~np.isnan(y))
    both = np.concatenate([rows, rows])
    weight = np.concatenate([y[rows], 1 - y[rows]])
    label = np.repeat(np.array([1, 0]), len(rows))
    kept = weight > 0
    return both[kept], label[kept], weight[kept]
