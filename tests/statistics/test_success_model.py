"""What is fitted recovers a known truth, and nothing learns from what it is judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from router_ml.catalog import Catalog
from router_ml.operating_points import OperatingPoints
from router_ml.policy import Policy
from router_ml.types import Estimates, Rule
from training.calibrate import fit_calibration
from training.cost import fit_input_ratio, fit_magnitude
from training.dataset import Dataset
from training.fit import LINEAR_GRID, FitSettings, fit_success
from training.metrics import calibration_error
from training.operating import Outcomes, fill_outcomes, fit_operating_points
from training.trees import TreeSettings

SETTINGS = FitSettings(linear=LINEAR_GRID[5], trees=TreeSettings(n_threads=1))


def halves(data: Dataset) -> tuple[Dataset, np.ndarray]:
    """Rows of the first two thirds of the prompts, and the indices of the rest."""
    n = len(data.prompts)
    return data.where(data.rows.prompt < 2 * n // 3), np.arange(2 * n // 3, n)


def predictions(fit: Any, data: Dataset, index: np.ndarray) -> np.ndarray:
    logits = fit.model.linear.logits(data.prompts, index)
    return fit.model.probabilities(logits, fit.model.features_of(logits, data.prompts, index))


@pytest.mark.parametrize("partial", [False, True], ids=["every model on every prompt", "one model per prompt"])
def test_probabilities_follow_the_truth_and_are_calibrated(token_world: Callable[..., Any], partial: bool) -> None:
    world = token_world(n=9000 if partial else 3000, seed=1, partial=partial)
    train, rest = halves(world.data)
    fit = fit_success(train, vocabulary=world.vocabulary, settings=SETTINGS)
    p, truth = predictions(fit, world.data, rest), world.truth[rest]
    assert np.corrcoef(p.ravel(), truth.ravel())[0, 1] > 0.85
    assert np.abs(p - truth).mean() < 0.09
    drawn = (np.random.default_rng(0).random(truth.shape) < truth).astype(float)
    assert calibration_error(p.ravel(), drawn.ravel()) < 0.035


def test_a_model_with_three_outcomes_shrinks_to_what_all_share(token_world: Callable[..., Any]) -> None:
    world = token_world(n=1500, seed=2)
    rows = world.data.rows
    few = np.flatnonzero(rows.model == 3)[:3]
    kept = (rows.model != 3) | np.isin(np.arange(len(rows)), few)
    success = rows.success.copy()
    success[few] = 0.0
    data = replace(world.data, rows=replace(rows, success=success)).where(kept)
    fit = fit_success(data, vocabulary=world.vocabulary, settings=SETTINGS)
    p = predictions(fit, data, np.arange(1500))
    others = p[:, :3].mean(axis=1)
    assert 0.15 < p[:, 3].mean() < others.mean()  # three failures lower it, and do not condemn it
    assert np.corrcoef(p[:, 3], others)[0, 1] > 0.9  # what is hard for the others is hard for it


def test_scores_that_later_layers_learn_from_never_saw_the_outcome_of_their_own_prompt(
    token_world: Callable[..., Any],
) -> None:
    world = token_world(n=600, seed=3)
    rows = world.data.rows
    before = fit_success(world.data, vocabulary=world.vocabulary, settings=SETTINGS)
    flipped = np.where(rows.prompt == 7, 1 - rows.success, rows.success)
    changed = replace(world.data, rows=replace(rows, success=flipped))
    after = fit_success(changed, vocabulary=world.vocabulary, settings=SETTINGS)
    column = 1 + 12 + 7 + 1  # `logit`, behind the columns of the prompt
    own = slice(7 * 4, 8 * 4)
    assert np.array_equal(before.rows.of(slice(None))[own, column], after.rows.of(slice(None))[own, column])
    assert not np.array_equal(before.rows.of(slice(None))[:, column], after.rows.of(slice(None))[:, column])


def test_fitting_twice_gives_the_same_model(token_world: Callable[..., Any]) -> None:
    world = token_world(n=500, seed=4)
    first, second = (fit_success(world.data, vocabulary=world.vocabulary, settings=FitSettings()) for _ in range(2))
    assert np.array_equal(
        predictions(first, world.data, np.arange(500)), predictions(second, world.data, np.arange(500))
    )


def test_calibration_straightens_scores_and_leaves_few_outcomes_alone() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (6000, 2))
    truth = 1 / (1 + np.exp(-(0.5 * logits + 0.7)))
    success = (rng.random(logits.shape) < truth).astype(float)
    count = np.ones_like(success)
    count[8:, 1] = 0
    success[8:, 1] = np.nan
    found = fit_calibration(logits, success, count)
    assert found.slope[0] == pytest.approx(0.5, abs=0.05)
    assert found.offset[0] == pytest.approx(0.7, abs=0.08)
    assert found.slope[1] == pytest.approx(found.slope[0], abs=0.1)  # eight outcomes follow the pool


def test_expected_tokens_are_right_in_the_mean_and_unknown_stays_unknown(token_world: Callable[..., Any]) -> None:
    world = token_world(n=3000, seed=5)
    train, rest = halves(world.data)
    fit = fit_success(train, vocabulary=world.vocabulary, settings=SETTINGS)
    model = fit_magnitude(train, train.rows.output_tokens, fit, SETTINGS.trees)
    features = fit.model.features(world.data.prompts, rest)
    predicted = model.predict(features, 1)
    actual, _ = world.data.cells(world.data.rows.output_tokens)
    actual = actual[rest]
    assert predicted.mean(axis=0) == pytest.approx(actual.mean(axis=0), rel=0.05)
    by_mean = np.abs(actual - actual.mean(axis=0)).sum()
    assert np.abs(actual - predicted).sum() < 0.9 * by_mean
    unknown = fit_magnitude(train, np.full(len(train.rows), np.nan), fit, SETTINGS.trees)
    assert np.isnan(unknown.predict(features, 1)).all()
    assert fit_input_ratio(train) == pytest.approx((1.2,) * 4, rel=1e-6)


def test_doubly_robust_outcomes_are_unbiased_where_the_mean_of_what_was_seen_is_not(
    token_world: Callable[..., Any],
) -> None:
    errors, naive_errors = [], []
    for seed in range(12):
        world = token_world(n=1500, seed=100 + seed, partial=True)
        index = np.arange(1500)
        wrong = np.full(world.truth.shape, 0.5)  # estimates that are wrong everywhere
        filled = fill_outcomes(world.data, index, wrong, np.ones_like(wrong)).success
        seen, _ = world.data.cells(world.data.rows.success)
        errors.append(filled.mean(axis=0) - world.truth.mean(axis=0))
        naive_errors.append(np.nanmean(seen, axis=0) - world.truth.mean(axis=0))
    bias, spread = np.mean(errors, axis=0), np.std(errors, axis=0) / np.sqrt(12)
    assert (np.abs(bias) < 4 * spread + 0.02).all()
    assert np.abs(np.mean(naive_errors, axis=0)).max() > 0.02


def test_the_operating_point_keeps_the_target_on_fresh_prompts_on_average() -> None:
    rng = np.random.default_rng(0)
    catalog = Catalog.from_mean_costs({"small": 0.001, "large": 0.01})
    policy = Policy(catalog, ("small", "large"), OperatingPoints((1.0,), (0.0,), (1.0,), 1.0))

    def draw(n: int) -> tuple[Estimates, np.ndarray]:
        hard = rng.normal(size=(n, 1))
        p = 1 / (1 + np.exp(-(np.array([0.5, 2.0]) - 1.5 * hard)))
        nothing = np.full(p.shape, np.nan, np.float32)
        return Estimates(p.astype(np.float32), nothing, nothing, nothing), (rng.random(p.shape) < p).astype(float)

    kept: dict[Rule, list[float]] = {Rule.PROMISE: [], Rule.THRESHOLD: []}
    cost = np.array([0.001, 0.01])
    for _ in range(40):
        estimates, success = draw(1500)
        outcomes = Outcomes(success, np.tile(cost, (1500, 1)), "full information")
        for rule in Rule:
            points = fit_operating_points(policy, estimates, outcomes, default_target=0.95, rule=rule)
            fresh, truth = draw(1500)
            chosen = Policy(catalog, policy.models, points).choose(fresh, quality_target=0.95).chosen
            kept[rule].append(truth[np.arange(1500), chosen].mean() / truth[:, 1].mean())
            assert (chosen == 0).mean() > 0.2  # and it does save something
    for values in kept.values():
        assert np.mean(values) == pytest.approx(0.955, abs=0.02)
