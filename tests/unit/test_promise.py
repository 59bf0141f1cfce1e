"""Promised operating points on worlds whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from router_ml.catalog import Catalog
from router_ml.features import no_text_side
from router_ml.operating_points import OperatingPoints
from router_ml.policy import Policy
from router_ml.types import Estimates, Rule
from training.dataset import Dataset, Prompts, Rows
from training.evidence import Evidence, gather_evidence
from training.promise import Paths, chosen_models, find_promise, fix_paths, n_passing, needed_prompts

PRICES = {"small": 0.001, "middle": 0.003, "large": 0.01}
POLICY = Policy(Catalog.from_mean_costs(PRICES), tuple(PRICES), OperatingPoints((1.0,), (0.0,), (1.0,), 1.0))
RIVALS = np.arange(3)
Q, ALPHA = 0.95, 0.05


def estimates(p: np.ndarray) -> Estimates:
    unknown = np.full(p.shape, np.nan, np.float32)
    return Estimates(p.astype(np.float32), unknown, unknown, unknown)


@dataclass(frozen=True)
class World:
    """Prompts [n]: true success [n, 3], the estimate of it, and drawn outcomes."""

    truth: np.ndarray
    p: np.ndarray
    success: np.ndarray

    def evidence(self) -> Evidence:
        return Evidence(self.success, self.success, np.ones(len(self.p), bool), 1.0, "")

    def take(self, rows: np.ndarray) -> World:
        return World(self.truth[rows], self.p[rows], self.success[rows])


def world(n: int, seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    logit = np.array([1.0, 1.6, 2.4]) - 1.4 * rng.normal(size=(n, 1)) + 0.5 * rng.normal(size=(n, 3))
    truth = 1 / (1 + np.exp(-logit))
    p = 1 / (1 + np.exp(-(logit + 0.5 * rng.normal(size=(n, 3)))))
    return World(truth, p, (rng.random((n, 3)) < truth).astype(float))


@pytest.fixture(scope="module")
def population() -> World:
    return world(20_000, seed=99)


@pytest.fixture(scope="module")
def paths() -> Paths:
    return fix_paths(POLICY, estimates(world(2000, seed=98).p))


def kept(population: World, chosen: np.ndarray) -> np.ndarray:
    """True share of the best model's success that settings [k, n] keep."""
    own = population.truth[np.arange(len(population.p)), chosen].mean(axis=1)
    return own / population.truth.mean(axis=0).max()


def cost_of(chosen: np.ndarray) -> np.ndarray:
    return np.array(list(PRICES.values()))[chosen].mean(axis=1)


@pytest.mark.parametrize("rule", list(Rule))
def test_a_path_runs_from_whatever_it_costs_to_the_cheapest_in_even_steps(paths: Paths, rule: Rule) -> None:
    path = paths.of(rule)
    reference = estimates(world(2000, seed=98).p)
    cost = cost_of(chosen_models(POLICY, reference, rule, path))
    assert path[0] == (0.0 if rule is Rule.PROMISE else 1.0)
    assert (np.diff(path) > 0).all() if rule is Rule.PROMISE else (np.diff(path) < 0).all()
    assert cost[-1] == pytest.approx(PRICES["small"])
    assert 15 <= len(path) <= 41
    assert -np.diff(cost).min() < 0.15 * (cost[0] - cost[-1])


@pytest.mark.parametrize("rule", list(Rule))
def test_a_promise_is_broken_in_at_most_the_share_allowed(population: World, paths: Paths, rule: Rule) -> None:
    """Repeated draws of the prompts to tune on; a promise without a setting breaks nothing."""
    path = paths.of(rule)
    chosen = chosen_models(POLICY, estimates(population.p), rule, path)
    true = kept(population, chosen)
    rng, broken, made = np.random.default_rng(0), 0, 0
    for _ in range(150):
        rows = rng.integers(len(population.p), size=250)
        count = n_passing(chosen[:, rows], population.take(rows).evidence(), RIVALS, Q, ALPHA)
        made += count > 0
        broken += count > 0 and true[count - 1] < Q
    assert broken / 150 <= ALPHA + 2.6 * np.sqrt(ALPHA * (1 - ALPHA) / 150)
    assert made > 30


@pytest.mark.parametrize("rule", list(Rule))
def test_with_many_prompts_the_promise_costs_little_more_than_the_truth_does(
    population: World, paths: Paths, rule: Rule
) -> None:
    chosen = chosen_models(POLICY, estimates(population.p), rule, paths.of(rule))
    cost, reaching = cost_of(chosen), kept(population, chosen) >= Q
    spent = []
    for n in (500, 4000, 20_000):
        count = n_passing(chosen[:, :n], population.take(np.arange(n)).evidence(), RIVALS, Q, ALPHA)
        assert count > 0
        spent.append(cost[count - 1])
    assert spent[0] >= spent[1] >= spent[2]
    assert spent[2] <= 1.12 * cost[reaching].min()


def test_more_confidence_promises_no_more(population: World, paths: Paths) -> None:
    for seed in range(8):
        rows = np.random.default_rng(seed).integers(len(population.p), size=800)
        some = population.take(rows)
        chosen = chosen_models(POLICY, estimates(some.p), Rule.PROMISE, paths.willingness)
        counts = [n_passing(chosen, some.evidence(), RIVALS, Q, 1 - c) for c in (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > counts[-1]


def test_a_higher_target_promises_no_cheaper_level(population: World, paths: Paths) -> None:
    some = population.take(np.arange(3000))
    targets = (0.8, 0.9, 0.95, 0.97, 1.0)
    promise = find_promise(POLICY, estimates(some.p), some.evidence(), paths, targets=targets, confidence=0.95)
    found = [level for level in promise.willingness if level is not None]
    assert found == sorted(found, reverse=True) and len(found) >= 3
    levels = [level for level in promise.thresholds if level is not None]
    assert levels == sorted(levels)
    assert promise.willingness[-1] is None and promise.thresholds[-1] is None
    assert (promise.n_prompts, promise.reason) == (3000, None)


def test_every_offered_model_is_a_rival_and_no_other() -> None:
    """A third model that no estimate favours is the best: the promise must see it, once it is for sale."""
    n = 400
    p = np.tile([0.5, 0.9, 0.1], (n, 1))
    success = np.column_stack([np.zeros(n), np.arange(n) % 5 > 0, np.ones(n)]).astype(float)
    evidence = Evidence(success, success, np.ones(n, bool), 1.0, "")
    two = {name: PRICES[name] for name in ("small", "middle")}
    sold = Policy(Catalog.from_mean_costs(two), tuple(PRICES), POLICY.points)
    for policy, promised in ((POLICY, False), (sold, True)):
        paths = fix_paths(policy, estimates(p))
        found = find_promise(policy, estimates(p), evidence, paths, targets=(0.9,), confidence=0.95)
        assert (found.willingness[0] is not None) == promised
        assert (found.thresholds[0] is not None) == promised


def test_the_first_failure_ends_the_sequence() -> None:
    """The second of three settings fails, so the third is not promised although it is perfect."""
    n = 300
    success = np.column_stack([np.zeros(n), np.ones(n)])
    evidence = Evidence(success, success, np.ones(n, bool), 1.0, "")
    chosen = np.array([np.ones(n), np.zeros(n), np.ones(n)], dtype=np.intp)
    assert n_passing(chosen, evidence, np.arange(2), 0.9, ALPHA) == 1
    assert n_passing(chosen[::2], evidence, np.arange(2), 0.9, ALPHA) == 2
    assert n_passing(chosen[1:], evidence, np.arange(2), 0.9, ALPHA) == 0


def test_evidence_that_cannot_carry_a_promise_gives_none_and_says_what_it_would_take(paths: Paths) -> None:
    some = world(500)
    evidence = Evidence(some.p, some.p, np.ones(500, bool), 1.0, "", reason="of some reason")
    promise = find_promise(POLICY, estimates(some.p), evidence, paths, targets=(0.8, 0.95), confidence=0.95)
    assert promise.willingness == promise.thresholds == (None, None)
    assert promise.reason == "of some reason"
    easier, harder = promise.needed_prompts
    assert easier is not None and harder is not None and 20 < easier < harder < 20_000


def test_the_forecast_number_of_prompts_lets_the_safest_setting_pass_most_of_the_time(population: World) -> None:
    small = population.take(np.arange(200))
    chosen = chosen_models(POLICY, estimates(population.p), Rule.PROMISE, np.zeros(1))
    target = 0.98
    needed = needed_prompts(chosen[0], population.evidence(), RIVALS, target, ALPHA)
    assert needed is not None and needed > 200
    assert n_passing(chosen[:, :200], small.evidence(), RIVALS, target, ALPHA) == 0
    rng, passed = np.random.default_rng(0), 0
    for _ in range(60):
        rows = rng.integers(len(population.p), size=needed)
        passed += n_passing(chosen[:, rows], population.take(rows).evidence(), RIVALS, target, ALPHA)
    assert 0.65 < passed / 60 < 0.97


def test_no_number_of_prompts_is_named_where_the_safest_setting_falls_short() -> None:
    success = np.column_stack([np.zeros(100), np.ones(100), np.zeros(100)])
    evidence = Evidence(success, success, np.ones(100, bool), 1.0, "")
    assert needed_prompts(np.zeros(100, dtype=np.intp), evidence, RIVALS, 0.9, ALPHA) is None
    assert needed_prompts(np.zeros(0, dtype=np.intp), evidence.take(slice(0, 0)), RIVALS, 0.9, ALPHA) is None


def test_a_setting_that_has_not_lost_a_prompt_yet_is_not_taken_to_lose_none() -> None:
    success = np.ones((60, 3))
    clean = Evidence(success, success, np.ones(60, bool), 1.0, "")
    needed = needed_prompts(np.zeros(60, dtype=np.intp), clean, RIVALS, 0.95, ALPHA)
    assert needed is not None and needed > 60


def test_prompts_without_a_known_outcome_are_not_tested_on(paths: Paths) -> None:
    some = world(600)
    known = np.arange(600) % 2 == 0
    evidence = Evidence(np.where(known[:, None], some.success, 0.0), some.success, known, 1.0, "")
    options = {"targets": (0.8, 0.9), "confidence": 0.95}
    found = find_promise(POLICY, estimates(some.p), evidence, paths, **options)
    half = some.take(np.flatnonzero(known))
    assert found == find_promise(POLICY, estimates(half.p), half.evidence(), paths, **options)
    assert found.n_prompts == 300


def logged(some: World, rng: np.random.Generator) -> tuple[Dataset, float]:
    """One model per prompt, drawn by a policy that sends hard prompts to the large model; and its floor."""
    n = len(some.p)
    hard = some.p[:, 0] < 0.6
    chance = np.where(hard[:, None], [0.1, 0.2, 0.7], [0.5, 0.3, 0.2])
    model = (rng.random((n, 1)) > chance.cumsum(axis=1)).sum(axis=1)
    success = (rng.random(n) < some.truth[np.arange(n), model]).astype(float)
    unknown = np.full(n, np.nan)
    prompts = Prompts(
        prompt_id=np.arange(n).astype(str),
        ids=np.zeros(0, np.int32),
        start=np.zeros(n + 1, np.int64),
        embedding=np.ones((n, 1), np.float32),
        given=np.ones(n, bool),
        side=no_text_side(n),
        n_tokens=np.full(n, np.nan, np.float32),
        segment=np.zeros(n, np.int64),
    )
    propensity = chance[np.arange(n), model]
    numbers = success, unknown, unknown, unknown, unknown, unknown, propensity
    rows = Rows(np.arange(n), model, *numbers, np.full(n, -1), np.full(n, ""), np.full(n, -1))
    return Dataset(prompts, rows, tuple(PRICES), (), ""), 0.1


def test_one_logged_model_per_prompt_with_its_propensity_carries_a_promise_that_holds(
    population: World, paths: Paths
) -> None:
    target, n = 0.85, 3000
    chosen = chosen_models(POLICY, estimates(population.p), Rule.PROMISE, paths.willingness)
    true = kept(population, chosen)
    rng, broken, made = np.random.default_rng(3), 0, 0
    for _ in range(60):
        rows = rng.integers(len(population.p), size=n)
        some = population.take(rows)
        data, floor = logged(some, rng)
        evidence = gather_evidence(data, np.arange(n), some.p, RIVALS, floor)
        assert evidence.reason is None
        count = n_passing(chosen[:, rows], evidence, RIVALS, target, ALPHA)
        made += count > 0
        broken += count > 0 and true[count - 1] < target
    assert made > 40
    assert broken / 60 <= ALPHA + 2.6 * np.sqrt(ALPHA * (1 - ALPHA) / 60)
