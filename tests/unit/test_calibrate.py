from __future__ import annotations

import numpy as np
import pytest

from training.calibrate import Calibration, fit_calibration


def drawn(truth: np.ndarray, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(truth.shape) < truth).astype(float)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-z)))


def nothing(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((n, m), np.nan), np.zeros((n, m))


def test_scores_without_any_outcome_stay_as_they_are() -> None:
    found = fit_calibration(np.ones((4, 2)), *nothing(4, 2))
    assert found.slope.tolist() == [1, 1] and found.offset.tolist() == [0, 0]
    assert found.apply(np.array([[0.0, 2.0]])) == pytest.approx(np.array([[0.5, sigmoid(np.array(2.0))]]))


def test_a_model_without_outcomes_takes_what_holds_for_all() -> None:
    logits = np.random.default_rng(1).normal(0, 2, (4000, 3))
    success, count = nothing(4000, 3)
    success[:, :2], count[:, :2] = drawn(sigmoid(0.5 * logits[:, :2] + 1)), 1
    found = fit_calibration(logits, success, count)
    assert found.slope[2] == pytest.approx(0.5, abs=0.05)
    assert found.offset[2] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("n", [3, 10, 30])
def test_few_outcomes_move_scores_little_and_more_move_them_more(n: int) -> None:
    logits = np.zeros((n, 1))
    found = fit_calibration(logits, np.ones((n, 1)), np.ones((n, 1)))
    assert found.slope[0] == pytest.approx(1)  # a score of zero says nothing of the slope
    more = fit_calibration(np.zeros((3 * n, 1)), np.ones((3 * n, 1)), np.ones((3 * n, 1)))
    assert 0 < found.offset[0] < n / 25
    assert found.offset[0] < more.offset[0]


@pytest.mark.parametrize(("slope", "shift"), [(0.5, 0.0), (0.1, 0.0), (1.0, -2.0), (0.3, -4.0), (3.0, 1.0)])
def test_scores_far_too_sure_or_far_off_are_put_right(slope: float, shift: float) -> None:
    logits = np.random.default_rng(2).normal(0, 1, (8000, 2)) / slope - shift / slope
    truth = sigmoid(slope * logits + shift)
    found = fit_calibration(logits, drawn(truth), np.ones_like(truth))
    assert np.abs(found.apply(logits) - truth).max() < 0.06


@pytest.mark.parametrize("offset", [2.0, 8.0])
def test_scores_that_say_nothing_come_down_to_the_mean(offset: float) -> None:
    logits = np.random.default_rng(3).normal(offset, 1, (6000, 2))
    success = drawn(np.full(logits.shape, 0.5))
    found = fit_calibration(logits, success, np.ones_like(success)).apply(logits)
    assert np.abs(found - 0.5).max() < 0.15
    assert found.mean(axis=0) == pytest.approx(success.mean(axis=0), abs=0.01)


def test_the_ranking_is_never_turned_round_and_the_mean_is_right_even_so() -> None:
    logits = np.random.default_rng(4).normal(3, 1, (6000, 2))
    success = drawn(sigmoid(3 - logits))
    found = fit_calibration(logits, success, np.ones_like(success))
    assert (found.slope > 0).all()
    assert found.apply(logits).mean(axis=0) == pytest.approx(success.mean(axis=0), abs=0.01)


def test_a_count_of_three_weighs_as_three_prompts() -> None:
    rng = np.random.default_rng(5)
    logits, success = rng.normal(size=(50, 2)), rng.random((50, 2))
    once = fit_calibration(logits, success, np.full((50, 2), 3.0))
    thrice = fit_calibration(np.tile(logits, (3, 1)), np.tile(success, (3, 1)), np.ones((150, 2)))
    assert once.slope == pytest.approx(thrice.slope, abs=1e-6)
    assert once.offset == pytest.approx(thrice.offset, abs=1e-6)


def test_each_model_gets_its_own_pair() -> None:
    logits = np.random.default_rng(6).normal(0, 2, (8000, 2))
    truth = sigmoid(logits * [0.5, 1.5] + [1, -1])
    found = fit_calibration(logits, drawn(truth), np.ones_like(truth))
    assert found.slope == pytest.approx([0.5, 1.5], rel=0.08)
    assert found.offset == pytest.approx([1, -1], abs=0.1)


def test_every_model_is_scaled_by_its_own_column() -> None:
    found = Calibration(np.array([1.0, 2.0]), np.array([0.0, 1.0])).apply(np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert found == pytest.approx(sigmoid(np.array([[0, 1], [1, 3]])))
