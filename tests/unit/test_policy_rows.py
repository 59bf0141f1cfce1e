"""From an outcome table to the rows on which a policy is judged: which rows, which weights, which estimates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from router_ml.catalog import Catalog
from router_ml.exploration import choice_probabilities
from router_ml.operating_points import OperatingPoints
from router_ml.policy import Policy
from router_ml.types import Estimates
from training.dataset import Dataset
from training.off_policy import Verdict
from training.off_policy.policy_report import OffPolicyReport, report_policy
from training.off_policy.policy_rows import NotJudged, PolicyRows, policy_rows

POINTS = OperatingPoints((0.9,), (5.0,), (0.8,), 0.9)


def gathered(data: Dataset, catalog: Catalog | None = None) -> tuple[np.ndarray, Policy, Estimates]:
    index = data.prompts_with_rows()
    p = np.tile(np.float32([0.4, 0.6, 0.7, 0.8]), (len(index), 1))
    unknown = np.full_like(p, np.nan)
    prices = dict(zip(data.models, (0.001, 0.004, 0.016, 0.064), strict=True))
    policy = Policy(catalog or Catalog.from_mean_costs(prices), data.models, POINTS)
    return index, policy, Estimates(p, unknown, unknown, unknown)


def changed(data: Dataset, **columns: np.ndarray) -> Dataset:
    return replace(data, rows=replace(data.rows, **columns))


@pytest.fixture
def partial(token_world: Callable) -> Dataset:
    return token_world(n=500, partial=True).data


def rows_of(data: Dataset, catalog: Catalog | None = None) -> PolicyRows:
    found = policy_rows(data, *gathered(data, catalog))
    assert isinstance(found, PolicyRows)
    return found


def test_every_metric_that_was_logged_is_judged_on_all_rows(partial: Dataset) -> None:
    found = rows_of(partial)
    assert list(found.metrics) == ["success", "cost_usd", "latency_ms"]
    assert len(found) == len(partial.rows)
    assert all(metric.rows.label_propensity is None and metric.reported == 1 for metric in found.metrics.values())
    assert found.metrics["success"].standard.higher_is_better
    assert not found.metrics["cost_usd"].standard.higher_is_better


def test_a_metric_that_is_seldom_reported_weighs_by_how_seldom(partial: Dataset) -> None:
    rows = partial.rows
    hidden = (rows.model == 3) & (np.arange(len(rows)) % 4 > 0)
    found = rows_of(changed(partial, success=np.where(hidden, np.nan, rows.success)))
    success, cost = found.metrics["success"], found.metrics["cost_usd"]
    assert success.rows.label_propensity is not None
    assert success.rows.label_propensity[rows.model == 3].mean() == pytest.approx(0.25, abs=0.12)
    assert success.rows.label_propensity[rows.model == 0].mean() > 0.85
    assert success.reported == pytest.approx(1 - hidden.mean())
    assert cost.rows.label_propensity is None
    assert any(line.startswith("success was reported of") for line in found.rests_on)


def test_rows_without_a_propensity_were_not_the_policys_choice(partial: Dataset) -> None:
    fallback = np.arange(len(partial.rows)) < 100
    found = rows_of(changed(partial, propensity=np.where(fallback, np.nan, partial.rows.propensity)))
    assert len(found) == len(partial.rows) - 100


def test_too_few_rows_are_not_judged(partial: Dataset) -> None:
    seldom = np.where(np.arange(len(partial.rows)) < 10, partial.rows.propensity, np.nan)
    data = changed(partial, propensity=seldom)
    assert policy_rows(data, *gathered(data)) == NotJudged("only 10 requests have a propensity; 30 are needed")


def test_models_that_are_not_sold_get_their_mean_logged_cost_and_no_traffic(partial: Dataset) -> None:
    catalog = Catalog.from_mean_costs({name: 0.01 for name in partial.models[:3]})
    cost = rows_of(partial, catalog).metrics["cost_usd"].rows
    logged = partial.rows.cost_usd[partial.rows.model == 3].mean()
    assert cost.q[:, 3] == pytest.approx(logged)
    assert (cost.target[:, 3] == 0).all()


def test_the_policy_that_serves_decides_who_is_judged(partial: Dataset) -> None:
    index, policy, estimates = gathered(partial)
    target = choice_probabilities(policy, estimates)
    chosen = policy.column[policy.choose(estimates).chosen]
    assert (target.argmax(axis=1) == chosen).all()
    assert (target.sum(axis=1) == 1).all()
    found = policy_rows(partial, index, policy, estimates)
    assert isinstance(found, PolicyRows)
    assert (found.metrics["success"].rows.target.argmax(axis=1) == chosen[found.at]).all()


def test_cost_per_success_is_the_ratio_of_the_two(partial: Dataset) -> None:
    report = report_policy(partial, *gathered(partial))
    assert isinstance(report, OffPolicyReport)
    assert report.success and report.cost_usd and report.cost_per_success_usd
    assert report.cost_per_success_usd.value == pytest.approx(report.cost_usd.value / report.success.value)
    base = report.cost_usd.baseline.estimate / report.success.baseline.estimate
    assert report.cost_per_success_usd.baseline.estimate == pytest.approx(base)
    assert report.cost_per_success_usd.low < report.cost_per_success_usd.value < report.cost_per_success_usd.high


def test_a_champion_takes_the_place_of_the_logging_policy(partial: Dataset) -> None:
    index, policy, estimates = gathered(partial)
    same = choice_probabilities(policy, estimates)
    report = report_policy(partial, index, policy, estimates, baseline=("champion", same))
    assert isinstance(report, OffPolicyReport)
    assert report.baseline == "champion"
    assert report.decides_otherwise == 0
    assert report.success and report.success.verdict is Verdict.NO_DIFFERENT
