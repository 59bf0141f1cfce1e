"""How sure an off-policy figure is: cluster standard errors and a studentised bootstrap.

Every figure enters by its influence values: per row what it adds to the figure's deviation, to first order, so a
difference of two figures has the difference of their values, and a ratio follows by the delta method. Clusters are
drawn with replacement, each with all its rows, and the interval is as wide as resampled deviations are large in
units of their own standard error (symmetric bootstrap t: Hall 1988, On symmetric bootstrap confidence intervals,
J. R. Statist. Soc. B 50). A few large weights make that error unsure; the percentile interval, which takes no heed
of it, covers too seldom there. It breaks with few clusters, and where the rows that would decide were never drawn at
all: see the effective sample size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Float64Array
from training.intervals import LEVEL, Interval, Weights, bootstrap
from training.off_policy.clusters import Ints, sums_by

REPEATS = 2000
_MOST_CLUSTERS = 20_000
"""Beyond it clusters are drawn by random groups: the mean of so many needs no more care."""


def standard_error(influence: Float64Array, cluster: Ints) -> Float64Array:
    """Of figures whose influence values are [n] or [n, figures]; `cluster` [n] or [n, 2], then the larger counts."""
    return np.asarray(np.max([_error(sums_by(one, influence)) for one in _each(cluster)], axis=0))


def studentised_intervals(
    values: Float64Array,
    influence: Float64Array,
    cluster: Ints,
    *,
    level: float = LEVEL,
    repeats: int = REPEATS,
    seed: int = 0,
) -> list[Interval]:
    """One interval for each of the figures `values` [figures], of influence values [n, figures].

    The ends are infinite where resamples often had no spread at all: too few rows carry the figure.
    """
    by_cluster = [sums_by(one, influence) for one in _each(cluster)]
    # Of two ways to group, the one that leaves more doubt, figure by figure.
    widest = np.argmax([_error(sums) for sums in by_cluster], axis=0)
    found: list[Interval | None] = [None] * len(values)
    for which, sums in enumerate(by_cluster):
        mine = np.flatnonzero(widest == which)
        if mine.size:
            for j, interval in zip(mine, _studentised(values[mine], sums[:, mine], level, repeats, seed), strict=True):
                found[j] = interval
    return [interval for interval in found if interval is not None]


def _studentised(values: Float64Array, sums: Float64Array, level: float, repeats: int, seed: int) -> list[Interval]:
    sums = _grouped(sums - sums.mean(axis=0))
    k, figures = sums.shape
    error = _error(sums)
    if k < 2:
        return [Interval(float(value), -np.inf, np.inf, level) for value in values]
    powers = np.concatenate([sums, sums**2], axis=1)

    def statistic(weights: Weights) -> Float64Array:
        total = weights @ powers
        first, second = total[:, :figures], total[:, figures:]
        spread = np.sqrt(np.maximum(second - first**2 / k, 0) * k / (k - 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            # No spread and no deviation is a figure without any doubt: t is 0.
            return np.abs(np.where(first == 0, 0.0, first / spread))

    # Of the two ends, the upper one at this level has a share `level` of the resamples below it.
    t = bootstrap(statistic, k, repeats=repeats, level=2 * level - 1, seed=seed)
    half = [each.high * e if e > 0 else 0.0 for each, e in zip(t, error.tolist(), strict=True)]
    return [Interval(v, v - h, v + h, level) for v, h in zip(values.tolist(), half, strict=True)]


def _error(sums: Float64Array) -> Float64Array:
    """Standard error from sums by cluster [k, ...] of values that sum to 0."""
    k = len(sums)
    return np.asarray(np.sqrt((sums**2).sum(axis=0) * k / max(k - 1, 1)))


def _grouped(sums: Float64Array) -> Float64Array:
    if len(sums) <= _MOST_CLUSTERS:
        return sums
    group = np.random.default_rng(0).permutation(len(sums)) % _MOST_CLUSTERS
    return np.asarray(sums_by(group, sums))


def _each(cluster: Ints) -> NDArray[np.int64]:
    """[ways, n]"""
    return cluster[None] if cluster.ndim == 1 else cluster.T
