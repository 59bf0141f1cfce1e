from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from router_ml.catalog import Catalog
from router_ml.features import no_text_side
from router_ml.operating_points import OperatingPoints
from router_ml.policy import Policy
from router_ml.types import Estimates, Rule
from training.dataset import Dataset, Prompts, Rows
from training.operating import Outcomes, fill_outcomes, fit_operating_points, willingness_grid

NAN = float("nan")
COSTS = {"small": 0.001, "large": 0.01}


def table(n: int, m: int, rows: Sequence[tuple[int, int, float, float, float]]) -> Dataset:
    """Rows of (prompt, model, success, propensity, cost)."""
    prompt, model, success, propensity, cost = np.array(rows, dtype=float).T
    r, none = len(rows), np.full(len(rows), np.nan)
    prompts = Prompts(
        prompt_id=np.array([f"p{i}" for i in range(n)]),
        ids=np.zeros(0, np.int32),
        start=np.zeros(n + 1, np.int64),
        embedding=np.ones((n, 1), np.float32),
        given=np.ones(n, bool),
        side=no_text_side(n),
        n_tokens=np.full(n, np.nan, np.float32),
        segment=np.zeros(n, np.int64),
    )
    index = prompt.astype(np.int64), model.astype(np.int64)
    rest = Rows(
        *index, success, cost, none, none, none, none, propensity, np.full(r, -1), np.full(r, ""), np.full(r, -1)
    )
    return Dataset(prompts, rest, tuple(f"m{j}" for j in range(m)), (), "")


def policy(prices: dict[str, float] = COSTS) -> Policy:
    return Policy(Catalog.from_mean_costs(prices), tuple(prices), OperatingPoints((1.0,), (0.0,), (1.0,), 1.0))


def estimates(p: np.ndarray) -> Estimates:
    unknown = np.full(p.shape, np.nan, np.float32)
    return Estimates(p.astype(np.float32), unknown, unknown, unknown)


def fitted(p: np.ndarray, success: np.ndarray, prices: dict[str, float] = COSTS, **options: Any) -> OperatingPoints:
    cost = np.tile(list(prices.values()), (len(p), 1))
    given = {"default_target": 0.95, "rule": Rule.PROMISE} | options
    return fit_operating_points(policy(prices), estimates(p), Outcomes(success, cost, ""), **given)


# -- filling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimate", [0.0, 0.3, 1.0])
def test_the_mean_over_all_draws_of_model_and_outcome_is_the_truth_whatever_the_estimate(estimate: float) -> None:
    truth, chance = np.array([0.2, 0.9, 0.5]), np.array([0.6, 0.1, 0.3])
    p = np.full((1, 3), estimate)
    expected = np.zeros(3)
    for model, success in product(range(3), (0.0, 1.0)):
        weight = chance[model] * (truth[model] if success else 1 - truth[model])
        filled = fill_outcomes(table(1, 3, [(0, model, success, chance[model], NAN)]), np.array([0]), p, p)
        expected += weight * filled.success[0]
        assert filled.basis == "doubly robust by logged propensities"
    assert expected == pytest.approx(truth)


def test_the_mean_of_what_was_seen_is_biased_under_a_policy_that_favours_easy_prompts() -> None:
    """Over seeds: hard prompts mostly go to the strong model, so its seen successes understate it."""
    naive, robust = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        easy = rng.random(400) < 0.5
        truth = np.where(easy[:, None], [0.9, 0.95], [0.2, 0.6])
        chance = np.where(easy, 0.15, 0.85)  # of the strong model
        model = (rng.random(400) < chance).astype(int)
        success = (rng.random(400) < truth[np.arange(400), model]).astype(float)
        propensity = np.where(model == 1, chance, 1 - chance)
        rows = list(zip(range(400), model, success, propensity, [NAN] * 400, strict=True))
        half = np.full((400, 2), 0.5)
        filled = fill_outcomes(table(400, 2, rows), np.arange(400), half, half).success
        robust.append(filled.mean(axis=0) - truth.mean(axis=0))
        naive.append([success[model == j].mean() - truth[:, j].mean() for j in (0, 1)])
    error = np.std(robust, axis=0) / np.sqrt(40)
    assert (np.abs(np.mean(robust, axis=0)) < 3.5 * error).all()
    assert np.mean(naive, axis=0)[0] > 0.15 and np.mean(naive, axis=0)[1] < -0.08


def test_several_draws_of_one_prompt_are_averaged() -> None:
    rows = [(0, 0, 1.0, 0.5, NAN), (0, 1, 0.0, 0.5, NAN), (0, 0, 0.0, 0.5, NAN)]
    filled = fill_outcomes(table(1, 2, rows), np.array([0]), np.full((1, 2), 0.4), np.ones((1, 2)))
    assert filled.success[0] == pytest.approx([0.4 + (1.2 - 0.8) / 3, 0.4 - 0.8 / 3])


def test_a_tiny_propensity_weighs_no_more_than_ten() -> None:
    filled = fill_outcomes(table(1, 2, [(0, 0, 1.0, 1e-6, NAN)]), np.array([0]), np.full((1, 2), 0.5), np.ones((1, 2)))
    assert filled.success[0] == pytest.approx([5.5, 0.5])


def test_without_propensities_what_was_seen_stays_and_estimates_fill_the_rest() -> None:
    rows = [(0, 0, 1.0, NAN, 0.2), (1, 1, 0.0, NAN, NAN), (2, 0, NAN, 0.5, 0.4)]
    index = np.array([2, 0, 1])
    p, price = np.full((3, 2), 0.7), np.full((3, 2), 0.9)
    filled = fill_outcomes(table(3, 2, rows), index, p, price)
    assert filled.success.tolist() == [[0.7, 0.7], [1.0, 0.7], [0.7, 0.0]]
    assert filled.cost_usd.tolist() == [[0.4, 0.9], [0.2, 0.9], [0.9, 0.9]]
    assert filled.basis.startswith("outcomes of 33.3%")


def test_only_prompts_with_a_propensity_are_corrected_by_it() -> None:
    rows = [(0, 0, 1.0, 0.5, NAN), (1, 0, 1.0, NAN, NAN), (2, 0, 1.0, 0.5, NAN)]
    filled = fill_outcomes(table(3, 2, rows), np.array([0, 1]), np.full((2, 2), 0.5), np.ones((2, 2)))
    assert filled.success.tolist() == [[1.5, 0.5], [1.0, 0.5]]
    assert filled.basis.startswith("outcomes of 50.0%")
    assert filled.where(np.array([False, True])).success.tolist() == [[1.0, 0.5]]


# -- operating points ---------------------------------------------------------------------------


def world(seed: int, n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-(np.array([0.5, 2.0]) - 1.5 * rng.normal(size=(n, 1)))))
    return p, (rng.random(p.shape) < p).astype(float)


@pytest.mark.parametrize("rule", list(Rule))
def test_each_target_is_kept_and_a_lower_one_costs_no_more(rule: Rule) -> None:
    p, success = world(0)
    points = fitted(p, success, rule=rule)
    best, spent = success.mean(axis=0).max(), []
    for target in points.quality_targets:
        level = points.willingness_for(target) if rule is Rule.PROMISE else points.threshold_for(target)
        assert level is not None
        chosen = policy().choose_at(estimates(p), rule, level).chosen
        assert success[np.arange(len(p)), chosen].mean() >= target * best - 1e-9
        spent.append(np.array(list(COSTS.values()))[chosen].mean())
    assert spent == sorted(spent)
    assert spent[0] < 0.6 * spent[-1]


def test_a_target_that_no_setting_reaches_has_none() -> None:
    p = np.tile([0.9, 0.1], (50, 1))  # estimates that prefer the worse model, whatever it costs
    success = np.tile([0.2, 1.0], (50, 1))
    points = fitted(p, success, targets=(0.1, 0.95))
    assert points.willingness[0] is not None and points.willingness[1] is None
    assert points.thresholds[1] is None


def test_the_full_target_is_reached_where_the_best_model_is_always_chosen() -> None:
    """Fractional outcomes, whose mean depends in its last bits on the order of summing."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        success = rng.random((333, 2)) * [0.3, 1] + [0, 0.3]
        p = np.tile([0.1, 0.9], (333, 1))
        points = fitted(p, success, targets=(1.0,))
        assert points.willingness[0] is not None and points.thresholds[0] is not None


def test_the_best_model_is_the_best_that_an_offer_sells() -> None:
    p = np.tile([0.6, 0.5, 0.99], (40, 1))
    sold = Policy(Catalog.from_mean_costs(COSTS), ("small", "large", "unsold"), policy().points)
    success = np.tile([0.6, 0.5, 1.0], (40, 1))
    points = fit_operating_points(
        sold, estimates(p), Outcomes(success, np.ones((40, 3)), ""), default_target=1.0, rule=Rule.PROMISE
    )
    assert None not in points.willingness


def test_the_unit_of_money_scales_the_willingness_and_not_the_choice() -> None:
    p, success = world(1)
    dollars = fitted(p, success)
    cents = fitted(p, success, {name: 100 * usd for name, usd in COSTS.items()})
    assert np.array(cents.willingness) * 100 == pytest.approx(np.array(dollars.willingness))
    assert cents.thresholds == dollars.thresholds


def test_the_points_carry_what_they_were_asked_for() -> None:
    points = fitted(*world(2), default_target=0.9, rule=Rule.THRESHOLD, targets=(0.9, 0.95))
    assert (points.default_target, points.rule, points.quality_targets) == (0.9, Rule.THRESHOLD, (0.9, 0.95))
    assert len(points.willingness) == len(points.thresholds) == 2


def test_the_sweep_runs_from_any_cost_to_nothing_but_cost() -> None:
    cost = np.array([[0.001, 0.01, np.nan, np.inf, 0.0]])
    grid = willingness_grid(cost)
    assert grid[0] == 0 and (np.diff(grid) > 0).all()
    assert grid[1] * 0.009 < 1e-3 and grid[-1] * 0.009 > 1e3
    assert np.isfinite(willingness_grid(np.full((2, 2), np.nan))).all()
