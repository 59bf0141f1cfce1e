"""Who is ahead: pairing, pooling, and what noise alone would show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.benchmark.contest import OURS, Beliefs, Round
from training.benchmark.standings import pooled, standing
from training.intervals import Interval
from training.metrics import brier, calibration_error
from training.verdict import Layer, Verdict

COST = np.array([0.1, 1.0, 4.0])


def beliefs_of(p: np.ndarray, success: np.ndarray) -> Beliefs:
    return Beliefs(brier(p.ravel(), success.ravel()), calibration_error(p.ravel(), success.ravel()), p)


def a_round(seed: int, n: int = 400, *, table: str = "toy", skill: float = 1.0, split: str = "seed 1") -> Round:
    """Three models; `ours` knows difficulty with `skill`, `rival` is `ours` again, `blind` knows nothing."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=n)[:, None]
    truth = 1 / (1 + np.exp(-(np.array([0.0, 0.8, 1.8]) - 2 * hard * np.array([1.0, 0.6, 0.1]))))
    success, cost = (rng.random(truth.shape) < truth).astype(float), np.tile(COST, (n, 1))
    blind = np.tile(truth.mean(axis=0), (n, 1))
    p = {OURS: skill * truth + (1 - skill) * blind, "rival": skill * truth + (1 - skill) * blind, "blind": blind}
    levels = np.concatenate([[0.0], np.geomspace(0.001, 100, 60)])
    zero = Interval(0.0, 0.0, 0.0)
    return Round(
        table=table,
        split=split,
        segment_known=True,
        rows=np.arange(n),
        success=success,
        cost_usd=cost,
        choices={name: np.stack([(q - level * cost).argmax(axis=1) for level in levels]) for name, q in p.items()},
        beliefs={name: beliefs_of(q, success) for name, q in p.items()},
        test=np.arange(n),
        outcomes=success,
        models=("a", "b", "c"),
        compared=("a", "b", "c"),
        seconds={OURS: 1.0},
        verdict=Verdict(True, Layer.ROUTER, "", n, "decision value", zero, zero),
    )


def test_a_contestant_against_its_like_gains_exactly_nothing() -> None:
    found, _ = standing([a_round(0)], 400)
    gain = found.lines["rival"].aiq_gain
    assert gain is not None and (gain.estimate, gain.low, gain.high) == (0.0, 0.0, 0.0)
    assert found.lines[OURS].aiq_gain is None


def test_knowing_the_prompt_is_ahead_of_knowing_nothing_and_cheaper() -> None:
    found, _ = standing([a_round(0)], 400)
    line = found.lines["blind"]
    assert line.aiq_gain is not None and line.aiq_gain.low > 0
    assert found.lines[OURS].cost_share_97 < line.cost_share_97
    assert found.best_baseline in ("rival", "blind")


def test_splits_that_share_prompts_are_not_taken_for_independent_ones() -> None:
    once, _ = standing([a_round(0)], 400)
    five_times, _ = standing([a_round(0, split=f"seed {k}") for k in range(5)], 400)
    one, five = once.lines["blind"].aiq_gain, five_times.lines["blind"].aiq_gain
    assert one is not None and five is not None
    assert (five.low, five.high) == pytest.approx((one.low, one.high))


def test_pooled_figures_weigh_each_table_the_same() -> None:
    small, large = a_round(1, n=200, table="small"), a_round(2, n=800, table="large", skill=0.5)
    parts = [standing([each], len(each.rows)) for each in (small, large)]
    together = pooled([each for each, _ in parts], [draws for _, draws in parts])
    for name in (OURS, "blind"):
        assert together.lines[name].aiq == pytest.approx(np.mean([each.lines[name].aiq for each, _ in parts]))
        assert together.lines[name].brier == pytest.approx(np.mean([each.lines[name].brier for each, _ in parts]))
    assert together.n_prompts == 1000


def test_what_noise_alone_would_show_is_what_a_calibrated_router_shows() -> None:
    found = [standing([a_round(seed, n=600)], 600)[0].calibration["b"] for seed in range(12)]
    assert np.mean([each.ece for each in found]) == pytest.approx(np.mean([each.by_chance for each in found]), rel=0.2)


def test_a_model_with_few_rows_gets_no_calibration_error_of_its_own() -> None:
    one = a_round(3, n=400)
    outcomes = one.outcomes.copy()
    outcomes[150:, 2] = np.nan
    assert set(standing([replace(one, outcomes=outcomes)], 400)[0].calibration) == {"a", "b"}
