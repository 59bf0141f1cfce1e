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

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.optimize import minimize

from router_ml.types import Float32Array, Float64Array
from training.dataset import Prompts

BIGRAM_BUCKETS = 1 << 15
BIGRAM_FACTOR = 1_000_003
"""Bigram (a, b) falls into bucket (a * factor + b) mod buckets."""


_PROMPTS_AT_ONCE = 20_000

_Block: TypeAlias = sp.csr_matrix | Float32Array


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
        grams, by_embedding, by_side = (w.astype(np.float64) for w in (self.grams, self.embedding, self.side))
        logits = np.empty((len(index), len(self.bias)))
        for part in blocks(len(index)):
            at = index[part]
            sums = gram_counts(prompts, at, len(grams) - BIGRAM_BUCKETS) @ grams
            lexical = sums[:, :-1] / np.sqrt(np.maximum(sums[:, -1:], 1e-12))
            dense = prompts.embedding[at] @ by_embedding + prompts.side[at] @ by_side
            logits[part] = self.bias + lexical + dense + self.segment[prompts.segment[at]]
        return logits


def gram_counts(prompts: Prompts, index: NDArray[np.int64], vocabulary: int) -> sp.csr_matrix:
    """Occurrences of token ids and hashed bigrams, float32 [len(index), vocabulary + BIGRAM_BUCKETS]."""
    lengths = np.diff(prompts.start)[index]
    begin = np.concatenate([[0], np.cumsum(np.maximum(2 * lengths - 1, 0))])
    columns = np.empty(begin[-1], dtype=np.int32)
    for part in blocks(len(index)):
        columns[begin[part.start] : begin[part.stop]] = _gram_columns(prompts, index[part], vocabulary)
    shape = (len(index), vocabulary + BIGRAM_BUCKETS)
    counts = sp.csr_matrix((np.ones(len(columns), dtype=np.float32), columns, begin), shape=shape)
    counts.sum_duplicates()
    return counts


def _gram_columns(prompts: Prompts, index: NDArray[np.int64], vocabulary: int) -> NDArray[np.int64]:
    """Columns of the grams of all prompts `index`, end to end: each token after the bigram that it closes."""
    first = prompts.start[index]
    lengths = prompts.start[index + 1] - first
    own = np.cumsum(lengths) - lengths
    ids = prompts.ids[np.repeat(first - own, lengths) + np.arange(lengths.sum())].astype(np.int64)
    columns = np.empty((len(ids), 2), dtype=np.int64)
    columns[:, 1] = ids
    columns[1:, 0] = (ids[:-1] * BIGRAM_FACTOR + ids[1:]) % BIGRAM_BUCKETS + vocabulary
    columns[own[lengths > 0], 0] = -1  # the first token of a prompt closes none
    return columns[columns >= 0]


def blocks(n: int) -> Iterator[slice]:
    """Slices of `range(n)` that bound what is held at a time."""
    return (slice(start, min(start + _PROMPTS_AT_ONCE, n)) for start in range(0, n, _PROMPTS_AT_ONCE))


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
    order = np.argsort(_group_of(count), kind="stable")
    index, success, count = index[order], success[order], count[order]
    ngrams, idf = _ngrams(prompts, index, vocabulary, settings.scale)
    seen = np.flatnonzero(idf)
    side, side_weight, side_offset = standardised(prompts.side[index], settings.scale)
    embedding, embedding_weight, middle = centred(prompts.embedding[index], settings.scale)
    segment = prompts.segment[index]
    # Column 0, the unknown segment, stays empty: it says nothing.
    known = np.flatnonzero(segment)
    ones = np.full(len(known), settings.segment_scale, dtype=np.float32)
    members = sp.csr_matrix((ones, (known, segment[known])), shape=(len(index), n_segments + 1))
    blocks = [ngrams, embedding, side.astype(np.float32), members]
    bias, weights = _solve(blocks, success, count, settings)

    table = np.zeros((vocabulary + BIGRAM_BUCKETS, success.shape[1] + 1), dtype=np.float32)
    table[seen, :-1] = idf[seen, None] * settings.scale * weights[0]
    table[seen, -1] = idf[seen] ** 2
    by_embedding = weights[1] * embedding_weight
    by_side = weights[2] * side_weight[:, None]
    by_side[-1] -= side_offset @ weights[2]
    by_segment = weights[3] * settings.segment_scale
    return LinearModel(
        grams=table,
        embedding=by_embedding.astype(np.float32),
        side=by_side.astype(np.float32),
        segment=by_segment.astype(np.float32),
        bias=(bias - middle @ by_embedding).astype(np.float32),
    )


def _ngrams(
    prompts: Prompts, index: NDArray[np.int64], vocabulary: int, scale: float
) -> tuple[sp.csr_matrix, Float64Array]:
    """The n-grams that two prompts share, idf-weighted, rows at length `scale`; and the idf [V + B], zero elsewhere.

    The largest array of a fit, so it is changed in place.
    """
    if not scale:  # a model that is blind to the prompt
        return sp.csr_matrix((len(index), 0), dtype=np.float32), np.zeros(vocabulary + BIGRAM_BUCKETS)
    grams = gram_counts(prompts, index, vocabulary)
    idf = _idf(grams)
    narrow = idf.astype(np.float32)
    norm = np.sqrt(np.maximum(grams @ narrow**2, np.float32(1e-12)))
    for part in blocks(len(index)):
        cells = slice(grams.indptr[part.start], grams.indptr[part.stop])
        lengths = np.diff(grams.indptr[part.start : part.stop + 1])
        grams.data[cells] *= narrow[grams.indices[cells]] * np.repeat(np.float32(scale) / norm[part], lengths)
    grams.eliminate_zeros()
    place = np.cumsum(idf > 0, dtype=np.int32) - 1
    for part in blocks(len(index)):
        cells = slice(grams.indptr[part.start], grams.indptr[part.stop])
        grams.indices[cells] = place[grams.indices[cells]]
    grams.resize(len(index), int(place[-1]) + 1)
    return grams, idf


def centred(embedding: Float32Array, scale: float) -> tuple[Float32Array, float, Float32Array]:
    """The rows around their mean at root mean square length `scale`, changed in place; the weight, and the mean."""
    middle = embedding.mean(axis=0, dtype=np.float64).astype(np.float32)
    embedding -= middle
    spread = float(np.sqrt(np.einsum("ij,ij->", embedding, embedding, dtype=np.float64) / len(embedding)))
    # Equal embeddings differ from their mean by rounding, which must not be blown up.
    weight = scale / (spread if spread > 1e-5 else 1.0)
    embedding *= np.float32(weight)
    return embedding, weight, middle


def _idf(grams: sp.csr_matrix) -> Float64Array:
    """Smoothed inverse document frequency; zero for what fewer than two prompts hold."""
    prompts_with = np.bincount(grams.indices, minlength=grams.shape[1])
    idf = np.log((1 + grams.shape[0]) / (1 + prompts_with)) + 1
    idf[prompts_with < 2] = 0
    return np.asarray(idf)


def standardised(side: Float32Array, scale: float) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Side features at zero mean and `scale / sqrt(f)` spread, with the weight and offset that make them so.

    The offset applies only where there is text, and the flag itself gets none: it is the place that carries it.
    """
    has_text = side[:, -1:] > 0
    text = side[has_text[:, 0]] if has_text.any() else side
    deviation = text.std(axis=0, dtype=np.float64)
    weight = np.where(deviation > 1e-6, scale / np.sqrt(side.shape[1]) / np.maximum(deviation, 1e-6), 0.0)
    offset = text.mean(axis=0, dtype=np.float64) * weight
    return (side * weight - offset) * has_text, weight, offset


@dataclass(frozen=True, slots=True)
class _Group:
    """Prompts, next to each other, whose outcomes are known for the same models only; k of them."""

    blocks: list[_Block]
    """Features of its prompts."""
    models: NDArray[np.int64]
    """[k]"""
    mix: Float32Array
    """[m + 1, k], what shared and own weights are multiplied by to give each model's."""
    target: Float32Array
    """[n, k]"""
    weight: Float32Array

    def scores(self, weights: Float32Array, bias: Float64Array) -> Float32Array:
        """[n, k] from weights [features, m + 1]."""
        mixed, edges = weights @ self.mix, _edges(self.blocks)
        parts = (block @ mixed[a:b] for block, (a, b) in zip(self.blocks, pairwise(edges), strict=True))
        score: Float32Array = reduce(np.add, parts)
        return score + bias[self.models].astype(np.float32)

    def slope(self, residual: Float32Array) -> Float32Array:
        """[features, m + 1]"""
        return np.asarray(np.concatenate([block.T @ residual for block in self.blocks]) @ self.mix.T)


def _group_of(count: Float64Array) -> NDArray[np.int64]:
    """[n], the only model that is known of a prompt; m where several are."""
    known = count > 0
    return np.asarray(np.where(known.sum(axis=1) == 1, known.argmax(axis=1), count.shape[1]))


def _groups(blocks: list[_Block], success: Float64Array, count: Float64Array, own_scale: float) -> list[_Group]:
    """The prompts, in the order of `_group_of`: of partial logs no score is reckoned that nobody can check."""
    m, model = count.shape[1], _group_of(count)
    mix = np.concatenate([np.ones((1, m)), own_scale * np.eye(m)]).astype(np.float32)
    groups = []
    for a, b in pairwise(np.searchsorted(model, np.arange(m + 2))):
        if a == b:
            continue
        models = model[a : a + 1] if model[a] < m else np.arange(m)
        target, weight = (each[a:b, models].astype(np.float32) for each in (np.nan_to_num(success), count))
        groups.append(_Group([_rows(block, a, b) for block in blocks], models, mix[:, models], target, weight))
    return groups


def _rows(block: _Block, a: int, b: int) -> _Block:
    """Rows a to b, without a copy."""
    if isinstance(block, np.ndarray):
        return block[a:b]
    begin, end = block.indptr[[a, b]]
    parts = block.data[begin:end], block.indices[begin:end], block.indptr[a : b + 1] - begin
    return sp.csr_matrix(parts, shape=(b - a, block.shape[1]))


def _edges(blocks: list[_Block]) -> NDArray[np.int64]:
    return np.cumsum([0, *(block.shape[1] for block in blocks)])


def _solve(
    blocks: list[_Block], success: Float64Array, count: Float64Array, settings: LinearSettings
) -> tuple[Float64Array, list[Float64Array]]:
    """Minimise the penalised log loss by truncated Newton steps; bias [m] and, per block, weights [features, m].

    The prompts lie in the order of `_group_of`.
    """
    m, edges = success.shape[1], _edges(blocks)
    groups = _groups(blocks, success, count, settings.own_scale)
    mean = float((np.nan_to_num(success) * count).sum() / count.sum())
    centre = np.log(np.clip(mean, 1e-3, 1 - 1e-3) / (1 - np.clip(mean, 1e-3, 1 - 1e-3)))

    def scores(flat: Float64Array) -> list[Float32Array]:
        low = flat[m:].reshape(edges[-1], m + 1).astype(np.float32)
        return [group.scores(low, flat[:m]) for group in groups]

    def backward(residuals: list[Float32Array], flat: Float64Array) -> Float64Array:
        bias, slope = flat[:m] / settings.bias_scale**2, flat[m:].reshape(edges[-1], m + 1).copy()
        for group, residual in zip(groups, residuals, strict=True):
            bias[group.models] += residual.sum(axis=0, dtype=np.float64)
            slope += group.slope(residual)
        return np.concatenate([bias, slope.ravel()])

    def loss(flat: Float64Array) -> tuple[float, Float64Array]:
        logits = [score + np.float32(centre) for score in scores(flat)]
        value = 0.5 * float((flat[m:] ** 2).sum()) + 0.5 * float((flat[:m] ** 2).sum()) / settings.bias_scale**2
        for g, z in zip(groups, logits, strict=True):
            value += float((g.weight * (np.logaddexp(0, z) - g.target * z)).sum(dtype=np.float64))
        return value, backward([g.weight * (_sigmoid(z) - g.target) for g, z in zip(groups, logits, strict=True)], flat)

    def curvature(at: Float64Array, direction: Float64Array) -> Float64Array:
        if at is not held.get("at"):
            p = [_sigmoid(score + np.float32(centre)) for score in scores(at)]
            held.update(at=at, variance=[g.weight * each * (1 - each) for g, each in zip(groups, p, strict=True)])
        return backward([v * score for v, score in zip(held["variance"], scores(direction), strict=True)], direction)

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
