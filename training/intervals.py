"""How sure a figure is: percentile bootstrap over prompts.

Prompts are drawn with replacement, each with all its models and with the choices of
all routers that are compared, so a statistic that subtracts one router's figure from
another's gets a paired interval (Efron & Tibshirani 1993, An Introduction to the
Bootstrap, chapters 13 and 8.3). It breaks where prompts depend on each other (several
turns of one session: let a row be a session), where few prompts decide the figure, and
where the figure is biased on few rows, as `calibration_error` is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Weights = NDArray[np.int64]

REPEATS = 2000
LEVEL = 0.95

# Bounds the memory of one call of the statistic, not its result.
_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and the range that covers its true value in a share `level` of repetitions."""

    estimate: float
    low: float
    high: float
    """NaN, as is `low`, where some resample had no value: then one cannot tell."""
    level: float = LEVEL

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference may be called better or worse."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.estimate:.4g} [cannot tell]"
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap(
    statistic: Callable[[Weights], ArrayLike],
    n: int,
    *,
    repeats: int = REPEATS,
    level: float = LEVEL,
    seed: int = 0,
) -> list[Interval]:
    """One percentile interval for each of the k figures that `statistic` returns.

    `statistic` takes `weights[b, n]`, how often each of n prompts was drawn (every row
    sums to n), and returns shape [b, k], or [b] for one figure. Infinite values are
    ordered as such. `metrics.resampled_points` takes the weights as they are; a figure
    that wants rows takes ``np.repeat(np.arange(n), weights[i])``.
    """
    if n < 2 or repeats < 1 or not 0 < level < 1:
        raise ValueError(f"needs n >= 2, repeats >= 1 and 0 < level < 1, found {n}, {repeats} and {level}")
    rng = np.random.default_rng(seed)
    estimates = _figures(statistic, np.ones((1, n), dtype=np.int64))[0]
    step = max(1, _CELLS_AT_ONCE // n)
    replicates = np.concatenate(
        [_figures(statistic, _draw(rng, n, min(step, repeats - start))) for start in range(0, repeats, step)]
    )
    return [
        interval_of(float(estimate), column, level) for estimate, column in zip(estimates, replicates.T, strict=True)
    ]


def _draw(rng: np.random.Generator, n: int, repeats: int) -> Weights:
    return np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(repeats)])


def _figures(statistic: Callable[[Weights], ArrayLike], weights: Weights) -> NDArray[np.float64]:
    values = np.asarray(statistic(weights), dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) != len(weights):
        raise ValueError(f"`statistic` must return one row for each of {len(weights)} resamples, found {values.shape}")
    return values


def interval_of(estimate: float, replicates: NDArray[np.float64], level: float = LEVEL) -> Interval:
    """The percentile interval of resampled figures [b]."""
    # An order statistic, not an interpolation: between a number and infinity there is no middle.
    # One NaN makes both ends NaN.
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(estimate, float(low), float(high), level)
