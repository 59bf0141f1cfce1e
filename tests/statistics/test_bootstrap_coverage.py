"""Nominal 95 % intervals cover the known truth in about 95 % of simulated logs."""

from __future__ import annotations

import math

import numpy as np

from training.intervals import Interval, Weights, bootstrap
from training.metrics import SweepPoints, aiq, cost_share, resampled_points, sweep_points

SEGMENTS = 4
ABILITY = np.array([[0.9, 0.92, 0.95], [0.3, 0.7, 0.9], [0.7, 0.75, 0.8], [0.2, 0.3, 0.85]])
"""[segments, models], true probability of success."""
PRICE = np.array([0.1, 0.4, 2.0])
GOOD = np.array([[0, 0, 0, 0], [0, 1, 0, 2], [0, 2, 0, 2], [2, 2, 2, 2]])
"""[sweep points, segments], the model that a sensible router chooses."""
POOR = np.array([[0, 0, 0, 0], [2, 0, 0, 2], [2, 0, 2, 2], [2, 2, 2, 2]])
LENGTHS = np.array([0.5, 1.0, 1.5])
"""Costs vary by prompt as answers do."""


def true_points(sweep: np.ndarray) -> SweepPoints:
    """The world has equally many prompts of every segment and length, so the truth is a finite mean."""
    segment, length = (axis.ravel() for axis in np.meshgrid(np.arange(SEGMENTS), LENGTHS))
    return sweep_points(ABILITY[segment], PRICE * length[:, None], sweep[:, segment])


def figures(good: SweepPoints, poor: SweepPoints) -> list[float]:
    share = cost_share(good, 0.9)
    return [aiq(good), math.inf if share is None else share, aiq(good) - aiq(poor)]


def curve_intervals(rng: np.random.Generator, n: int, seed: int) -> list[Interval]:
    """Intervals of `figures` from one simulated log of n prompts."""
    segment, length = rng.integers(SEGMENTS, size=n), rng.choice(LENGTHS, size=n)
    success = (rng.random((n, 3)) < ABILITY[segment]).astype(float)
    cost = PRICE * length[:, None]

    def statistic(weights: Weights) -> list[list[float]]:
        sweeps = [resampled_points(success, cost, sweep[:, segment], weights) for sweep in (GOOD, POOR)]
        return [figures(good, poor) for good, poor in zip(*sweeps, strict=True)]

    return bootstrap(statistic, n, repeats=200, seed=seed)


def brier_interval(rng: np.random.Generator, n: int, seed: int) -> Interval:
    p = rng.beta(2, 1, size=n)
    loss = (p - (rng.random(n) < p)) ** 2
    [interval] = bootstrap(lambda weights: weights @ loss / n, n, repeats=400, seed=seed)
    return interval


def test_paired_bootstrap_covers_known_curve_figures() -> None:
    rng = np.random.default_rng(0)
    truth = figures(true_points(GOOD), true_points(POOR))
    covered = [
        [i.low <= value <= i.high for i, value in zip(curve_intervals(rng, 500, seed), truth, strict=True)]
        for seed in range(250)
    ]
    # The mean of 250 draws of a true 95 % strays by more than 4.2 points in 1 of 400 runs.
    assert (np.abs(np.mean(covered, axis=0) - 0.95) < 0.042).all(), np.mean(covered, axis=0)


def test_bootstrap_covers_a_score_of_estimates() -> None:
    rng = np.random.default_rng(1)
    intervals = [brier_interval(rng, 200, seed) for seed in range(600)]
    # Of calibrated p from Beta(2, 1) the expected score is E[p (1 - p)] = 1/6.
    covered = np.mean([i.low <= 1 / 6 <= i.high for i in intervals])
    assert abs(covered - 0.95) < 0.03, covered
