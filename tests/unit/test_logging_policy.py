"""The logging policy is found in what it did, and what rests on the estimate says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from training.dataset import Dataset
from training.logging_policy import _cross_fitted, estimate_propensities, without_certain_answers


def drawn(world: Any, policy: np.ndarray, seed: int = 0) -> tuple[Dataset, np.ndarray]:
    """One row per prompt by `policy` [n, m], its propensity not logged; and the true one [n]."""
    rng = np.random.default_rng(seed)
    n, m = policy.shape
    chosen = (rng.random((n, 1)) > policy.cumsum(axis=1)).sum(axis=1).clip(0, m - 1)
    rows = world.data.rows
    kept = chosen[rows.prompt] == rows.model
    data = world.data.where(kept)
    unknown = replace(data.rows, propensity=np.full(n, np.nan))
    return replace(data, rows=unknown), policy[np.arange(n), chosen]


def softmax(z: np.ndarray) -> np.ndarray:
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def by_segment_and_length(world: Any) -> np.ndarray:
    """A rule of thumb: each segment has its favourite, short prompts another; a fifth goes anywhere."""
    prompts = world.data.prompts
    favourite = np.where(prompts.n_tokens > 20, prompts.segment % 4, 0)
    return 0.2 / 4 + 0.8 * np.eye(4)[favourite]


def by_embedding(world: Any) -> np.ndarray:
    prompts = world.data.prompts
    return softmax(40 * prompts.embedding[:, :4].astype(float)) * 0.9 + 0.025


@pytest.fixture(scope="module")
def world(token_world: Callable[..., Any]) -> Any:
    return token_world(n=2500, seed=5)


@pytest.mark.parametrize("policy", [by_segment_and_length, by_embedding], ids=["rule of thumb", "by prompt"])
def test_the_logging_policy_is_recovered_from_what_it_chose(world: Any, policy: Callable[..., Any]) -> None:
    data, truth = drawn(world, policy(world))
    found = estimate_propensities(data)
    share = np.bincount(data.rows.model) / len(data.rows)
    by_share = np.abs(share[data.rows.model] - truth).mean()
    assert np.abs(found.propensity - truth).mean() < 0.5 * by_share
    assert found.estimated.all() and found.calibration_error is not None and found.calibration_error < 0.03
    # Weights by the estimate add up to what those by the truth do: one sample of all prompts per model.
    assert np.bincount(data.rows.model, 1 / found.propensity) / len(data.rows) == pytest.approx(1, abs=0.2)


def test_a_uniform_policy_is_seen_as_one(world: Any) -> None:
    data, truth = drawn(world, np.full((2500, 4), 0.25))
    found = estimate_propensities(data)
    assert np.abs(found.propensity - truth).mean() < 0.03


def test_a_row_does_not_tell_its_own_propensity(token_world: Callable[..., Any]) -> None:
    world = token_world(n=600, seed=6)
    data, _ = drawn(world, by_segment_and_length(world))
    before = estimate_propensities(data).propensity
    model = data.rows.model.copy()
    model[7] = (model[7] + 1) % 4
    changed = replace(data, rows=replace(data.rows, model=model))
    p = np.stack([_cross_fitted(each, 0)[7] for each in (data, changed)])
    # It moves by the two numbers of calibration alone, not by a fit that saw the row.
    assert np.abs(p[0] - p[1]).max() < 0.005
    assert np.array_equal(estimate_propensities(data).propensity, before)


def test_a_model_is_eligible_between_its_first_and_last_row(world: Any) -> None:
    policy = np.full((2500, 4), 0.25)
    policy[:1250] = (1 / 3, 1 / 3, 1 / 3, 0)
    data, truth = drawn(world, policy)
    timed = replace(data, rows=replace(data.rows, time_us=1_000_000 * data.rows.prompt))
    found = estimate_propensities(timed)
    early = timed.rows.prompt < 1250
    assert found.propensity[early].mean() == pytest.approx(1 / 3, abs=0.02)
    assert found.propensity[~early].mean() == pytest.approx(1 / 4, abs=0.02)
    assert np.abs(found.propensity - truth).mean() < 0.03


def test_logged_propensities_stay_and_only_the_others_are_marked(world: Any) -> None:
    data, truth = drawn(world, by_segment_and_length(world))
    half = np.arange(len(truth)) % 2 == 0
    mixed = replace(data, rows=replace(data.rows, propensity=np.where(half, truth, np.nan)))
    found = estimate_propensities(mixed)
    assert np.array_equal(found.propensity[half], truth[half]) and np.array_equal(found.estimated, ~half)
    assert "50% of the rows are not logged but estimated" in found.basis
    assert np.isnan(found.logged(mixed).rows.propensity).sum() == (~half).sum()
    whole = estimate_propensities(replace(data, rows=replace(data.rows, propensity=truth)))
    assert whole.basis == "" and not whole.estimated.any() and whole.calibration_error is None


def test_overlap_is_diagnosed(world: Any) -> None:
    prompts = world.data.prompts
    policy = np.where(prompts.segment[:, None] == 1, [0.999, 0.001, 0, 0], [0.4, 0.3, 0.3, 0.0])
    data, truth = drawn(world, policy)
    found = estimate_propensities(replace(data, rows=replace(data.rows, propensity=truth))).overlap
    assert found is not None
    assert found.smallest == truth.min()
    alone = data.prompts.segment[data.rows.prompt] == 1
    assert found.share_without == pytest.approx(alone.mean(), abs=0.005) and found.some
    assert found.without_by_segment["segment-0"] > 0.99 and found.without_by_segment["segment-1"] == 0
    assert ("segment-0", "model-3") in found.never and ("segment-1", "model-3") in found.never
    w = 1 / truth[data.rows.model == 1]
    assert found.effective_sample_size["model-1"] == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert "never called" in found.line() and "without overlap" in found.line()


def test_a_full_information_table_has_no_propensities_whatever_it_says(world: Any) -> None:
    plain = estimate_propensities(world.data)
    assert np.isnan(plain.propensity).all() and plain.overlap is None and plain.lines() == []
    ones = replace(world.data, rows=replace(world.data.rows, propensity=np.ones(len(world.data.rows))))
    found = estimate_propensities(ones)
    assert np.isnan(found.propensity).all() and not found.estimated.any()
    assert found.ignored.startswith("propensity 1 on 10,000 rows of prompts that several models answered is none")
    cleaned, note = without_certain_answers(ones)
    assert np.isnan(cleaned.rows.propensity).all() and note == found.ignored


def test_certain_choices_of_one_model_each_stay_and_leave_no_overlap(world: Any) -> None:
    data, _ = drawn(world, np.full((2500, 4), 0.25))
    sure = replace(data, rows=replace(data.rows, propensity=np.ones(len(data.rows))))
    found = estimate_propensities(sure)
    assert (found.propensity == 1).all() and found.ignored == ""
    assert found.overlap is not None and not found.overlap.some


def test_few_rows_are_enough_for_frequencies(token_world: Callable[..., Any]) -> None:
    small = token_world(n=12, seed=1)
    data, _ = drawn(small, np.full((12, 4), 0.25))
    found = estimate_propensities(data)
    assert ((found.propensity > 0) & (found.propensity <= 1)).all()
