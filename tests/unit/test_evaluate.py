"""Figures of a version on held-out outcomes, on tables small enough to know the answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from router_ml.catalog import Catalog, Model, Offer
from router_ml.operating_points import OperatingPoints
from router_ml.types import Estimates
from training.evaluate import EvaluationReport, Held, SegmentMeans, evaluate, segment_means
from training.report import evaluation_lines

MODELS = ("small", "large")
COSTS = {"small": 0.001, "large": 0.01}
POINTS = OperatingPoints((0.9, 1.0), (20.0, None), (0.9, None), 0.9)


def estimates(p: np.ndarray) -> Estimates:
    nothing = np.full(p.shape, np.nan, dtype=np.float32)
    return Estimates(p.astype(np.float32), nothing, nothing, nothing)


def table(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """`small` fails on every fourth prompt, `large` never; costs are as priced."""
    success = np.ones((n, 2))
    success[::4, 0] = 0.0
    return success, np.tile(list(COSTS.values()), (n, 1))


def judged(
    p: np.ndarray,
    success: np.ndarray,
    cost: np.ndarray,
    catalog: Catalog | None = None,
    points: OperatingPoints = POINTS,
) -> EvaluationReport:
    n, m = success.shape
    baseline = SegmentMeans(
        np.tile(np.nanmean(success, axis=0), (2, 1)), np.array(list(COSTS.values()) + [0.1] * (m - 2))
    )
    names = (*MODELS, "other")[:m]
    held = Held(success, cost, np.ones(n, dtype=np.int64))
    return evaluate(catalog or Catalog.from_mean_costs(COSTS), names, points, estimates(p), held, baseline).report


def test_a_router_that_knows_saves_all_that_can_be_saved() -> None:
    success, cost = table()
    comparison = judged(success, success, cost).comparison
    assert comparison is not None
    assert comparison.best_model == "large"
    router, oracle = comparison.figures["router"], comparison.figures["oracle"]
    assert router.cost_share_100 == pytest.approx((0.75 * 0.001 + 0.25 * 0.01) / 0.01)
    assert router.cost_share_100 == pytest.approx(oracle.cost_share_100)
    assert comparison.figures["random mix"].cost_share_100 == pytest.approx(1.0)
    assert comparison.aiq_gain["random mix"].low > 0


def test_a_router_that_knows_nothing_is_no_better_than_mixing() -> None:
    success, cost = table()
    comparison = judged(np.tile([0.75, 1.0], (200, 1)), success, cost).comparison
    assert comparison is not None
    assert comparison.figures["router"].aiq == pytest.approx(comparison.figures["single-model hull"].aiq, abs=1e-6)


def test_a_quality_target_is_judged_at_the_operating_point_that_serving_uses() -> None:
    success, cost = table()
    comparison = judged(success, success, cost).comparison
    assert comparison is not None
    at_90, at_100 = comparison.targets
    # Lambda 20 asks 0.18 of success for the nine tenths of a cent between the two.
    assert at_90.traffic == {"small": 0.75, "large": 0.25}
    assert at_90.quality_kept == pytest.approx(1.0)
    assert at_90.cost_usd_per_1000 == pytest.approx(0.75 * 1 + 0.25 * 10)
    assert (at_90.reached_in_tuning, at_100.reached_in_tuning) == (True, False)


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_promised_figures_stand_beside_the_plug_in_ones_whichever_is_in_force(confidence: float | None) -> None:
    success, cost = table()
    points = replace(POINTS, confidence=confidence, promised_willingness=(1e6, None), promised_thresholds=(0.0, None))
    comparison = judged(success, success, cost, points=points).comparison
    assert comparison is not None
    at_90, at_100 = comparison.targets
    assert at_90.cost_usd_per_1000 == pytest.approx(0.75 * 1 + 0.25 * 10)
    # At such a lambda only the cheaper model is ever worth its price.
    assert at_90.promised is not None
    assert at_90.promised.cost_share == pytest.approx(0.1)
    assert at_90.promised.quality_kept == pytest.approx(0.75)
    assert at_100.promised is None
    assert comparison.confidence == (confidence or 0.95)
    assert comparison.promise_in_force == (confidence is not None)


def test_logs_of_one_model_per_prompt_cannot_tell() -> None:
    success, cost = table()
    success[np.arange(200), np.arange(200) % 2] = np.nan
    report = judged(np.tile([0.75, 1.0], (200, 1)), success, cost)
    assert report.comparison is None
    assert any(note.startswith("cannot tell") for note in report.notes)
    assert report.calibration is not None
    assert report.calibration.n_outcomes == 200


def test_a_few_texts_that_repeat_by_chance_are_no_sample_of_the_traffic() -> None:
    success, cost = table()
    success[np.arange(200), np.arange(200) % 2] = np.nan
    success[:8] = 1.0
    assert judged(np.tile([0.75, 1.0], (200, 1)), success, cost).comparison is None


def test_a_missing_cost_is_priced_by_the_catalog_and_said_so() -> None:
    success, cost = table()
    cost[:50, 1] = np.nan
    report = judged(success, success, cost)
    assert report.comparison is not None
    assert report.comparison.best_cost_usd_per_1000 == pytest.approx(10)
    assert any("50 outcomes have no logged cost (large)" in note for note in report.notes)


def test_models_that_cannot_be_compared_are_named_and_targets_are_not_judged_without_them() -> None:
    success, cost = table()
    third = np.full((200, 1), np.nan)
    third[:40] = 1.0
    success, cost = np.hstack([success, third]), np.hstack([cost, np.full((200, 1), 0.1)])
    catalog = Catalog.from_mean_costs(COSTS | {"other": 0.1})
    report = judged(np.nan_to_num(success, nan=0.5), success, cost, catalog)
    assert report.comparison is not None
    assert report.comparison.models == MODELS
    assert report.comparison.targets == ()
    assert any(note.startswith("not compared") and note.endswith("other") for note in report.notes)


def test_segment_means_shrink_to_the_models_mean_and_an_unknown_segment_gets_it() -> None:
    success = np.array([[1.0], [1.0], [0.0], [0.0]])
    means = segment_means(success, np.ones((4, 1)), np.array([1, 1, 2, 2]), n_segments=3)
    overall = (2 + 0.5) / 5
    assert means[0, 0] == pytest.approx(overall)
    assert means[1, 0] == pytest.approx((2 + 10 * overall) / 12)
    assert means[2, 0] == pytest.approx(10 * overall / 12)
    assert means[3, 0] == pytest.approx(overall)


def test_expected_tokens_and_cost_are_judged_where_they_were_logged() -> None:
    success, cost = table()
    rng = np.random.default_rng(5)
    tokens = rng.gamma(4.0, 25.0, success.shape)
    cost *= rng.permuted(np.tile([0.5, 1.5], 100)[:, None].repeat(2, axis=1), axis=0)
    held = Held(success, cost, np.ones(200, dtype=np.int64), output_tokens=tokens)
    baseline = SegmentMeans(np.ones((2, 2)), np.array(list(COSTS.values())), output_tokens=np.array([100.0, 100.0]))
    expected = replace(estimates(success), output_tokens=np.full(success.shape, 50, dtype=np.float32))
    report = evaluate(Catalog.from_mean_costs(COSTS), MODELS, POINTS, expected, held, baseline).report
    found = {magnitude.quantity: magnitude for magnitude in report.magnitudes}
    assert set(found) == {"output_tokens", "cost_usd"}
    assert found["output_tokens"].ratio.estimate == pytest.approx(200 * 2 * 50 / tokens.sum())
    assert found["output_tokens"].deviance_saved.high < 0
    assert found["cost_usd"].ratio.estimate == pytest.approx(1)
    assert any(
        line.startswith("expected output tokens: ") and line.endswith("worse") for line in evaluation_lines(report)
    )


def test_expected_cost_counts_the_prefix_that_the_log_says_was_cached() -> None:
    success, _ = table()
    rng = np.random.default_rng(6)
    inputs = rng.uniform(1000.0, 4000.0, success.shape)
    prices = {"input_usd_per_mtok": 1.0, "cached_input_usd_per_mtok": 0.1, "output_usd_per_mtok": 1.0}
    offers = tuple(Offer(name, name, **prices) for name in MODELS)
    paid = (inputs - 800 + 800 * 0.1 + 10) * 1e-6
    held = Held(success, paid, np.ones(200, dtype=np.int64), cached_input_tokens=np.full(success.shape, 800.0))
    expected = replace(
        estimates(success),
        input_tokens=inputs.astype(np.float32),
        output_tokens=np.full(success.shape, 10, dtype=np.float32),
    )
    catalog = Catalog(tuple(Model(name) for name in MODELS), offers)
    baseline = SegmentMeans(np.ones((2, 2)), paid.mean(axis=0))
    (cost,) = evaluate(catalog, MODELS, POINTS, expected, held, baseline).report.magnitudes
    assert cost.quantity == "cost_usd"
    assert cost.ratio.estimate == pytest.approx(1, rel=1e-6)
