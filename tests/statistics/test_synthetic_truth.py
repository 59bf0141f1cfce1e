"""What the simulated world says of itself must be what comes out of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from router_ml.types import Float64Array
from training.synthetic.prompts import Prompts
from training.synthetic.traffic import TrafficSettings, draw_traffic
from training.synthetic.world import World

UNLIKELY = 1e-4
"""A true claim fails a check by chance this rarely; seeds are fixed, so a passing check keeps passing."""


@pytest.fixture(scope="module")
def world() -> World:
    return World.create(7)


@pytest.fixture(scope="module")
def prompts(world: World) -> Prompts:
    return world.sample_prompts(6000)


def cost_share(world: World, prompts: Prompts, estimate: Float64Array, quality: float) -> float:
    """Least cost, as a share of the best single model's, of policies that weigh estimated success against cost."""
    success, cost = world.true_success(prompts), world.true_cost(prompts)
    best = success.mean(axis=0).argmax()
    rows, shares = np.arange(len(prompts)), [1.0]
    for willingness in np.geomspace(0.3, 3e4, 150):
        chosen = (estimate - willingness * cost).argmax(axis=1)
        if success[rows, chosen].mean() >= quality * success[:, best].mean():
            shares.append(cost[rows, chosen].mean() / cost[:, best].mean())
    return min(shares)


def test_success_comes_as_often_as_the_truth_says_for_single_prompts(world: World, prompts: Prompts) -> None:
    few, n_draws = prompts.take(np.arange(40)), 2000
    truth = world.true_success(few)
    rng = np.random.default_rng(1)
    hits = sum(world.sample_outcomes(few, rng).success for _ in range(n_draws))
    z = (hits - n_draws * truth) / np.sqrt(n_draws * truth * (1 - truth))
    likely = truth * (1 - truth) > 0.01  # where the normal approximation holds
    assert stats.chi2.sf((z[likely] ** 2).sum(), likely.sum()) > UNLIKELY
    assert np.abs(z[likely]).max() < stats.norm.isf(UNLIKELY / likely.sum())


def test_truth_is_calibrated_in_each_segment_and_model_of_a_log(world: World) -> None:
    for part in draw_traffic(world, TrafficSettings(days=1, requests_per_day=5000, full_information=True)):
        truth = part.world.true_success(part.prompts)
        for segment in range(4):
            rows = part.prompts.segment == segment
            excess = (part.outcomes.success - truth)[rows].sum(axis=0)
            z = excess / np.sqrt((truth * (1 - truth))[rows].sum(axis=0))
            assert np.abs(z).max() < stats.norm.isf(UNLIKELY)


def test_output_tokens_and_costs_have_the_means_that_the_truth_says(world: World, prompts: Prompts) -> None:
    rng = np.random.default_rng(2)
    drawn = [world.sample_outcomes(prompts, rng).output_tokens for _ in range(5)]
    ratio = np.mean(drawn, axis=0).mean(axis=0) / world.true_output_tokens(prompts).mean(axis=0)
    assert ratio == pytest.approx(1.0, abs=0.01)
    inputs = world.input_tokens(prompts)
    billed = np.mean([world.price(inputs, output) for output in drawn], axis=0)
    assert billed.mean(axis=0) == pytest.approx(world.true_cost(prompts).mean(axis=0), rel=0.01)


def test_models_are_chosen_as_often_as_propensities_say_in_each_segment(world: World) -> None:
    parts = list(draw_traffic(world, TrafficSettings(days=4, requests_per_day=4000)))
    for segment in range(4):
        expected, observed = np.zeros(8), np.zeros(8)
        for part in parts:
            rows = part.prompts.segment == segment
            expected += part.propensity[rows].sum(axis=0)
            observed += np.bincount(part.chosen[rows], minlength=8)
        assert stats.chisquare(observed, expected).pvalue > UNLIKELY


def test_weighting_by_propensity_recovers_the_value_of_another_policy(world: World) -> None:
    weighted, truth = [], []
    for part in draw_traffic(world, TrafficSettings(days=5, requests_per_day=4000)):
        rows = np.arange(len(part.prompts))
        success = part.world.true_success(part.prompts)
        hit = part.chosen[:, None] == np.arange(8)
        observed = part.outcomes.success[rows, part.chosen]
        weighted.append(hit / part.propensity * observed[:, None])
        truth.append(success)
    rows_of_models = np.concatenate(weighted)
    error = rows_of_models.mean(axis=0) - np.concatenate(truth).mean(axis=0)
    assert np.abs(error / (rows_of_models.std(axis=0) / np.sqrt(len(rows_of_models)))).max() < stats.norm.isf(UNLIKELY)


def test_the_turns_of_a_session_succeed_and_fail_together(world: World, prompts: Prompts) -> None:
    later = np.flatnonzero(prompts.turn > 0)
    hidden = prompts.hidden_difficulty
    assert np.corrcoef(hidden[later], hidden[later - 1])[0, 1] == pytest.approx(0.5, abs=0.1)
    assert stats.kstest(hidden[prompts.turn == 0], "norm").pvalue > UNLIKELY


@pytest.mark.parametrize("seed", [7, 8])
def test_models_spread_as_real_ones_do(seed: int) -> None:
    world = World.create(seed)
    prompts = world.sample_prompts(6000)
    success, cost = world.true_success(prompts).mean(axis=0), world.true_cost(prompts).mean(axis=0)
    assert 0.87 < success.max() < 0.93
    cheap = cost < 0.2 * cost[success.argmax()]
    assert cheap.sum() == 5
    assert ((success[cheap] > 0.5) & (success[cheap] < 0.8)).all()
    by_segment = [world.true_success(prompts.take(prompts.segment == s)).mean(axis=0) for s in range(4)]
    assert (by_segment[0][cheap] > by_segment[3][cheap] + 0.08).all()


@pytest.mark.parametrize("seed", [7, 8])
def test_knowing_the_text_pays_far_more_than_knowing_the_segment(seed: int) -> None:
    world = World.create(seed)
    prompts = world.sample_prompts(6000)
    success = world.true_success(prompts)
    table = np.array([success[prompts.segment == s].mean(axis=0) for s in range(4)])[prompts.segment]
    oracle = [cost_share(world, prompts, success, quality) for quality in (0.97, 0.99, 1.0)]
    visible = [cost_share(world, prompts, world.visible_success(prompts), quality) for quality in (0.97, 0.99)]
    by_segment = [cost_share(world, prompts, table, quality) for quality in (0.97, 0.99)]
    assert 0.06 < oracle[0] < 0.14
    assert 0.12 < oracle[1] < 0.27
    assert oracle[2] < 0.42
    assert visible[0] < 0.15 and visible[1] < 0.3
    assert by_segment[0] > 0.5 and by_segment[1] > 0.7
