"""Whether two samples come from one distribution, by exchanging their members."""

from __future__ import annotations

import numpy as np

from router_ml.types import Float32Array

_MOST_PERMUTATIONS = 19_999
"""Enough for a p-value of 5e-5, which the smallest level of a family of a hundred tests at 0.5 % asks for."""
_EXCEEDING = 20
_AT_ONCE = 500


def permutation_p_value(current: Float32Array, reference: Float32Array, *, seed: int) -> float:
    """Of the squared distance between the means of features [k, f] of independent members of two samples.

    Exact at any size (Phipson & Smyth 2010: the p-value counts the observed arrangement); with features of a
    kernel it is the test of the maximum mean discrepancy (Gretton et al. 2012). Stops after twenty permutations
    that go beyond what was observed, where nothing is to be seen (Besag & Clifford 1991, who show that the
    p-value stays valid).
    """
    rng = np.random.default_rng(seed)
    both = np.concatenate([current, reference])
    both = both - both.mean(axis=0)  # against cancellation in single precision
    k, n = len(current), len(both)
    # The mean of the others follows from that of the drawn, since all add up to zero.
    # Equal arrangements are equal but for rounding, and count.
    observed = float((both[:k].sum(axis=0) ** 2).sum()) * (1 - 1e-4)
    done = exceeding = 0
    while done < _MOST_PERMUTATIONS:
        size = min(_AT_ONCE, _MOST_PERMUTATIONS - done)
        place = np.argpartition(rng.random((size, n), dtype=np.float32), k - 1, axis=1)[:, :k]
        drawn = np.zeros((size, n), dtype=np.float32)
        np.put_along_axis(drawn, place, 1.0, axis=1)
        beyond = np.flatnonzero(((drawn @ both) ** 2).sum(axis=1) >= observed)
        if exceeding + len(beyond) >= _EXCEEDING:
            return _EXCEEDING / (done + int(beyond[_EXCEEDING - exceeding - 1]) + 1)
        exceeding, done = exceeding + len(beyond), done + size
    return (exceeding + 1) / (done + 1)
