"""Laws of exploration: probabilities of many requests at once, against those of one, and against simulation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_ml.catalog import Catalog, Model, Offer
from router_ml.exploration import Exploration, ExplorationRule, Explorer, choice_probabilities, probabilities
from router_ml.operating_points import OperatingPoints
from router_ml.policy import Policy
from router_ml.request_policy import RequestPolicy, rule_of
from router_ml.thompson import chance_of_best
from router_ml.types import Estimates, Request, Rule

POINTS = OperatingPoints((0.9,), (0.15,), (0.7,), default_target=0.9)
RULES = [(Rule.PROMISE, 0.15), (Rule.PROMISE, 0.0), (Rule.THRESHOLD, 0.7), (Rule.THRESHOLD, 0.0), (Rule.THRESHOLD, 1.0)]


def world(seed: int, n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p, cost and deviation, [n, m]; some models have no offer, some values are at their ends."""
    rng = np.random.default_rng(seed)
    p = rng.choice([0.0, 1.0, 0.5, -1], (n, m), p=[0.03, 0.03, 0.04, 0.9])
    p = np.where(p < 0, rng.random((n, m)), p)
    cost = np.where(rng.random((n, m)) < 0.15, np.inf, rng.choice([0.0, 1.0, 2.0, 4.0], (n, m)) * rng.random((n, m)))
    cost[np.arange(n), rng.integers(0, m, n)] = 1.0
    return p, cost, rng.choice([0.0, 0.01, 0.5, 2.0, 9.0], (n, m))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    m=st.integers(1, 6),
    rule=st.sampled_from(ExplorationRule),
    share=st.floats(0.001, 0.999),
    multiple=st.sampled_from([1.0, 2.0, 1e9]),
    floor=st.floats(0, 1),
    by=st.sampled_from(RULES),
)
def test_probabilities_sum_to_one_and_never_leave_the_safe_models(
    seed: int, m: int, rule: ExplorationRule, share: float, multiple: float, floor: float, by: tuple[Rule, float]
) -> None:
    p, cost, deviation = world(seed, 20, m)
    greedy = np.where(np.isfinite(cost), p, -1).argmax(axis=1)
    exploration = Exploration(share, rule, multiple, floor)
    found = probabilities(exploration, p, cost, greedy, rule=by[0], level=by[1], deviation=deviation)
    rows = np.arange(20)
    assert found.sum(axis=1) == pytest.approx(np.ones(20), abs=1e-12)
    assert (found[rows, greedy] >= 1 - share - 1e-12).all()
    dear = ~np.isfinite(cost) | (cost > multiple * cost[rows, greedy, None])
    unsafe = dear | (p < floor)
    unsafe[rows, greedy] = False
    assert (found >= 0).all()
    assert (found[unsafe] == 0).all()


@pytest.mark.parametrize("rule", list(ExplorationRule))
@pytest.mark.parametrize("threshold", [False, True], ids=["promise", "threshold"])
def test_one_request_is_drawn_by_the_probabilities_of_many(rule: ExplorationRule, threshold: bool) -> None:
    n, models = 800, ("a", "b", "c", "d")
    usd = (1.0, 1.6, 2.5, 5.0)
    offers = [Offer(f"{name}{k}", name, request_usd=usd[j] + k) for j, name in enumerate(models) for k in (0, 1)]
    points = dataclasses.replace(POINTS, rule=Rule.THRESHOLD) if threshold else POINTS
    policy = Policy(Catalog(tuple(map(Model, models)), tuple(offers)), models, points)
    rng = np.random.default_rng(3)
    p = rng.random((n, 4)).astype(np.float32)
    deviation = rng.uniform(0, 2, (n, 4)).astype(np.float32)
    nothing = np.full((n, 4), np.nan, np.float32)
    exploration = Exploration(0.4, rule, cost_multiple=3.0, floor=0.3)
    many = choice_probabilities(policy, Estimates(p, nothing, nothing, nothing), exploration, deviation=deviation)
    one, explorer, request = RequestPolicy(policy), Explorer(exploration, "ab" * 32), Request(text="hi")
    explored = 0
    for i in range(n):
        choice = one.choose(request, p[i].tolist(), [np.nan] * 4, [np.nan] * 4)
        spread = deviation[i].tolist() if rule is ExplorationRule.THOMPSON else None
        draw = explorer.draw(f"{i}", choice, policy.column.tolist(), p[i].tolist(), rule_of(policy, request), spread)
        chosen = policy.column[draw.order[0]]
        assert draw.propensity == pytest.approx(many[i, chosen], abs=1e-12)
        explored += draw.order != choice.order
    assert explored > 40
    certain = choice_probabilities(policy, Estimates(p, nothing, nothing, nothing))
    assert (certain.max(axis=1) == 1).all() and (certain.sum(axis=1) == 1).all()
    assert (certain.argmax(axis=1) == many.argmax(axis=1))[many.max(axis=1) > 0.61].all()


@pytest.mark.parametrize(("rule", "level"), [(Rule.PROMISE, 0.1), (Rule.THRESHOLD, 0.8)])
def test_the_chance_of_being_best_is_how_often_a_draw_of_the_truth_makes_it_so(rule: Rule, level: float) -> None:
    rng = np.random.default_rng(5)
    n, m, repeats = 60, 4, 20_000
    p, cost, deviation = rng.uniform(0.3, 0.97, (n, m)), rng.uniform(0.1, 2, (n, m)), rng.uniform(0.05, 1.2, (n, m))
    among = rng.random((n, m)) < 0.8
    among[:, 0] = True
    found = chance_of_best(p, cost, deviation, among, rule=rule, level=level)
    for i in range(n):
        noise = rng.logistic(size=(repeats, m)) * deviation[i] * np.sqrt(3) / np.pi
        truth = 1 / (1 + np.exp(-(np.log(p[i] / (1 - p[i])) + noise)))
        if rule is Rule.PROMISE:
            best = np.where(among[i], truth - level * cost[i], -9).argmax(axis=1)
        else:
            clears = (truth >= level) & among[i]
            cheapest = np.where(clears, cost[i], 99).argmin(axis=1)
            best = np.where(clears.any(axis=1), cheapest, np.where(among[i], truth, -9).argmax(axis=1))
        share = np.bincount(best, minlength=m) / repeats
        # Five standard errors of the simulation, and what 32 nodes are off by where one model is all but certain.
        assert np.abs(found[i] - share) == pytest.approx(0, abs=5 * 0.5 / np.sqrt(repeats) + 0.005)
