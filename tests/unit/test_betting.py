"""The test of a mean on distributions whose mean is known: at most `alpha` wrong, and seldom blind."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from training.betting import mean_above_zero

REPEATS = 3000
REACH = 0.97


def share_found(values: np.ndarray, alpha: float, reach: float = REACH) -> float:
    """Of rows of `values` [repeats, n]."""
    found = mean_above_zero(lambda a, b: values[:, a:b], values.shape[:1], values.shape[1], reach=reach, alpha=alpha)
    return float(found.mean())


def two_points(rng: np.random.Generator, n: int, p_low: float) -> np.ndarray:
    """The worst value with probability `p_low`, and what makes the mean zero otherwise."""
    high = REACH * p_low / (1 - p_low)
    return np.where(rng.random((REPEATS, n)) < p_low, -REACH, high)


def routed(rng: np.random.Generator, n: int, apart: float) -> np.ndarray:
    """Y_s - 0.97 Y_j of a setting that loses just what the target allows: both succeed, or one alone does."""
    p = np.array([0.8 - apart, 0.0, apart])
    p[1] = (REACH * p[2] - (1 - REACH) * p[0]) if apart > 0.03 else 0.0
    p[2] = (p[1] + (1 - REACH) * p[0]) / REACH
    kind = np.searchsorted(p.cumsum(), rng.random((REPEATS, n)))
    return np.array([1 - REACH, 1.0, -REACH, 0.0])[kind]


def unbounded(rng: np.random.Generator, n: int) -> np.ndarray:
    """As outcomes weighted by propensities: rarely very large."""
    return REACH * (rng.exponential(size=(REPEATS, n)) ** 2 / 2 - 1)


NULLS = {
    **{f"two points {p}": (lambda rng, n, p=p: two_points(rng, n, p)) for p in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99)},
    **{f"routed {apart}": (lambda rng, n, apart=apart: routed(rng, n, apart)) for apart in (0.01, 0.05, 0.2)},
    "uniform": lambda rng, n: rng.uniform(-REACH, REACH, (REPEATS, n)),
    "unbounded": unbounded,
}


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("n", [1, 25, 300])
@pytest.mark.parametrize("name", NULLS)
def test_a_mean_of_zero_is_called_positive_at_most_as_often_as_allowed(name: str, n: int, alpha: float) -> None:
    values = NULLS[name](np.random.default_rng(n), n)
    margin = 3.5 * np.sqrt(alpha * (1 - alpha) / REPEATS)
    assert share_found(values, alpha) <= alpha + margin


def test_longer_steps_for_many_values_keep_it_so() -> None:
    values = two_points(np.random.default_rng(0), 2500, 0.02)
    assert share_found(values, 0.05) <= 0.05 + 3.5 * np.sqrt(0.05 * 0.95 / REPEATS)


@pytest.mark.parametrize("apart", [0.05, 0.1, 0.3])
def test_it_takes_at_most_a_third_more_values_than_a_test_of_known_variance(apart: float) -> None:
    rng = np.random.default_rng(1)
    p = np.array([0.7, apart / 2, apart / 2])
    sizes = np.array([1 - REACH, 1.0, -REACH, 0.0])
    mean, square = p @ sizes[:3], p @ sizes[:3] ** 2
    normal = NormalDist()
    n = round(1.3 * square / mean**2 * (normal.inv_cdf(0.95) + normal.inv_cdf(0.8)) ** 2)
    values = sizes[np.searchsorted(p.cumsum(), rng.random((1000, n)))]
    assert share_found(values, 0.05) > 0.77


def test_cells_are_judged_each_by_its_own_values() -> None:
    values = np.stack([np.full(200, 0.5), np.full(200, -0.5), np.zeros(200)]).reshape(3, 1, 200)
    found = mean_above_zero(lambda a, b: values[..., a:b], (3, 1), 200, reach=REACH, alpha=0.05)
    assert found.tolist() == [[True], [False], [False]]


def test_no_values_show_nothing() -> None:
    assert not mean_above_zero(lambda a, b: np.zeros((2, b - a)), (2,), 0, reach=1.0, alpha=0.05).any()
