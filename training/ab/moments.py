"""Sums over units, look by look: all that the statistics of a test need of its rows.

A metric is a ratio: its numerator summed over requests, divided by its denominator summed over requests (success of
the requests whose success is known; cost of those whose cost is). Requests of one unit depend on each other, so units
are what is counted: at each look a unit is the sum of its requests so far. The first and second moments over units
of (numerator, denominator, covariates and their denominator) are enough for ratios, their variances by the delta
method clustered by unit, and the adjustment for covariates.

r requests, u units, p covariates, t looks, a arms, k = 3 + p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Float64Array

FOLDS = 5
NUMERATOR, DENOMINATOR, COVARIATE_DENOMINATOR, COVARIATES = 0, 1, 2, 3
"""Places in the vector of a unit; covariates from the last on."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Units:
    """What is counted: u sessions, tenants or requests."""

    arm: Ints
    """[u]"""
    fold: Ints
    """[u], 0 to FOLDS - 1, at random."""
    weight: Float64Array
    """[u], 1 unless the shares of the arms changed in time."""
    covariates: Float64Array
    """[u, p], known when the unit came and not influenced by its arm; no NaN."""

    def __len__(self) -> int:
        return len(self.arm)


@dataclass(frozen=True, slots=True)
class Moments:
    """Cumulative over looks."""

    n_units: Ints
    """[t, a], units with a request that counts so far."""
    sums: Float64Array
    """[t, a, FOLDS, k]"""
    products: Float64Array
    """[t, a, FOLDS, k, k]"""

    def of_look(self, look: int) -> Moments:
        """What one look added, for units that add to one look only, as one look."""
        return Moments(*(np.diff(x[max(look - 1, 0) : look + 1], axis=0) if look else x[:1] for x in self._all()))

    def __add__(self, other: Moments) -> Moments:
        """Of units of both."""
        return Moments(*(x + y for x, y in zip(self._all(), other._all(), strict=True)))

    def _all(self) -> tuple[NDArray[Any], ...]:
        return self.n_units, self.sums, self.products


def moments(
    units: Units,
    unit: Ints,
    look: Ints,
    numerator: Float64Array,
    denominator: Float64Array,
    n_looks: int,
    n_arms: int,
    per_request: Float64Array | None = None,
) -> Moments:
    """Moments of one metric from its requests: `unit`, `look` from which on they count, `numerator`, `denominator`.

    Requests whose denominator is NaN and those of looks beyond the last are left out. Covariates are the units' own;
    or, with `per_request` [r, p], their sums over requests, as suits a test whose arms cannot influence what is asked.
    """
    used = ~np.isnan(denominator) & (look < n_looks)
    unit, look = unit[used], look[used]
    rows = [numerator[used], denominator[used]]
    if per_request is not None:
        rows += [np.ones(len(unit)), *per_request[used].T]
    order = np.argsort(unit * n_looks + look, kind="stable")
    unit, look = unit[order], look[order]
    # One event per unit and look in which it grew.
    begins = np.flatnonzero(np.diff(unit * n_looks + look, prepend=-1))
    if not len(begins):
        return _empty(n_looks, n_arms, 3 + units.covariates.shape[1])
    unit, look = unit[begins], look[begins]
    first = np.diff(unit, prepend=-1) != 0
    now = np.column_stack([_running(np.add.reduceat(values[order], begins), first) for values in rows])
    if per_request is None:
        now = np.column_stack([now, np.ones(len(unit)), units.covariates[unit]])
    now *= units.weight[unit, None]
    before = np.where(first[:, None], 0.0, np.roll(now, 1, axis=0))
    cell = (look * n_arms + units.arm[unit]) * FOLDS + units.fold[unit]
    k, shape = now.shape[1], (n_looks, n_arms, FOLDS)

    def summed(values: Float64Array) -> Float64Array:
        size = n_looks * n_arms * FOLDS
        return np.asarray(np.cumsum(np.bincount(cell, values, size).reshape(shape), axis=0))

    products = np.empty((*shape, k, k))
    for i in range(k):
        for j in range(i, k):
            products[..., i, j] = products[..., j, i] = summed(now[:, i] * now[:, j] - before[:, i] * before[:, j])
    sums = np.stack([summed(now[:, i] - before[:, i]) for i in range(k)], axis=-1)
    return Moments(summed(first.astype(np.float64)).sum(axis=2).astype(np.int64), sums, products)


def _running(values: Float64Array, first: NDArray[np.bool_]) -> Float64Array:
    """Sums that begin anew at each unit."""
    total = np.cumsum(values)
    base = np.where(first, total - values, 0.0)
    return np.asarray(total - base[np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))])


def _empty(n_looks: int, n_arms: int, k: int) -> Moments:
    shape = (n_looks, n_arms, FOLDS, k)
    return Moments(np.zeros((n_looks, n_arms), dtype=np.int64), np.zeros(shape), np.zeros((*shape, k)))
