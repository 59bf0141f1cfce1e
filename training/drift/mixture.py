"""Whether tonight's prompts and segments are still the same mixture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from router_ml.types import Float32Array, Float64Array
from training.drift.clustered import Estimate, means, totals
from training.drift.observed import Observed
from training.drift.permutation import permutation_p_value

_MOST_CLUSTERS = 2500
"""Of each sample, drawn with the seed: bounds the time, and shows what is large enough to matter."""
_FREQUENCIES = 128
_PAIRS = 500
"""To find the typical distance of two prompts."""


@dataclass(frozen=True, slots=True)
class _Pool:
    """Rows of two samples, tonight's first, by whole clusters."""

    row: NDArray[np.int64]
    """[r], within the row's own sample."""
    cluster: NDArray[np.int64]
    """[r], from 0; those of tonight first."""
    current: NDArray[np.bool_]
    """[r]"""

    def of_rows(self, current: NDArray[np.generic], reference: NDArray[np.generic]) -> NDArray[np.generic]:
        """A value of every row [r, ...], from those of both samples."""
        return np.concatenate([current[self.row[self.current]], reference[self.row[~self.current]]])

    def p_value(self, features: Float32Array, seed: int) -> float:
        """Of no change in the mean of features [r, f]."""
        order = np.argsort(self.cluster, kind="stable")
        first = np.flatnonzero(np.diff(self.cluster[order], prepend=-1))
        size = np.diff(first, append=len(order))
        sums = np.add.reduceat(features[order], first, axis=0)
        return permutation_p_value(sums, size, self.current[order][first], seed=seed)


def _pool(current: Observed, reference: Observed, seed: int) -> _Pool:
    rng = np.random.default_rng(seed)
    rows, clusters = [], []
    for observed in (current, reference):
        names = np.unique(observed.cluster)
        if len(names) > _MOST_CLUSTERS:
            names = rng.choice(names, _MOST_CLUSTERS, replace=False)
        rows.append(np.flatnonzero(np.isin(observed.cluster, names)))
        clusters.append(np.unique(observed.cluster[rows[-1]], return_inverse=True)[1])
    cluster = np.concatenate([clusters[0], clusters[1] + clusters[0].max() + 1])
    return _Pool(np.concatenate(rows), cluster, np.repeat([True, False], [len(part) for part in rows]))


def prompts_test(current: Observed, reference: Observed, seed: int) -> tuple[Estimate, float]:
    """How often tonight's prompts are told from the reference's, less one half, and the p-value of no change.

    The p-value is that of the maximum mean discrepancy of the embeddings under a Gaussian kernel as wide as their
    median distance, in random Fourier features (Rahimi & Recht 2007), over permutations of whole sessions.
    The size is what a classifier makes of the same features (a classifier two-sample test: Lopez-Paz & Oquab
    2017): the probability that of two prompts the one from tonight is picked, by the direction in which the means
    of *other* sessions differ. It learns from half of the sessions, so the whole would tell somewhat more.
    """
    assert current.vector is not None and reference.vector is not None
    pool, rng = _pool(current, reference, seed), np.random.default_rng(seed)
    vector = pool.of_rows(current.vector[current.prompt], reference.vector[reference.prompt])
    features = _fourier(vector.astype(np.float32), rng)
    half = rng.integers(0, 2, pool.cluster.max() + 1)[pool.cluster]
    one, other = (_told_apart(features, pool, half == fold) for fold in (0, 1))
    size = Estimate((one.value + other.value) / 2 - 0.5, (one.variance + other.variance) / 4, one.df + other.df)
    return size, pool.p_value(features, seed)


def segments_test(current: Observed, reference: Observed, seed: int) -> tuple[str, Estimate, Estimate, float]:
    """The segment whose share has changed most, its shares now and before, and the p-value of no change in any.

    Pearson's chi-square distance of the shares, over permutations of whole sessions.
    """
    names = np.unique(np.concatenate([current.segment, reference.segment]))
    shares = [
        means(*(totals((each.segment == name).astype(np.float64), each.cluster) for each in (current, reference)))
        for name in names
    ]
    largest = int(np.argmax([abs(now.value - before.value) for now, before in shares]))
    pool = _pool(current, reference, seed)
    marks = pool.of_rows(current.segment, reference.segment)[:, None] == names
    weighted = marks / np.sqrt(np.maximum(marks.mean(axis=0), 1 / len(marks)))
    return str(names[largest]), *shares[largest], pool.p_value(weighted.astype(np.float32), seed)


def _fourier(vector: Float32Array, rng: np.random.Generator) -> Float32Array:
    one, other = (vector[rng.integers(0, len(vector), _PAIRS)] for _ in range(2))
    apart = np.sqrt(((one - other) ** 2).sum(axis=1))
    width = float(np.median(apart[apart > 0])) if (apart > 0).any() else 1.0
    phase = vector @ (rng.normal(size=(vector.shape[1], _FREQUENCIES)) / width).astype(np.float32)
    return np.asarray(np.concatenate([np.cos(phase), np.sin(phase)], axis=1) / np.float32(np.sqrt(_FREQUENCIES)))


def _told_apart(features: Float32Array, pool: _Pool, judged: NDArray[np.bool_]) -> Estimate:
    """Area under the ROC curve over the `judged` rows, by the direction in which the means of the others differ."""
    direction = features[~judged & pool.current].mean(axis=0) - features[~judged & ~pool.current].mean(axis=0)
    score, current, cluster = features[judged] @ direction, pool.current[judged], pool.cluster[judged]
    overall = rankdata(score)
    beaten: list[Float64Array] = []  # of the other sample, by each row (DeLong, DeLong & Clarke-Pearson 1988)
    for side in (current, ~current):
        beaten.append((overall[side] - rankdata(score[side])) / (~side).sum())
    of_current, of_reference = (
        totals(part, cluster[side]) for part, side in zip(beaten, (current, ~current), strict=True)
    )
    area, rest = (Estimate(part.mean, part.variance(), part.df) for part in (of_current, of_reference))
    return Estimate(area.value, area.variance + rest.variance, area.minus(rest).df)
