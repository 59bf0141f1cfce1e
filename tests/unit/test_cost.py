from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from training.cost import MagnitudeModel, fit_input_ratio, fit_magnitude
from training.dataset import Dataset
from training.fit import LINEAR_GRID, FitSettings, SuccessFit, fit_success
from training.magnitude_report import report_magnitude
from training.trees import TreeSettings

TREES = TreeSettings(n_threads=1, n_trees=30)


@pytest.fixture(scope="module")
def data(token_world: Callable[..., Any]) -> Dataset:
    return token_world(n=400, seed=2).data


@pytest.fixture(scope="module")
def fit(data: Dataset) -> SuccessFit:
    return fit_success(data, vocabulary=81, settings=FitSettings(linear=LINEAR_GRID[0], trees=TREES))


@pytest.fixture(scope="module")
def features(fit: SuccessFit) -> np.ndarray:
    """Every model's row of every prompt."""
    return fit.rows.of(slice(None))


def known_only(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.where(known, values, np.nan)


def test_the_mean_of_each_model_is_right(data: Dataset, fit: SuccessFit, features: np.ndarray) -> None:
    tokens = data.rows.output_tokens
    model = fit_magnitude(data, tokens, fit, TREES)
    assert model.booster is not None
    means = [tokens[data.rows.model == j].mean() for j in range(4)]
    assert model.predict(features, 1).mean(axis=0) == pytest.approx(means, rel=0.03)


def test_expected_tokens_beat_the_mean_of_each_model_on_prompts_not_seen(token_world: Callable[..., Any]) -> None:
    data = token_world(n=1500, seed=6).data
    train, test = data.where(data.rows.prompt < 1000), data.where(data.rows.prompt >= 1000)
    fitted = fit_success(train, vocabulary=81, settings=FitSettings(linear=LINEAR_GRID[0], trees=TREES))
    model = fit_magnitude(train, train.rows.output_tokens, fitted, TREES)
    index = np.arange(1000, 1500)
    predicted = model.predict(fitted.model.features(data.prompts, index), 1)
    actual, _ = test.cells(test.rows.output_tokens)
    means = train.model_means(train.rows.output_tokens)
    found = report_magnitude("output_tokens", data.models, actual[index], predicted, means)
    assert found is not None
    assert found.deviance_saved.low > 0.2
    assert found.estimates.relative_error < 0.8 * found.model_means.relative_error
    assert found.ratio.estimate == pytest.approx(1, abs=0.03)


def test_longer_prompts_are_expected_to_take_longer_answers(
    data: Dataset, fit: SuccessFit, features: np.ndarray
) -> None:
    predicted = fit_magnitude(data, data.rows.output_tokens, fit, TREES).predict(features, 1)
    assert np.corrcoef(np.log(predicted[:, 1]), data.prompts.n_tokens)[0, 1] > 0.7


def test_a_model_without_values_gets_the_mean_of_all_before_trees(
    data: Dataset, fit: SuccessFit, features: np.ndarray
) -> None:
    tokens = np.where(data.rows.model < 2, 100.0 * (1 + data.rows.model), np.nan)
    few = known_only(tokens, data.rows.prompt < 50)
    model = fit_magnitude(data, few, fit, TREES)
    assert model.booster is None  # fewer than 200 values
    assert model.level[2:] == pytest.approx([150, 150])
    assert model.level[:2] == pytest.approx([100 + 50 * 5 / 55, 200 - 50 * 5 / 55])
    assert model.predict(features, 1) == pytest.approx(np.tile(model.level, (400, 1)))


def test_what_no_log_told_is_unknown_for_every_model(data: Dataset, fit: SuccessFit, features: np.ndarray) -> None:
    model = fit_magnitude(data, np.full(len(data.rows), np.nan), fit, TREES)
    assert np.isnan(model.predict(features, 1)).all()
    assert model.predict(features, 1).shape == (400, 4)


def test_values_that_are_all_zero_are_expected_to_stay_so(data: Dataset, fit: SuccessFit, features: np.ndarray) -> None:
    model = fit_magnitude(data, np.zeros(len(data.rows)), fit, TREES)
    assert model.predict(features, 1) == pytest.approx(np.zeros((400, 4)), abs=1e-6)


def test_a_model_whose_values_are_all_zero_does_not_stop_the_others(
    data: Dataset, fit: SuccessFit, features: np.ndarray
) -> None:
    tokens = np.where(data.rows.model == 0, 0.0, data.rows.output_tokens)
    means = fit_magnitude(data, tokens, fit, TREES).predict(features, 1).mean(axis=0)
    assert means[0] < 0.1 * means[1]


def test_the_unit_of_the_value_does_not_matter(data: Dataset, fit: SuccessFit, features: np.ndarray) -> None:
    small, large = (
        fit_magnitude(data, data.rows.output_tokens * unit, fit, TREES).predict(features, 1) for unit in (1, 1e4)
    )
    assert large == pytest.approx(1e4 * small, rel=1e-3)


def test_a_level_scales_what_the_trees_say(features: np.ndarray) -> None:
    level = np.array([1.0, 10.0, np.nan, 5.0])
    assert MagnitudeModel(None, level).predict(features[:8], 1) == pytest.approx(np.tile(level, (2, 1)), nan_ok=True)


def with_input(data: Dataset, values: np.ndarray) -> Dataset:
    return replace(data, rows=replace(data.rows, input_tokens=values))


def test_the_input_ratio_is_that_of_each_models_own_tokenizer(data: Dataset) -> None:
    ratios = np.array([1.0, 1.5, 2.0, 0.5])
    own = data.prompts.n_tokens[data.rows.prompt]
    found = fit_input_ratio(with_input(data, own * ratios[data.rows.model]))
    assert found == pytest.approx(tuple(ratios), rel=0.1)


def test_few_rows_hardly_move_the_input_ratio_from_that_of_all(data: Dataset) -> None:
    own = data.prompts.n_tokens[data.rows.prompt] * np.where(data.rows.model == 3, 9.0, 1.0)
    found = fit_input_ratio(with_input(data, known_only(own, (data.rows.model < 3) | (data.rows.prompt < 2))))
    assert found[:3] == pytest.approx((1, 1, 1), abs=0.03)
    assert 1 < found[3] < 3


def test_without_logged_input_tokens_or_text_the_ratio_is_one(data: Dataset) -> None:
    assert fit_input_ratio(with_input(data, np.full(len(data.rows), np.nan))) == (1.0,) * 4
    p = data.prompts
    assert fit_input_ratio(replace(data, prompts=replace(p, n_tokens=np.full(len(p), np.nan)))) == (1.0,) * 4
