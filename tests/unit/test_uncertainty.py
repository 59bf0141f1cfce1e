"""The second graph: what it reckons, and that it knows where the first is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from router_ml.bundle import open_session
from router_ml.errors import GateError
from router_ml.heads import deviations
from training.dataset import Dataset
from training.export import check_uncertainty
from training.fit import FitSettings, SuccessFit, fit_success
from training.linear import LinearSettings
from training.trees import TreeSettings
from training.uncertainty import Uncertainty, fit_uncertainty, uncertainty_graph

SETTINGS = FitSettings(linear=LinearSettings(scale=0.7, own_scale=1.0), trees=TreeSettings(n_threads=1))
N, FITTED = 3600, 2700


@pytest.fixture(scope="module")
def thin(token_world: Callable[..., Any]) -> tuple[Any, Dataset]:
    """A partial log in which the last model has few outcomes, and model 3 none in segment 2."""
    world = token_world(n=N, m=5, seed=1, partial=True)
    rows = world.data.rows
    rng = np.random.default_rng(0)
    few = (rows.model == 4) & (rng.random(len(rows)) < 0.95)
    hole = (rows.model == 3) & (world.data.prompts.segment[rows.prompt] == 2)
    return world, world.data.where(~few & ~hole & (rows.prompt < FITTED))


@pytest.fixture(scope="module")
def fitted(thin: tuple[Any, Dataset]) -> tuple[SuccessFit, Uncertainty]:
    world, data = thin
    fit = fit_success(data, vocabulary=world.vocabulary, settings=SETTINGS)
    return fit, fit_uncertainty(data.prompts, fit, len(data.segments))


def test_it_is_large_where_the_estimates_are_wrong(
    thin: tuple[Any, Dataset], fitted: tuple[SuccessFit, Uncertainty]
) -> None:
    world, data = thin
    fit, uncertainty = fitted
    rest = np.arange(FITTED, N)
    logits = fit.model.linear.logits(data.prompts, rest)
    p = fit.model.probabilities(logits, fit.model.features_of(logits, data.prompts, rest))
    truth = world.truth[rest]
    error = np.log(p / (1 - p)) - np.log(truth / (1 - truth))
    deviation = uncertainty.deviations(data.prompts, rest)
    fifth = np.quantile(deviation, [0.2, 0.8])
    low, high = (np.sqrt((error[part] ** 2).mean()) for part in (deviation < fifth[0], deviation > fifth[1]))
    assert high > 1.4 * low
    by_model, of_model = deviation.mean(axis=0), np.sqrt((error**2).mean(axis=0))
    assert by_model.argmax() == of_model.argmax() == 4
    hole = data.prompts.segment[rest] == 2
    assert deviation[hole, 3].mean() > 2 * deviation[~hole, 3].mean()


def test_it_is_the_posterior_of_the_features_that_it_keeps(
    thin: tuple[Any, Dataset], fitted: tuple[SuccessFit, Uncertainty]
) -> None:
    _, data = thin
    fit, uncertainty = fitted
    prompts, at = data.prompts, fit.index
    segment_scale = SETTINGS.linear.own_scale * SETTINGS.linear.segment_scale  # type: ignore[union-attr]

    def phi(index: np.ndarray) -> np.ndarray:
        known = np.hstack([prompts.embedding[index], prompts.side[index]]).astype(np.float64)
        member = segment_scale * np.eye(len(data.segments) + 1)[prompts.segment[index]]
        return np.hstack([known @ uncertainty.place + uncertainty.offset, member])

    shown, slope = np.arange(FITTED, FITTED + 50), fit.model.calibration.slope
    expected = []
    for j in range(5):
        weight = fit.count[:, j] * fit.p_success[:, j] * (1 - fit.p_success[:, j]) * slope[j] ** 2
        precision = np.eye(phi(at).shape[1]) + phi(at).T @ (phi(at) * weight[:, None])
        variance = np.einsum("nk,kl,nl->n", phi(shown), np.linalg.inv(precision), phi(shown))
        expected.append(slope[j] * np.sqrt(variance))
    assert uncertainty.deviations(prompts, shown) == pytest.approx(np.array(expected).T, rel=1e-4)


def test_more_outcomes_of_a_model_leave_less_of_it(thin: tuple[Any, Dataset]) -> None:
    world, data = thin
    half = data.where(data.rows.prompt % 2 == 0)
    spread = []
    for each in (half, data):
        fit = fit_success(each, vocabulary=world.vocabulary, settings=SETTINGS)
        spread.append(fit_uncertainty(each.prompts, fit, 3).deviations(data.prompts, np.arange(FITTED, N)).mean(axis=0))
    assert (spread[1] < spread[0]).all()


def test_the_graph_says_what_the_model_says(thin: tuple[Any, Dataset], fitted: tuple[SuccessFit, Uncertainty]) -> None:
    _, data = thin
    _, uncertainty = fitted
    graph, index, prompts = uncertainty_graph(uncertainty), np.arange(200), data.prompts
    found = deviations(open_session(graph), prompts.embedding[:200], prompts.side[:200], prompts.segment[:200])
    assert found.dtype == np.float32 and found.shape == (200, 5)
    assert found == pytest.approx(uncertainty.deviations(prompts, index), rel=1e-5)
    check_uncertainty(graph, uncertainty, prompts, index)
    with pytest.raises(GateError, match="uncertainty differs from its model by"):
        check_uncertainty(graph, replace(uncertainty, dense=uncertainty.dense * 1.01), prompts, index)
