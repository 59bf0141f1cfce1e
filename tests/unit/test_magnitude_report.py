"""Expected tokens, cost and latency against what came."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from training.magnitude_report import MagnitudeReport, report_magnitude

MODELS = ("small", "large")


def world(n: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Values [n, 2] and their true means."""
    rng = np.random.default_rng(seed)
    means = np.array([100.0, 400.0]) * rng.lognormal(0, 0.5, (n, 1))
    return rng.gamma(4.0, means / 4.0), means


def judged(actual: np.ndarray, predicted: np.ndarray, means: Any = (113.0, 453.0)) -> MagnitudeReport:
    found = report_magnitude("output_tokens", MODELS, actual, predicted, np.array(means))
    assert found is not None
    return found


def test_true_means_beat_the_mean_of_each_model_beyond_noise_and_are_calibrated() -> None:
    found = judged(*world())
    assert found.n_values == 4000
    assert found.deviance_saved.low > 0.3
    assert found.ratio.low < 1 < found.ratio.high
    assert all(interval.low < 1 < interval.high for interval in found.ratio_by_model.values())
    assert found.estimates.relative_error < found.model_means.relative_error


def test_nothing_has_a_smaller_deviance_than_the_true_means() -> None:
    actual, means = world(20_000)
    best = judged(actual, means).estimates.deviance
    for other in (means * 0.9, means * 1.1, means * np.random.default_rng(1).lognormal(0, 0.1, means.shape)):
        assert judged(actual, other).estimates.deviance > best


def test_the_median_beats_the_mean_in_absolute_error_but_not_in_deviance() -> None:
    actual, means = world(20_000)
    mean, median = judged(actual, means), judged(actual, means * 0.918)  # of a gamma of shape 4
    assert median.estimates.relative_error < mean.estimates.relative_error
    assert median.estimates.deviance > mean.estimates.deviance


def test_estimates_that_are_a_tenth_too_high_show_in_the_ratio_of_every_model() -> None:
    actual, means = world()
    found = judged(actual, 1.1 * means)
    assert found.ratio.low > 1.05
    assert all(interval.low > 1.03 for interval in found.ratio_by_model.values())


def test_the_unit_does_not_change_what_has_none() -> None:
    actual, means = world()
    one, other = judged(actual, means), judged(1e-4 * actual, 1e-4 * means, np.array([113.0, 453.0]) * 1e-4)
    assert other.estimates.deviance == pytest.approx(one.estimates.deviance)
    assert other.deviance_saved.low == pytest.approx(one.deviance_saved.low)
    assert other.estimates.pinball_90 == pytest.approx(1e-4 * one.estimates.pinball_90)


def test_unknown_cells_count_nowhere() -> None:
    actual, means = world()
    holes, guesses = actual.copy(), means.copy()
    holes[::2, 0], guesses[::2, 0] = np.nan, 1e9
    found = judged(holes, guesses)
    assert found.n_values == 3000
    assert found.ratio.estimate == pytest.approx(1, abs=0.05)
    unpriced = means.copy()
    unpriced[:, 1] = np.nan
    assert set(judged(actual, unpriced).ratio_by_model) == {"small"}


def test_zeros_are_values_too() -> None:
    actual, means = world()
    actual[:50] = 0
    assert np.isfinite(judged(actual, means).estimates.deviance)


def test_too_few_values_or_none_but_zero_give_no_report() -> None:
    actual, means = world(20)
    one = np.where(np.arange(2) == 0, actual, np.nan)
    assert report_magnitude("cost_usd", MODELS, one, means, np.array([113.0, 453.0])) is None
    many = np.zeros((500, 2))
    assert report_magnitude("cost_usd", MODELS, many, many + 1, np.ones(2)) is None


def test_a_price_per_request_leaves_nothing_to_estimate() -> None:
    flat = np.tile([0.001, 0.02], (50, 1))
    assert report_magnitude("cost_usd", MODELS, flat, flat * (1 + 1e-7), np.array([0.001, 0.02])) is None


def test_a_report_is_plain_json() -> None:
    found = json.loads(json.dumps(judged(*world(100)).to_dict()))
    assert found["quantity"] == "output_tokens"
    assert set(found["ratio"]) == {"estimate", "low", "high", "level"}
