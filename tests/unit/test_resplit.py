"""The study of promises counts what it says it counts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from router_ml.catalog import Catalog
from router_ml.operating_points import OperatingPoints
from router_ml.policy import Policy
from router_ml.types import Estimates, Rule
from training.evidence import Evidence
from training.promise import chosen_models, fix_paths, n_passing
from training.resplit import ResplitSettings, ResplitStudy, _n_passing, _parted, _Table, study_promise

PRICES = {"small": 0.001, "large": 0.01}
POLICY = Policy(Catalog.from_mean_costs(PRICES), tuple(PRICES), OperatingPoints((1.0,), (0.0,), (1.0,), 1.0))


def estimates(p: np.ndarray) -> Estimates:
    unknown = np.full(p.shape, np.nan, np.float32)
    return Estimates(p.astype(np.float32), unknown, unknown, unknown)


def world(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimates and outcomes, [n, 2]."""
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-(np.array([0.8, 2.0]) - 1.5 * rng.normal(size=(n, 1)))))
    return p, (rng.random(p.shape) < p).astype(float)


def study(p: np.ndarray, success: np.ndarray, settings: ResplitSettings) -> ResplitStudy:
    cost = np.tile(list(PRICES.values()), (len(p), 1))
    paths = fix_paths(POLICY, estimates(world(500, seed=1)[0]))
    return study_promise(POLICY, estimates(p), success, cost, paths, settings)


@pytest.fixture(scope="module")
def found() -> ResplitStudy:
    return study(*world(800, seed=0), ResplitSettings(quality_target=0.95, repeats=200))


def test_it_tests_as_training_does() -> None:
    p, success = world(300, seed=2)
    paths = fix_paths(POLICY, estimates(world(500, seed=1)[0]))
    chosen = chosen_models(POLICY, estimates(p), Rule.PROMISE, paths.willingness)
    own, cost = success[np.arange(300), chosen], np.ones((len(chosen), 300))
    table = _Table(success, np.ones((300, 2)), own, cost, own, cost)
    draws = np.random.default_rng(0).integers(300, size=(40, 200))
    order = np.random.default_rng(0).permutation(200)  # as `n_passing` takes its prompts
    settings = ResplitSettings(quality_target=0.93)
    expected = [
        n_passing(
            chosen[:, rows],
            Evidence(success[rows], success[rows], np.ones(200, bool), 1.0, ""),
            np.arange(2),
            0.93,
            0.05,
        )
        for rows in draws
    ]
    assert _n_passing(table, draws[:, order], settings).tolist() == expected
    assert len(set(expected)) > 3


def test_a_sequence_ends_at_its_first_failure_though_later_settings_would_pass() -> None:
    n, k = 300, 20
    success = np.column_stack([np.zeros(n), np.ones(n)])
    own = np.ones((k, n))
    own[3] = 0.0
    table = _Table(success, success, own, own, own, own)
    draws = np.random.default_rng(0).integers(n, size=(5, 200))
    assert _n_passing(table, draws, ResplitSettings()).tolist() == [3] * 5


def test_the_rest_is_every_prompt_that_did_not_set_the_point() -> None:
    draws = _parted(50, ResplitSettings(setting_share=0.3, repeats=4))
    for setting, judging in zip(draws.setting, draws.judging, strict=True):
        assert len(set(setting.tolist())) == 15
        assert sorted([*setting.tolist(), *np.flatnonzero(judging).tolist()]) == list(range(50))
        assert judging[judging > 0] == pytest.approx(1 / 35)


def test_where_nothing_is_promised_no_promise_is_broken() -> None:
    success = np.tile([0.0, 1.0], (200, 1))
    result = study(1 - success, success, ResplitSettings(quality_target=0.9, repeats=10))
    for each in result.rules:
        assert (each.promised.not_set, each.promised.broken.estimate, each.promised.quality_kept) == (1.0, 0.0, 0.0)


def test_both_rules_are_judged_both_ways(found: ResplitStudy) -> None:
    assert [(study.rule, study.judged_on) for study in found.rules] == [
        (rule, way) for rule in Rule for way in ("population", "rest")
    ]
    assert (found.n_prompts, found.n_models, found.n_setting) == (800, 2, 400)


def test_the_promise_holds_where_the_plug_in_breaks_and_costs_more(found: ResplitStudy) -> None:
    for study in found.rules:
        assert study.plug_in.broken.estimate > 0.25
        assert study.promised.broken.estimate < study.plug_in.broken.estimate / 2
        assert study.promised.cost_share > study.plug_in.cost_share
        assert study.promised.quality_kept > study.plug_in.quality_kept
        if study.judged_on == "population":
            assert study.promised.broken.low <= 0.05


def test_the_best_possible_is_the_cheapest_that_keeps_the_target_in_hindsight(found: ResplitStudy) -> None:
    for study in found.rules:
        assert found.best_possible[str(study.rule)] < study.promised.cost_share
        assert found.best_possible[str(study.rule)] == pytest.approx(study.plug_in.cost_share, abs=0.1)


def test_a_perfect_router_never_breaks_and_pays_what_it_must() -> None:
    success = np.ones((400, 2))
    success[::4, 0] = 0.0
    result = study(success, success, ResplitSettings(repeats=20))
    promise = result.rules[0].promised
    assert promise.broken.estimate == 0 and promise.not_set == 0
    assert promise.cost_share == pytest.approx(0.325, abs=0.02)
    assert promise.quality_kept == pytest.approx(1.0)


def test_where_nothing_can_be_promised_the_safest_setting_is_what_it_costs() -> None:
    p, success = world(40, seed=3)
    result = study(p, success, ResplitSettings(quality_target=1.0, repeats=20))
    promise = result.rules[0].promised
    assert promise.not_set == 1.0 and promise.broken.estimate == 0
    safest = chosen_models(POLICY, estimates(p), Rule.PROMISE, np.zeros(1))
    assert promise.cost_share == pytest.approx(np.array(list(PRICES.values()))[safest].mean() / PRICES["large"])


def test_a_seed_repeats_the_study(found: ResplitStudy) -> None:
    assert study(*world(800, seed=0), ResplitSettings(quality_target=0.95, repeats=200)) == found


def test_it_prints_for_a_person_and_for_a_program(found: ResplitStudy) -> None:
    data = json.loads(json.dumps(found.to_dict()))
    assert data["rules"][0]["promised"]["broken"]["estimate"] == found.rules[0].promised.broken.estimate
    lines = "\n".join(found.lines())
    assert "target 95% with 95 % confidence, 200 draws of 400 of 800 prompts, 2 models" in lines
    assert lines.count("promised: broken") == lines.count("plug-in: broken") == 4
