"""The tuning parameter from data, by SLOPE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from router_ml.types import Float64Array
from training.off_policy.clusters import Ints
from training.off_policy.uncertainty import standard_error

_DEVIATIONS = 1.96


class _Candidate(Protocol):
    @property
    def value(self) -> float: ...
    @property
    def influence(self) -> Float64Array: ...


def choose_by_slope(candidates: Sequence[_Candidate], cluster: Ints) -> int:
    """Index of the candidate to use; they are ordered from the least bias to the least variance.

    Lepski's principle (Su, Srinath & Krishnamurthy 2020, Adaptive estimator selection for off-policy evaluation,
    eq. 3): the last candidate before the first whose interval, twice as wide as its deviation, misses one of those
    before it, which have less bias. Its error is within a constant of the best candidate's without any estimate of
    the bias itself. Deviations are 1.96 standard errors clustered as the interval is.
    """
    error = standard_error(np.column_stack([each.influence for each in candidates]), cluster)
    width = 2 * _DEVIATIONS * np.minimum.accumulate(error)
    low, high = -np.inf, np.inf
    for i, each in enumerate(candidates):
        low, high = max(low, each.value - width[i]), min(high, each.value + width[i])
        if low > high:
            return max(i - 1, 0)
    return len(candidates) - 1
