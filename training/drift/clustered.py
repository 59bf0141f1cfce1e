"""Differences of two means whose rows come in clusters: turns of a session, repeats of a prompt.

Clusters are independent, rows of one are not, so a mean is a ratio of cluster totals and its variance
that of the totals (Liang & Zeger 1986; Cochran 1977, Sampling Techniques, chapter 6).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from router_ml.types import Float64Array

FEWEST_CLUSTERS = 8
"""Below that, a variance of cluster totals is a guess."""
_ROUNDING = 1e-9
"""Means of equal values differ in their last bits, and so little matters nowhere."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure that is approximately normal around its truth."""

    value: float
    variance: float
    df: float
    """Degrees of freedom of the variance."""

    def minus(self, other: Estimate) -> Estimate:
        """The difference of two independent figures (Welch 1947)."""
        variance = self.variance + other.variance
        spread = self.variance**2 / self.df + other.variance**2 / other.df
        return Estimate(self.value - other.value, variance, variance**2 / spread if spread > 0 else 1.0)

    @property
    def p_value(self) -> float:
        """Two-sided, of a truth of zero."""
        if abs(self.value) < _ROUNDING:
            return 1.0
        return float(2 * stats.t.sf(abs(self.value) / np.sqrt(self.variance), self.df))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Covers the truth in a share `level` of repetitions."""
        half = float(stats.t.isf((1 - level) / 2, self.df) * np.sqrt(self.variance))
        return self.value - half, self.value + half


@dataclass(frozen=True, slots=True)
class Totals:
    """What k clusters add up to."""

    value: Float64Array
    """[k], sum of the values of a cluster's rows."""
    rows: Float64Array
    """[k], at least 1."""

    @property
    def n(self) -> float:
        return float(self.rows.sum())

    @property
    def mean(self) -> float:
        return float(self.value.sum() / self.n)

    @property
    def df(self) -> float:
        """One less than the number of equal clusters that would tell as much (Kish 1965)."""
        return max(1.0, self.n**2 / float((self.rows**2).sum()) - 1)

    def variance(self) -> float:
        """Of the mean."""
        k = len(self.rows)
        return k / max(1, k - 1) * self.squares(self.mean) / self.n**2

    def estimate(self) -> Estimate:
        """The mean by itself."""
        return Estimate(self.mean, self.variance(), self.df)

    def squares(self, mean: float) -> float:
        """Sum of the squared totals, less what this mean explains."""
        return float(((self.value - self.rows * mean) ** 2).sum())


def totals(values: Float64Array, cluster: NDArray[np.int64]) -> Totals:
    """Of values [r] by their cluster [r]; NaN is unknown and left out."""
    known = ~np.isnan(values)
    rows = np.bincount(cluster[known]).astype(np.float64)
    value = np.asarray(np.bincount(cluster[known], values[known], len(rows)), dtype=np.float64)
    return Totals(value[rows > 0], rows[rows > 0])


def means(current: Totals, reference: Totals) -> tuple[Estimate, Estimate]:
    """The means of two samples, to be compared by a test.

    Each one's variance is its own or that under no change, whichever is larger: where an event is rare, a sample
    without any has no variance of its own, and the ratio to it would be far too large. Approximately right from
    about `FEWEST_CLUSTERS` clusters; too cautious for rare events.
    """
    n = current.n + reference.n
    pooled = (current.value.sum() + reference.value.sum()) / n
    squares = (current.squares(pooled) + reference.squares(pooled)) / n
    own, other = (Estimate(part.mean, max(part.variance(), squares / part.n), part.df) for part in (current, reference))
    return own, other
