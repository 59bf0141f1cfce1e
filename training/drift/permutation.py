"""Whether two samples of clusters come from one distribution, by exchanging whole clusters between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Float32Array

_MOST_PERMUTATIONS = 19_999
"""Enough for a p-value of 5e-5, which the smallest level of a family of a hundred tests at 0.5 % asks for."""
_EXCEEDING = 20
_AT_ONCE = 500


def permutation_p_value(
    features: Float32Array, rows: NDArray[np.int64], current: NDArray[np.bool_], *, seed: int
) -> float:
    """Of the squared distance between the mean features of two samples of clusters.

    `features` [k, f] are sums over a cluster's rows, `rows` [k] how many they are, `current` [k] which sample a
    cluster is in. Exact at any size where clusters are exchangeable (Phipson & Smyth 2010: the p-value counts
    the observed arrangement); with features of a kernel it is the test of the maximum mean discrepancy (Gretton
    et al. 2012). Stops after twenty permutations that go beyond what was observed, where nothing is to be seen
    (Besag & Clifford 1991, who show that the p-value stays valid).
    """
    rng = np.random.default_rng(seed)
    table = np.column_stack([features, rows]).astype(np.float32)
    table[:, :-1] -= table[:, -1:] * (features.sum(axis=0) / rows.sum())  # against cancellation in single precision
    whole, n_current = table.sum(axis=0), int(current.sum())
    # Equal arrangements are equal but for rounding, and count.
    observed = _distance(current[None].astype(np.float32) @ table, whole)[0] * (1 - 1e-4)
    done = exceeding = 0
    while done < _MOST_PERMUTATIONS:
        size = min(_AT_ONCE, _MOST_PERMUTATIONS - done)
        place = np.argpartition(rng.random((size, len(rows)), dtype=np.float32), n_current - 1, axis=1)[:, :n_current]
        drawn = np.zeros((size, len(rows)), dtype=np.float32)
        np.put_along_axis(drawn, place, 1.0, axis=1)
        beyond = np.flatnonzero(_distance(drawn @ table, whole) >= observed)
        if exceeding + len(beyond) >= _EXCEEDING:
            return _EXCEEDING / (done + int(beyond[_EXCEEDING - exceeding - 1]) + 1)
        exceeding, done = exceeding + len(beyond), done + size
    return (exceeding + 1) / (done + 1)


def _distance(inside: Float32Array, whole: Float32Array) -> Float32Array:
    """[b], from the sums [b, f + 1] of one sample and of both, [f + 1]; the last column counts rows."""
    outside = whole - inside
    apart = inside[:, :-1] / inside[:, -1:] - outside[:, :-1] / outside[:, -1:]
    return np.asarray((apart**2).sum(axis=1))
