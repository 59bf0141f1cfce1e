"""Known answers, worked by hand, and properties that any input must keep."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from training import metrics
from training.metrics import SweepPoints

unit = st.floats(0, 1, allow_subnormal=False)


def points_of(sweep: list[tuple[float, float]], models: list[tuple[float, float]]) -> SweepPoints:
    """Operating points from (cost, quality) pairs; the models stand cheapest first, best last."""
    cost, quality = np.array(sweep).T
    model_cost, model_quality = np.array(models).T
    return SweepPoints(cost, quality, model_cost, model_quality, 0, len(models) - 1)


@st.composite
def sweep_points(draw: st.DrawFn) -> SweepPoints:
    pairs = st.tuples(st.integers(0, 1000).map(lambda i: i / 1000), st.integers(0, 100).map(lambda i: i / 100))
    sweep = draw(st.lists(pairs, min_size=1, max_size=12))
    models = draw(st.lists(pairs, min_size=2, max_size=6))
    cost, quality = np.array(sweep).T
    model_cost, model_quality = np.array(models).T
    cheapest = int(np.lexsort((-model_quality, model_cost))[0])
    best = int(np.lexsort((model_cost, -model_quality))[0])
    return SweepPoints(cost, quality, model_cost, model_quality, cheapest, best)


# --- curves ---------------------------------------------------------------------------


def test_hull_keeps_only_vertices_that_mixing_cannot_beat() -> None:
    curve = metrics.hull(np.array([3.0, 1.0, 2.0, 4.0, 1.0]), np.array([0.8, 0.2, 0.4, 0.7, 0.1]))
    assert curve.cost.tolist() == [1.0, 3.0]
    assert curve.quality.tolist() == [0.2, 0.8]


def test_quality_is_linear_between_vertices_flat_after_and_unknown_before() -> None:
    curve = metrics.hull(np.array([1.0, 3.0]), np.array([0.2, 0.8]))
    assert curve.quality_at(np.array([2.0, 9.0])).tolist() == pytest.approx([0.5, 0.8])
    assert np.isnan(curve.quality_at(np.array([0.5]))).all()


def test_aiq_of_a_single_sweep_point() -> None:
    # (0, .4) to (1, .8) to (4, .8): (.6 * 1 + .8 * 3) / 4
    points = points_of([(1.0, 0.8)], [(0.0, 0.4), (4.0, 0.8)])
    assert metrics.aiq(points) == pytest.approx(0.75)


def test_aiq_of_single_models_is_the_mean_of_both_ends() -> None:
    points = points_of([(4.0, 0.8)], [(0.0, 0.4), (4.0, 0.8)])
    assert metrics.aiq(points) == pytest.approx(0.6)
    assert metrics.single_model_aiq(points) == pytest.approx(0.6)


def test_a_router_that_starts_late_mixes_with_the_cheapest_single_model() -> None:
    late = points_of([(3.0, 0.8)], [(1.0, 0.4), (5.0, 0.8)])
    assert metrics.router_curve(late).cost.tolist() == [1.0, 3.0]
    assert metrics.aiq(late) == pytest.approx((0.6 * 2 + 0.8 * 2) / 4)


def test_a_router_that_never_reaches_the_best_single_stays_flat() -> None:
    points = points_of([(1.0, 0.5)], [(1.0, 0.5), (3.0, 0.9)])
    assert metrics.aiq(points) == pytest.approx(0.5)
    assert metrics.cost_share(points, 0.99) is None


def test_aiq_is_the_height_where_cheapest_is_best() -> None:
    points = points_of([(0.5, 0.3), (2.0, 0.9)], [(1.0, 0.6), (1.0, 0.6)])
    assert metrics.aiq(points) == pytest.approx(0.6)


def test_cost_share_is_read_off_the_curve() -> None:
    points = points_of([(1.0, 0.8)], [(0.0, 0.4), (4.0, 0.8)])
    assert metrics.cost_share(points, 1.0) == pytest.approx(0.25)
    assert metrics.cost_share(points, 0.75) == pytest.approx(0.125)
    assert metrics.cost_share(points, 0.1) == pytest.approx(0.0)


def test_cost_share_is_one_when_the_best_model_is_free() -> None:
    assert metrics.cost_share(points_of([(0.0, 0.8)], [(0.0, 0.8), (0.0, 0.8)]), 0.99) == 1.0


def test_quality_at_a_cost_share_is_none_below_everything() -> None:
    points = points_of([(2.0, 0.8)], [(1.0, 0.4), (4.0, 0.8)])
    assert metrics.quality_at(points, 0.5) == pytest.approx(0.8)
    assert metrics.quality_at(points, 0.375) == pytest.approx(0.6)
    assert metrics.quality_at(points, 0.1) is None


@given(sweep_points())
def test_hull_rises_is_concave_and_lies_above_all_points(points: SweepPoints) -> None:
    curve = metrics.hull(points.cost, points.quality)
    assert (np.diff(curve.cost) > 0).all() and (np.diff(curve.quality) > 0).all()
    assert (np.diff(np.diff(curve.quality) / np.diff(curve.cost)) < 1e-9).all()
    assert (curve.quality_at(points.cost) >= points.quality - 1e-9).all()
    assert set(zip(curve.cost, curve.quality, strict=True)) <= set(zip(points.cost, points.quality, strict=True))


@given(sweep_points(), st.floats(0.001, 1000))
def test_aiq_does_not_depend_on_the_currency_or_the_order_of_points(points: SweepPoints, rate: float) -> None:
    other = SweepPoints(
        points.cost[::-1] * rate,
        points.quality[::-1],
        points.model_cost * rate,
        points.model_quality,
        points.cheapest,
        points.best,
    )
    assert metrics.aiq(other) == pytest.approx(metrics.aiq(points), abs=1e-6)


@given(sweep_points(), st.floats(0, 1), st.floats(0, 1))
def test_one_more_setting_never_lowers_a_curve(points: SweepPoints, cost: float, quality: float) -> None:
    more = SweepPoints(
        np.append(points.cost, cost),
        np.append(points.quality, quality),
        points.model_cost,
        points.model_quality,
        points.cheapest,
        points.best,
    )
    assert metrics.aiq(more) >= metrics.aiq(points) - 1e-9


@given(sweep_points())
def test_cost_share_and_quality_at_are_inverse(points: SweepPoints) -> None:
    share = metrics.cost_share(points, 0.9)
    if share is not None and points.model_cost[points.best] > 0:
        quality = metrics.quality_at(points, share * (1 + 1e-9))
        assert quality is not None
        assert quality >= 0.9 * points.model_quality[points.best] - 1e-6


# --- blocks and means -----------------------------------------------------------------


def test_operating_points_average_the_chosen_cells() -> None:
    success = np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.5], [1.0, 0.0]])
    cost = np.array([[1.0, 5.0], [1.0, 5.0], [2.0, 6.0], [2.0, 8.0]])
    points = metrics.sweep_points(success, cost, np.array([[0, 0, 0, 0], [1, 0, 1, 0]]))
    assert points.cost.tolist() == [1.5, 3.5]
    assert points.quality.tolist() == [0.5, 0.875]
    assert points.model_cost.tolist() == [1.5, 6.0]
    assert points.model_quality.tolist() == [0.5, 0.625]
    assert (points.cheapest, points.best) == (0, 1)


def test_resampled_points_equal_points_of_the_repeated_rows() -> None:
    rng = np.random.default_rng(0)
    success, cost = rng.random((30, 3)), rng.random((30, 3))
    choices = rng.integers(3, size=(4, 30))
    drawn = rng.integers(30, size=30)
    [resampled] = metrics.resampled_points(success, cost, choices, np.bincount(drawn, minlength=30)[None])
    direct = metrics.sweep_points(success[drawn], cost[drawn], choices[:, drawn])
    np.testing.assert_allclose(resampled.cost, direct.cost)
    np.testing.assert_allclose(resampled.quality, direct.quality)
    np.testing.assert_allclose(resampled.model_quality, direct.model_quality)


def test_resamples_keep_the_best_model_of_the_whole_sample() -> None:
    success = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    cost = np.ones((3, 2))
    weights = np.array([[0, 0, 3]])
    [points] = metrics.resampled_points(success, cost, np.zeros((1, 3), dtype=np.int64), weights)
    assert points.best == 1


def test_oracle_takes_the_cheapest_of_the_most_successful() -> None:
    success = np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.2, 0.4, 0.1]])
    cost = np.array([[1.0, 9.0, 3.0], [2.0, 1.0, 3.0], [1.0, 5.0, 1.0]])
    assert metrics.oracle_choices(success, cost).tolist() == [2, 1, 1]


@pytest.mark.parametrize(
    ("success", "cost", "choices", "message"),
    [
        (np.array([[math.nan, 1.0]]), np.ones((1, 2)), np.zeros((1, 1), int), "1 NaN cells"),
        (np.ones((1, 2)), np.array([[math.nan, math.nan]]), np.zeros((1, 1), int), "2 NaN cells"),
        (np.ones((2, 2)), np.ones((2, 3)), np.zeros((1, 2), int), "share a shape"),
        (np.ones((2, 2)), np.ones((2, 2)), np.zeros(2, int), "choices"),
    ],
)
def test_incomplete_blocks_are_refused(
    success: np.ndarray, cost: np.ndarray, choices: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.sweep_points(success, cost, choices)


def test_complete_block_leaves_out_the_model_with_holes_and_says_so() -> None:
    observed = np.ones((10, 4), dtype=bool)
    observed[:8, 1] = False
    observed[9, 3] = False
    block = metrics.complete_block(observed)
    assert block.rows.tolist() == list(range(9))
    assert block.columns.tolist() == [0, 2, 3]
    assert block.rows_left_out == 1
    assert block.columns_left_out.tolist() == [1]


def test_complete_block_prefers_two_models_to_one() -> None:
    observed = np.zeros((100, 3), dtype=bool)
    observed[:, 0] = True
    observed[:30, 1] = True
    assert metrics.complete_block(observed).columns.tolist() == [0, 1]


def test_complete_block_of_nothing_is_empty() -> None:
    block = metrics.complete_block(np.zeros((4, 2), dtype=bool))
    assert (block.rows.size, block.columns.size, block.rows_left_out) == (0, 0, 4)


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 5))))
def test_complete_block_is_complete_and_no_smaller_than_the_full_rows(observed: np.ndarray) -> None:
    block = metrics.complete_block(observed)
    assert observed[np.ix_(block.rows, block.columns)].all()
    assert block.rows.size * block.columns.size >= observed.all(axis=1).sum() * observed.shape[1]
    assert sorted([*block.columns, *block.columns_left_out]) == list(range(observed.shape[1]))


# --- two models -----------------------------------------------------------------------


def test_apgr_and_cpt_of_one_sweep_point() -> None:
    # Weak .4, strong .8; half the calls recover three quarters of the gap.
    points = points_of([(0.5, 0.7)], [(0.0, 0.4), (1.0, 0.8)])
    assert metrics.apgr(points) == pytest.approx(0.75 / 2 * 0.5 + (0.75 + 1) / 2 * 0.5)
    assert metrics.cpt(points, 0.5) == pytest.approx(1 / 3)
    assert metrics.cpt(points, 0.75) == pytest.approx(0.5)
    assert metrics.cpt(points, 1.0) == pytest.approx(1.0)


def test_random_mixing_recovers_half_of_the_gap() -> None:
    points = points_of([(0.25, 0.5), (0.75, 0.7)], [(0.0, 0.4), (1.0, 0.8)])
    assert metrics.apgr(points) == pytest.approx(0.5)
    assert metrics.cpt(points, 0.8) == pytest.approx(0.8)


def test_two_equal_models_have_no_gap_to_recover() -> None:
    points = points_of([(0.5, 0.5)], [(0.0, 0.5), (1.0, 0.5)])
    assert math.isnan(metrics.apgr(points))
    assert math.isnan(metrics.cpt(points, 0.5))


def test_calls_of_the_better_model_are_what_apgr_counts() -> None:
    success = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    calls = metrics.strong_model_calls(success)
    assert calls.tolist() == [[1.0, 0.0]] * 4
    points = metrics.sweep_points(success, calls, np.array([[0, 1, 1, 1]]))
    # One strong call of four brings .5 from .25 on the way to .75.
    assert metrics.cpt(points, 0.5) == pytest.approx(0.25)


def test_apgr_refuses_costs_that_are_not_calls() -> None:
    with pytest.raises(ValueError, match="strong_model_calls"):
        metrics.apgr(points_of([(0.5, 0.5)], [(0.1, 0.5), (2.0, 0.6)]))


# --- estimates ------------------------------------------------------------------------


def test_calibration_error_of_two_bins() -> None:
    p = np.array([0.1, 0.2, 0.8, 0.9])
    y = np.array([0.0, 1.0, 1.0, 1.0])
    # |.15 - .5| and |.85 - 1|, two rows each
    assert metrics.calibration_error(p, y, bins=2) == pytest.approx((0.35 + 0.15) / 2)


def test_equal_predictions_share_one_bin_whatever_their_order() -> None:
    p = np.full(100, 0.3)
    y = np.r_[np.ones(30), np.zeros(70)]
    table = metrics.reliability(p, y)
    assert table.count.tolist() == [100]
    assert metrics.calibration_error(p, y) == pytest.approx(0)


def test_bins_hold_equal_mass() -> None:
    p = np.random.default_rng(0).random(1500)
    assert set(metrics.reliability(p, p).count.tolist()) <= {99, 100, 101}


def test_proper_scores_of_known_rows() -> None:
    p, y = np.array([0.8, 0.4]), np.array([1.0, 0.0])
    assert metrics.brier(p, y) == pytest.approx((0.04 + 0.16) / 2)
    assert metrics.log_loss(p, y) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert metrics.log_loss(np.array([0.5]), np.array([0.25])) == pytest.approx(math.log(2))
    assert math.isfinite(metrics.log_loss(np.array([0.0, 1.0]), np.array([1.0, 0.0])))


def test_auc_counts_ordered_pairs_and_halves_ties() -> None:
    p = np.array([0.9, 0.5, 0.5, 0.1])
    assert metrics.auc(p, np.array([1.0, 1.0, 0.0, 0.0])) == pytest.approx(3.5 / 4)
    assert math.isnan(metrics.auc(p, np.ones(4)))


@given(arrays(float, 20, elements=unit), arrays(float, 20, elements=st.sampled_from([0.0, 1.0])))
def test_auc_equals_the_count_over_all_pairs(p: np.ndarray, y: np.ndarray) -> None:
    positive, negative = p[y == 1], p[y == 0]
    if not positive.size or not negative.size:
        assert math.isnan(metrics.auc(p, y))
        return
    above = (positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2
    assert metrics.auc(p, y) == pytest.approx(above)


def test_pinball_loss_is_least_at_the_quantile() -> None:
    actual = np.arange(101.0)
    losses = [metrics.pinball_loss(actual, np.full(101, guess), 0.9) for guess in range(101)]
    assert int(np.argmin(losses)) == 90
    assert metrics.pinball_loss(np.array([10.0]), np.array([6.0]), 0.9) == pytest.approx(3.6)


def test_relative_error_is_a_share_of_the_total() -> None:
    assert metrics.relative_error(np.array([10.0, 30.0]), np.array([12.0, 24.0])) == pytest.approx(0.2)
    assert math.isnan(metrics.relative_error(np.zeros(2), np.ones(2)))


def test_by_model_uses_known_rows_only() -> None:
    p = np.array([[0.5, 0.9, 0.1], [0.5, 0.8, 0.1]])
    y = np.array([[1.0, math.nan, math.nan], [0.0, 1.0, math.nan]])
    figures = metrics.by_model(metrics.brier, p, y)
    assert figures[:2].tolist() == pytest.approx([0.25, 0.04])
    assert math.isnan(figures[2])


def test_unknown_outcomes_are_refused_not_scored() -> None:
    with pytest.raises(ValueError, match="unknown rows"):
        metrics.brier(np.array([0.5]), np.array([math.nan]))
    with pytest.raises(ValueError, match="share a shape"):
        metrics.brier(np.array([0.5]), np.array([1.0, 0.0]))
