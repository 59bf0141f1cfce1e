"""What decided where requests went, and which outcomes were reported, does not decide what is learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from training.dataset import Dataset
from training.fit import LINEAR_GRID, FitSettings, SuccessFit, fit_success
from training.selection import choose_correction, stabilised
from training.trees import TreeSettings

SETTINGS = FitSettings(linear=LINEAR_GRID[2], trees=TreeSettings(n_threads=1, n_trees=0))


def logged(world: Any, policy: np.ndarray, success: np.ndarray, seed: int) -> Dataset:
    """One row per prompt by `policy` [n, m], of outcomes [n, m]."""
    rng = np.random.default_rng([seed, 9])
    n, m = policy.shape
    chosen = (rng.random((n, 1)) > policy.cumsum(axis=1)).sum(axis=1).clip(0, m - 1)
    rows = world.data.rows
    data = world.data.where(chosen[rows.prompt] == rows.model)
    at = np.arange(n), chosen
    return replace(data, rows=replace(data.rows, success=success[at], propensity=policy[at]))


def fit(world: Any, data: Dataset, weight: np.ndarray | None = None) -> SuccessFit:
    return fit_success(data, vocabulary=world.vocabulary, settings=SETTINGS, weight=weight)


def means(world: Any, fitted: SuccessFit) -> np.ndarray:
    """Mean estimate of each model over all prompts."""
    index = np.arange(len(world.data.prompts))
    logits = fitted.model.linear.logits(world.data.prompts, index)
    return fitted.model.probabilities(logits, fitted.model.features_of(logits, world.data.prompts, index)).mean(axis=0)


def confounded(world: Any, seed: int) -> tuple[Dataset, np.ndarray]:
    """A hidden difficulty that no feature tells decides success, and sends hard prompts to the abler models."""
    rng = np.random.default_rng([seed, 8])
    hidden = rng.normal(size=(len(world.truth), 1))
    odds = np.log(world.truth / (1 - world.truth)) - 1.5 * hidden
    truth = 1 / (1 + np.exp(-odds))
    lean = np.exp(np.clip(1.2 * hidden * np.linspace(-1, 1, 4), -6, 6))
    policy = 0.9 * lean / lean.sum(axis=1, keepdims=True) + 0.1 / 4
    return logged(world, policy, (rng.random(truth.shape) < truth).astype(float), seed), truth


def test_weights_are_found_to_be_needed_where_a_hidden_cause_chose_and_take_most_of_its_bias_away(
    token_world: Callable[..., Any],
) -> None:
    bias, left = [], []
    for seed in range(2):
        world = token_world(n=2000, seed=seed)
        data, truth = confounded(world, seed)
        found = choose_correction(data, vocabulary=world.vocabulary, settings=SETTINGS)
        assert found.weight is not None and "better out of fold" in found.reason
        bias.append(means(world, fit(world, data)) - truth.mean(axis=0))
        left.append(means(world, fit(world, data, found.weight)) - truth.mean(axis=0))
    assert np.abs(np.mean(bias, axis=0))[[0, 3]].min() > 0.08
    assert np.abs(np.mean(left, axis=0)).max() < 0.4 * np.abs(np.mean(bias, axis=0)).max()


def test_no_weights_where_the_features_tell_what_chose(token_world: Callable[..., Any]) -> None:
    taken = 0
    for seed in range(2):
        world = token_world(n=800, seed=50 + seed)
        rng = np.random.default_rng([seed, 7])
        lean = np.exp(2 * world.truth)
        policy = 0.9 * lean / lean.sum(axis=1, keepdims=True) + 0.1 / 4
        data = logged(world, policy, (rng.random(world.truth.shape) < world.truth).astype(float), seed)
        taken += choose_correction(data, vocabulary=world.vocabulary, settings=SETTINGS).weight is not None
    assert taken == 0


def test_an_even_policy_and_an_unknown_one_are_not_corrected(token_world: Callable[..., Any]) -> None:
    world = token_world(n=400, seed=1)
    data = logged(world, np.tile([0.1, 0.2, 0.3, 0.4], (400, 1)), world.truth, 0)
    found = choose_correction(data, vocabulary=world.vocabulary, settings=SETTINGS)
    assert found.weight is None and "even" in found.reason
    unknown = replace(data, rows=replace(data.rows, propensity=np.full(len(data.rows), np.nan)))
    assert choose_correction(unknown, vocabulary=world.vocabulary, settings=SETTINGS).reason == ""


def test_stabilised_weights_make_a_models_rows_a_sample_of_all_prompts() -> None:
    rng = np.random.default_rng(0)
    n = 200_000
    hard = rng.random(n)
    policy = np.stack([0.1 + 0.8 * hard, 0.9 - 0.8 * hard], axis=1)
    model = (rng.random(n) > policy[:, 0]).astype(np.int64)
    propensity = policy[np.arange(n), model]
    weight = stabilised(propensity, model, 2, clip=np.inf)
    for j in range(2):
        own = model == j
        assert hard[own].mean() != pytest.approx(0.5, abs=0.05)
        assert np.average(hard[own], weights=weight[own]) == pytest.approx(0.5, abs=0.01)
        w = 1 / propensity[own]
        assert weight[own].sum() == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert stabilised(propensity, model, 2, clip=1.0).max() <= 1.3
    unknown = stabilised(np.full(n, np.nan), model, 2, clip=3.0)
    assert (unknown == 1).all()
