"""The first layer of the success model: one logistic regression for all models together.

For prompt i and model j the logit is ``bias_j + x_i . (shared + own_j)``: what makes a
prompt hard is learned from every model's outcomes, what a model is good at from its own,
and the ridge penalty shrinks `own_j` to nothing where a model has few outcomes (a
hierarchical model in the sense of Evgeniou & Pontil 2004, "Regularized multi-task
learning"). x_i holds four blocks: token n-grams (idf-weighted, unit length over
occurrences), the embedding, side features and the segment. Each is a sum of table rows
or a small product at serving time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.optimize import minimize

from router_ml.types import Float32Array, Float64Array
from training.dataset import Prompts

BIGRAM_BUCKETS = 1 << 15
BIGRAM_FACTOR = 1_000_003
"""Bigram (a, b) falls into bucket (a * factor + b) mod buckets."""


@dataclass(frozen=True, slots=True)
class LinearSettings:
    """How strongly the weights are shrunk, as prior standard deviations; `training.fit` chooses the first two."""

    scale: float = 0.35
    """Of the weights of n-grams, embedding and side features, with each block at unit length."""
    own_scale: float = 0.5
    """Of a model's own weights, as a share of the shared ones."""
    segment_scale: float = 1.5
    bias_scale: float = 1.0
    """Of a model's log-odds around the mean of all."""
    max_iterations: int = 6
    """Newton steps at most: more no longer change the fit, and cost the most time of training."""


@dataclass(frozen=True, slots=True)
class LinearModel:
    """Weights in the form the graph uses; V token ids, B bigram buckets."""

    grams: Float32Array
    """[V + B, m + 1]: idf times weight for each model; last column idf squared. Zero rows for what was never seen."""
    embedding: Float32Array
    """[d, m]"""
    side: Float32Array
    """[f, m], standardisation folded in; the last side feature, the flag for text, carries the offset."""
    segment: Float32Array
    """[s + 1, m]; row 0, the unknown segment, is zero."""
    bias: Float32Array
    """[m]"""

    def logits(self, prompts: Prompts, index: NDArray[np.int64]) -> Float64Array:
        """Log-odds of success [len(index), m]."""
        counts = gram_counts(prompts, index, len(self.grams) - BIGRAM_BUCKETS)
        sums = counts @ self.grams.astype(np.float64)
        lexical = sums[:, :-1] / np.sqrt(np.maximum(sums[:, -1:], 1e-12))
        dense = prompts.embedding[index] @ self.embedding.astype(np.float64)
        dense += prompts.side[index] @ self.side.astype(np.float64)
        return np.asarray(self.bias + lexical + dense + self.segment[prompts.segment[index]])


def gram_counts(prompts: Prompts, index: NDArray[np.int64], vocabulary: int) -> sp.csr_matrix:
    """Occurrences of token ids and hashed bigrams, [len(index), vocabulary + BIGRAM_BUCKETS]."""
    rows = [prompts.ids_of(i).astype(np.int64) for i in index]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    flat = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    owner = np.repeat(np.arange(len(rows)), lengths)
    together = owner[1:] == owner[:-1]
    pairs = (flat[:-1] * BIGRAM_FACTOR + flat[1:]) % BIGRAM_BUCKETS + vocabulary
    columns = np.concatenate([flat, pairs[together]])
    owners = np.concatenate([owner, owner[1:][together]])
    shape = (len(rows), vocabulary + BIGRAM_BUCKETS)
    return sp.csr_matrix((np.ones(len(columns)), (owners, columns)), shape=shape)


def fit_linear(
    prompts: Prompts,
    index: NDArray[np.int64],
    success: Float64Array,
    count: Float64Array,
    *,
    vocabulary: int,
    n_segments: int,
    settings: LinearSettings,
) -> LinearModel:
    """Fit on the prompts `index`; `success` and `count` are [len(index), m], mean outcome and number of outcomes."""
    grams = gram_counts(prompts, index, vocabulary)
    idf = _idf(grams)
    seen = np.flatnonzero(idf)
    norm = np.sqrt(np.maximum(grams @ idf**2, 1e-12))
    ngrams = sp.diags(settings.scale / norm) @ grams[:, seen] @ sp.diags(idf[seen])
    side, side_weight, side_offset = _standardised(prompts.side[index], settings.scale)
    middle = prompts.embedding[index].mean(axis=0)
    spread = np.sqrt(((prompts.embedding[index] - middle) ** 2).sum(axis=1).mean())
    # Equal embeddings differ from their mean by rounding, which must not be blown up.
    embedding_weight = settings.scale / (spread if spread > 1e-5 else 1.0)
    embedding = (prompts.embedding[index] - middle) * embedding_weight
    segment = prompts.segment[index]
    # Column 0, the unknown segment, stays empty: it says nothing.
    known = np.flatnonzero(segment)
    ones = np.full(len(known), settings.segment_scale, dtype=np.float32)
    members = sp.csr_matrix((ones, (known, segment[known])), shape=(len(index), n_segments + 1))
    blocks = [ngrams.tocsr().astype(np.float32), np.hstack([embedding, side]).astype(np.float32), members]
    bias, weights = _solve(blocks, success, count, settings)

    table = np.zeros((vocabulary + BIGRAM_BUCKETS, success.shape[1] + 1), dtype=np.float32)
    table[seen, :-1] = idf[seen, None] * settings.scale * weights[0]
    table[seen, -1] = idf[seen] ** 2
    d = embedding.shape[1]
    by_embedding = weights[1][:d] * embedding_weight
    by_side = weights[1][d:] * side_weight[:, None]
    by_side[-1] -= side_offset @ weights[1][d:]
    by_segment = weights[2] * settings.segment_scale
    return LinearModel(
        grams=table,
        embedding=by_embedding.astype(np.float32),
        side=by_side.astype(np.float32),
        segment=by_segment.astype(np.float32),
        bias=(bias - middle @ by_embedding).astype(np.float32),
    )


def _idf(grams: sp.csr_matrix) -> Float64Array:
    """Smoothed inverse document frequency; zero for what fewer than two prompts hold."""
    prompts_with = np.bincount(grams.indices, minlength=grams.shape[1])
    idf = np.log((1 + grams.shape[0]) / (1 + prompts_with)) + 1
    idf[prompts_with < 2] = 0
    return np.asarray(idf)


def _standardised(side: Float32Array, scale: float) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Side features at zero mean and `scale / sqrt(f)` spread, with the weight and offset that make them so.

    The offset applies only where there is text, and the flag itself gets none: it is the place that carries it.
    """
    has_text = side[:, -1:] > 0
    text = side[has_text[:, 0]] if has_text.any() else side
    deviation = text.std(axis=0, dtype=np.float64)
    weight = np.where(deviation > 1e-6, scale / np.sqrt(side.shape[1]) / np.maximum(deviation, 1e-6), 0.0)
    offset = text.mean(axis=0, dtype=np.float64) * weight
    return (side * weight - offset) * has_text, weight, offset


def _solve(
    blocks: list[sp.csr_matrix | Float32Array], success: Float64Array, count: Float64Array, settings: LinearSettings
) -> tuple[Float64Array, list[Float64Array]]:
    """Minimise the penalised log loss by truncated Newton steps; bias [m] and, per block, weights [features, m]."""
    m = success.shape[1]
    sizes = [block.shape[1] for block in blocks]
    edges = np.cumsum([0, *sizes])
    transposed = [block.T for block in blocks]
    target = np.nan_to_num(success).astype(np.float32)
    weight = count.astype(np.float32)
    mean = float((target * weight).sum() / weight.sum())
    centre = np.log(np.clip(mean, 1e-3, 1 - 1e-3) / (1 - np.clip(mean, 1e-3, 1 - 1e-3)))

    def scores(flat: Float64Array) -> tuple[Float64Array, Float32Array]:
        weights = flat[m:].reshape(edges[-1], m + 1)
        low = weights.astype(np.float32)
        parts = (block @ low[a:b] for block, (a, b) in zip(blocks, pairwise(edges), strict=True))
        score: Float32Array = reduce(np.add, parts)
        return weights, flat[:m].astype(np.float32) + score[:, :1] + settings.own_scale * score[:, 1:]

    def backward(residual: Float32Array, flat: Float64Array, weights: Float64Array) -> Float64Array:
        back = np.concatenate([residual.sum(axis=1, keepdims=True), settings.own_scale * residual], axis=1)
        slope = np.concatenate([block @ back for block in transposed]) + weights
        bias = residual.sum(axis=0, dtype=np.float64) + flat[:m] / settings.bias_scale**2
        return np.concatenate([bias, slope.ravel()])

    def loss(flat: Float64Array) -> tuple[float, Float64Array]:
        weights, score = scores(flat)
        logit = score + np.float32(centre)
        value = float((weight * (np.logaddexp(0, logit) - target * logit)).sum(dtype=np.float64))
        value += 0.5 * float((weights**2).sum()) + 0.5 * float((flat[:m] ** 2).sum()) / settings.bias_scale**2
        return value, backward(weight * (_sigmoid(logit) - target), flat, weights)

    def curvature(at: Float64Array, direction: Float64Array) -> Float64Array:
        if at is not held.get("at"):
            p = _sigmoid(scores(at)[1] + np.float32(centre))
            held.update(at=at, variance=weight * p * (1 - p))
        weights, score = scores(direction)
        return backward(held["variance"] * score, direction, weights)

    held: dict[str, Any] = {}  # curvature is asked for many directions at one point
    start = np.zeros(m + edges[-1] * (m + 1))
    found = minimize(
        loss,
        start,
        jac=True,
        hessp=curvature,
        method="Newton-CG",
        options={"maxiter": settings.max_iterations, "xtol": 1e-5},
    )
    weights = found.x[m:].reshape(edges[-1], m + 1)
    merged = weights[:, :1] + settings.own_scale * weights[:, 1:]
    return centre + found.x[:m], [merged[a:b] for a, b in pairwise(edges)]


def _sigmoid(logit: Float32Array) -> Float32Array:
    return np.asarray(1 / (1 + np.exp(-logit)))
