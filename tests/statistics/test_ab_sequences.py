"""Readings of A/B tests keep their promises on simulated tests of known truth: benchmarks/ab_study.py, cut short."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from training.ab.metrics import COST, FAILED
from training.ab.planning import Effect, plan_test
from training.synthetic.experiment import ExperimentSettings, draw_experiment


@pytest.fixture(scope="module")
def study() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "ab_study.py"
    spec = importlib.util.spec_from_file_location("ab_study", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ab_study"] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module


def at_most(share: float, n: int) -> float:
    """What a true share of n draws exceeds once in 1,000 times."""
    return float(share + 3.1 * np.sqrt(share * (1 - share) / n))


def test_equal_arms_are_seldom_called_different_at_any_of_thirty_looks(study: ModuleType) -> None:
    n = 200
    runs = [study.equal_arms(seed, study.AA, "first request") for seed in range(n)]
    for name, nominal in (("wrong_verdict", 0.05), ("sequence", 0.05), ("sequence_cost", 0.05), ("split", 0.01)):
        found = np.mean([getattr(run, name) for run in runs])
        assert found <= at_most(nominal, n), (name, found)
    # What looking every day does to a test that was made for one look.
    assert np.mean([run.t_test for run in runs]) > 0.18
    assert np.mean([run.last_look for run in runs]) <= at_most(0.05, n)


def test_the_true_effect_stays_inside_the_sequence_at_every_look(study: ModuleType) -> None:
    n = 120
    settings = replace(study.AA, success_effect=-0.02, cost_effect=-0.2, share=0.2, sessions_per_day=300)
    missed = np.mean([study.misses(seed, settings) for seed in range(n)], axis=0)
    assert (missed <= at_most(0.05, n)).all(), missed


def test_a_challenger_whose_errors_rise_by_five_points_is_stopped_within_the_stated_number(study: ModuleType) -> None:
    settings = ExperimentSettings(days=4, sessions_per_day=2000, base_success=0.99, success_effect=-0.05)
    needed = [study.requests_to_stop(seed, settings, FAILED) for seed in range(40)]
    assert np.mean(np.array(needed) <= 4500) >= 0.9, sorted(needed)


def test_a_broken_split_is_found_within_a_day_and_a_sound_one_is_not(study: ModuleType) -> None:
    rng = np.random.default_rng(0)
    assert study.split_found(rng, 0.5, 0.45, 10_000, 200, 0.005) >= 0.95
    assert study.split_found(rng, 0.5, 0.5, 10_000, 400, 0.005) <= at_most(0.005, 400)


def test_a_test_as_long_as_planned_sees_the_effect_that_was_planned_for(study: ModuleType) -> None:
    settings = ExperimentSettings(days=7, sessions_per_day=150)
    requests = study.requests_of(draw_experiment(np.random.default_rng(1), settings), settings)
    [need] = plan_test(requests, [Effect("cost_per_request", 0.15)], share=0.5).needs
    assert need.days is not None
    changed = replace(settings, days=need.days, cost_effect=-0.15)
    seen = np.mean([study.days_to_see(seed, changed, COST)[0] > 0 for seed in range(120)])
    # Power is planned for the last look alone and from one week, which knows the spread of costs to some 15 %.
    assert 0.7 <= seen <= 0.99, (need.days, seen)


def test_a_sound_test_of_equal_arms_is_seldom_distrusted_or_decided(study: ModuleType) -> None:
    n = 60
    found = [study.whole(seed, replace(study.AA, days=12)) for seed in range(n)]
    assert np.mean([bool(kinds) for _, kinds in found]) <= at_most(0.05, n)
    assert np.mean([action == "promote" or "harm" in action for action, _ in found]) <= at_most(0.05, n)
