from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from router_ml.errors import InputError
from training.dataset import Dataset
from training.fit import LINEAR_GRID, FitSettings, SuccessFit, _boost, _folds, fit_success, without_prompts
from training.trees import TreeSettings, row_feature_names

TREES = TreeSettings(n_threads=1, n_trees=20)
SETTINGS = FitSettings(linear=LINEAR_GRID[2], trees=TREES)
LOGIT = row_feature_names(12).index("logit")


@pytest.fixture(scope="module")
def world(token_world: Callable[..., Any]) -> Any:
    return token_world(n=300, seed=1)


def fit(data: Dataset, settings: FitSettings = SETTINGS) -> SuccessFit:
    return fit_success(data, vocabulary=81, settings=settings)


def with_success(data: Dataset, success: np.ndarray) -> Dataset:
    return replace(data, rows=replace(data.rows, success=success))


def logits_of(fitted: SuccessFit) -> np.ndarray:
    return fitted.rows.of(slice(None))[:, LOGIT].reshape(len(fitted.index), -1)


def predicted(fitted: SuccessFit, data: Dataset) -> np.ndarray:
    index = np.arange(len(data.prompts))
    logits = fitted.model.linear.logits(data.prompts, index)
    return fitted.model.probabilities(logits, fitted.model.features_of(logits, data.prompts, index))


def test_scores_of_a_fold_do_not_depend_on_the_outcomes_of_that_fold(world: Any) -> None:
    data = world.data
    fold = _folds(data.prompts.prompt_id, SETTINGS.seed)
    before = logits_of(fit(data))
    for k in range(5):
        flipped = np.where(fold[data.rows.prompt] == k, 1 - data.rows.success, data.rows.success)
        after = logits_of(fit(with_success(data, flipped)))
        assert np.array_equal(before[fold == k], after[fold == k])
        assert not np.isclose(before[fold != k], after[fold != k]).all(axis=1).any()


def test_tree_scores_of_a_fold_do_not_depend_on_the_outcomes_of_that_fold(world: Any) -> None:
    success, count = world.data.cells(world.data.rows.success)
    fitted = fit(world.data)
    fold = _folds(world.data.prompts.prompt_id, SETTINGS.seed)
    _, before = _boost(fitted.rows, success, count, fold, TREES)
    _, after = _boost(fitted.rows, np.where(fold[:, None] == 2, 1 - success, success), count, fold, TREES)
    assert np.array_equal(before[fold == 2], after[fold == 2])
    assert not np.array_equal(before[fold != 2], after[fold != 2])


def test_equal_prompts_of_several_segments_share_a_fold() -> None:
    names = np.array([f"p{i % 40}" for i in range(200)])
    fold = _folds(names, seed=0)
    assert (fold.reshape(5, 40) == fold[:40]).all()
    assert np.bincount(fold[:40]).tolist() == [8] * 5


def test_folds_follow_the_seed() -> None:
    names = np.array([f"p{i}" for i in range(50)])
    assert np.array_equal(_folds(names, 1), _folds(names, 1))
    assert not np.array_equal(_folds(names, 1), _folds(names, 2))


def test_the_same_seed_gives_the_same_model_to_the_last_bit(world: Any) -> None:
    one, two, other = (predicted(fit(world.data, replace(SETTINGS, seed=s)), world.data) for s in (0, 0, 1))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_rows_of_unknown_success_teach_nothing(world: Any) -> None:
    rows = world.data.rows
    unknown = rows.prompt % 3 == 0
    silent = fit(with_success(world.data, np.where(unknown, np.nan, rows.success)))
    without = fit(world.data.where(~unknown))
    assert silent.index.tolist() == without.index.tolist() == [i for i in range(300) if i % 3]
    assert np.array_equal(predicted(silent, world.data), predicted(without, world.data))


def test_a_model_that_is_only_a_name_gets_finite_probabilities(world: Any) -> None:
    data = world.data.keep_models((*world.data.models, "never seen"))
    p = predicted(fit(data), data)
    assert ((p > 0.001) & (p < 0.999))[:, 4].all()


@pytest.mark.parametrize("n", [2, 3, 6, 50])
def test_few_prompts_are_fitted_without_trees(world: Any, n: int) -> None:
    data = world.data.where(world.data.rows.prompt < n)
    fitted = fit(data, FitSettings(trees=TREES))
    assert fitted.model.booster is None
    p = predicted(fitted, data)
    assert np.isfinite(p).all() and ((p > 0) & (p < 1)).all()


def test_one_distinct_prompt_is_refused_whatever_segments_sent_it(world: Any) -> None:
    p = world.data.prompts
    same = replace(world.data, prompts=replace(p, prompt_id=np.full(len(p), "p0")))
    with pytest.raises(InputError, match="1 distinct prompt"):
        fit(same)


def test_log_odds_of_a_model_are_of_its_mean_outcome_shrunk_to_that_of_all(world: Any) -> None:
    rows = world.data.rows
    success, few = np.where(rows.model == 0, 0.0, 1.0), (rows.model != 0) | (rows.prompt < 3)
    odds = fit(with_success(world.data, success).where(few)).model.model_log_odds
    plain = 900 / 903
    assert 1 / (1 + np.exp(-odds[0])) == pytest.approx(5 * plain / 8, rel=1e-5)
    assert (odds[1:] > odds[0] + 3).all()


def test_a_shrinkage_of_the_grid_is_chosen_and_more_outcomes_ask_for_no_more_of_it(
    token_world: Callable[..., Any],
) -> None:
    chosen = []
    for n in (40, 500):
        data = token_world(n=n, m=2, seed=3).data
        default = fit(data, FitSettings(trees=TREES)).model.linear
        same = [
            np.array_equal(default.grams, fit(data, replace(SETTINGS, linear=s)).model.linear.grams)
            for s in LINEAR_GRID
        ]
        assert sum(same) == 1
        chosen.append(LINEAR_GRID[same.index(True)].scale)
    assert chosen[0] <= chosen[1]


def test_rows_of_marked_cells_are_those_of_all_cells_in_order(world: Any) -> None:
    rows = fit(world.data).rows
    cells = np.random.default_rng(0).random(rows.logits.shape) < 0.3
    assert np.array_equal(rows.where(cells), rows.of(slice(None))[cells.ravel()])
    assert np.array_equal(rows.of(np.array([7, 2])), np.concatenate([rows.of(slice(7, 8)), rows.of(slice(2, 3))]))


@pytest.mark.parametrize("segments", [True, False])
def test_without_prompts_only_the_segment_if_anything_tells_prompts_apart(world: Any, segments: bool) -> None:
    found = fit(world.data, without_prompts(SETTINGS, segments=segments))
    every = np.arange(len(world.data.prompts))
    logits = found.model.linear.logits(world.data.prompts, every)
    p = found.model.probabilities(logits, found.model.features_of(logits, world.data.prompts, every))
    segment = world.data.prompts.segment
    within = [p[segment == k].std(axis=0).max() for k in np.unique(segment)]
    assert max(within) < 1e-9
    means = np.stack([p[segment == k][0] for k in np.unique(segment)])
    assert bool(means.std(axis=0).max() > 0.01) is segments
