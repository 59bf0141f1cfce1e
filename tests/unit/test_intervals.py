"""The bootstrap draws prompts, keeps pairs together, and says when it cannot tell."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from training.intervals import Interval, Weights, bootstrap


def mean_of(values: np.ndarray) -> Callable[[Weights], np.ndarray]:
    return lambda weights: weights @ values / weights.sum(axis=1)


def test_estimate_is_the_figure_of_the_sample_itself() -> None:
    values = np.random.default_rng(0).normal(size=50)
    [interval] = bootstrap(mean_of(values), 50, repeats=200)
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low < interval.estimate < interval.high


def test_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).normal(size=400)
    [interval] = bootstrap(mean_of(values), 400, repeats=4000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval.high - interval.estimate == pytest.approx(half, rel=0.1)
    assert interval.estimate - interval.low == pytest.approx(half, rel=0.1)


def test_a_difference_on_the_same_prompts_is_paired() -> None:
    rng = np.random.default_rng(2)
    a = rng.normal(scale=10.0, size=200)
    b = a + 0.1 + rng.normal(scale=0.01, size=200)
    first, second = mean_of(a), mean_of(b)
    [paired] = bootstrap(lambda weights: second(weights) - first(weights), 200, repeats=500)
    assert paired.excludes_zero
    assert paired.high - paired.low < 0.01


def test_several_figures_share_the_same_resamples() -> None:
    values = np.random.default_rng(3).random(60)
    figure = mean_of(values)
    one, twice = bootstrap(lambda w: np.stack([figure(w), 2 * figure(w)], axis=1), 60, repeats=300)
    assert (twice.estimate, twice.low, twice.high) == pytest.approx((2 * one.estimate, 2 * one.low, 2 * one.high))


def test_the_seed_decides_the_draws() -> None:
    values = np.random.default_rng(4).random(40)
    whole = bootstrap(mean_of(values), 40, repeats=101, seed=7)
    assert bootstrap(mean_of(values), 40, repeats=101, seed=7) == whole
    assert bootstrap(mean_of(values), 40, repeats=101, seed=8) != whole


def test_many_prompts_come_in_bounded_batches() -> None:
    rows: list[int] = []

    def record(weights: Weights) -> np.ndarray:
        assert weights.nbytes <= 32_000_000
        rows.append(len(weights))
        return np.zeros(len(weights))

    bootstrap(record, 40_000, repeats=101)
    assert rows == [1, 100, 1]


def test_every_resample_has_n_prompts() -> None:
    seen: list[Weights] = []

    def record(weights: Weights) -> np.ndarray:
        seen.append(weights)
        return weights[:, 0].astype(float)

    bootstrap(record, 30, repeats=50)
    weights = np.concatenate(seen)
    assert weights.shape == (51, 30)
    assert (weights.sum(axis=1) == 30).all()
    assert (weights[0] == 1).all()


def test_never_counts_as_infinite_and_unknown_as_cannot_tell() -> None:
    def at_times(value: float) -> Callable[[Weights], np.ndarray]:
        return lambda weights: np.where(weights[:, 0] == 0, value, 0.5)

    [never] = bootstrap(at_times(math.inf), 10, repeats=200)
    assert (never.low, never.high) == (0.5, math.inf)
    [unknown] = bootstrap(at_times(math.nan), 10, repeats=200)
    assert math.isnan(unknown.low) and math.isnan(unknown.high)
    assert not unknown.excludes_zero
    assert str(unknown) == "0.5 [cannot tell]"


def test_interval_reads_as_a_person_expects() -> None:
    assert str(Interval(0.84211, 0.8351, 0.849)) == "0.8421 [0.8351, 0.849]"
    assert Interval(-2.0, -3.0, -1.0).excludes_zero
    assert not Interval(1.0, -0.1, 2.0).excludes_zero


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="n >= 2"):
        bootstrap(lambda weights: weights[:, 0], 1)
    with pytest.raises(ValueError, match="one row for each"):
        bootstrap(lambda weights: np.zeros(3), 5)
