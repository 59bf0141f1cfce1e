"""What is left to chance: how much, among which models, and that the draw depends on the decision's id alone."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from router_ml.catalog import Catalog, Model, Offer
from router_ml.errors import InputError
from router_ml.exploration import Draw, Exploration, ExplorationRule, Explorer, uniform
from router_ml.operating_points import OperatingPoints
from router_ml.policy import Policy
from router_ml.request_policy import RequestPolicy, rule_of
from router_ml.types import Constraints, Reason, Request

MODELS = ("cheap", "fair", "good", "dear")
PRICES = {"cheap@1": 1.0, "cheap@2": 2.0, "fair@1": 3.0, "good@1": 4.0, "good@2": 3.5, "dear@1": 90.0}
CATALOG = Catalog(
    tuple(map(Model, MODELS)),
    tuple(Offer(name, name.partition("@")[0], request_usd=usd) for name, usd in PRICES.items()),
)
POLICY = Policy(CATALOG, MODELS, OperatingPoints((0.9,), (0.1,), (0.7,), default_target=0.9))
P = (0.5, 0.75, 0.85, 0.9)
"""At lambda 0.1 worth 0.4, 0.45, 0.5 and -8.1: `good` by its cheaper offer."""
SURE = (0.3,) * 4
NAN = math.nan
EPSILON = Exploration(0.3)
THOMPSON = Exploration(0.3, ExplorationRule.THOMPSON)


def draws(
    settings: Exploration,
    n: int = 4000,
    *,
    request: Request | None = None,
    p: tuple[float, ...] = P,
    deviation: tuple[float, ...] | None = None,
) -> list[Draw]:
    request = request or Request(text="hi")
    choice = RequestPolicy(POLICY).choose(request, p, (NAN,) * 4, (NAN,) * 4)
    explorer, column = Explorer(settings, "ab" * 32), POLICY.column.tolist()
    if settings.rule is ExplorationRule.THOMPSON:
        deviation = deviation or SURE
    by = rule_of(POLICY, request)
    return [explorer.draw(f"id-{i}", choice, column, p, by, deviation) for i in range(n)]


def offer(draw: Draw) -> str:
    return POLICY.offers[draw.order[0]].name


def propensities(found: list[Draw]) -> dict[str, float]:
    """Offer -> the propensity of its model, of all that were drawn; one number for each."""
    by_offer: dict[str, set[float]] = {}
    for each in found:
        by_offer.setdefault(offer(each), set()).add(each.propensity)
    assert all(len(values) == 1 for values in by_offer.values())
    return {name: values.pop() for name, values in by_offer.items()}


# -- the safe models --------------------------------------------------------------------------------


def test_epsilon_spreads_the_share_evenly_over_the_safe_models() -> None:
    found = propensities(draws(EPSILON))
    assert found == pytest.approx({"good@2": 0.7 + 0.1, "fair@1": 0.1, "cheap@1": 0.1}, rel=1e-12)


@pytest.mark.parametrize("settings", [EPSILON, THOMPSON], ids=["epsilon", "thompson"])
def test_nothing_beyond_the_cost_multiple_is_tried(settings: Exploration) -> None:
    assert "dear@1" not in propensities(draws(settings))
    wide = dataclasses.replace(settings, cost_multiple=26.0)
    none_clears = Request(text="hi", min_success_probability=0.99)  # so that the likeliest is wanted, at any price
    assert "dear@1" in propensities(draws(wide, p=(0.5, 0.75, 0.9, 0.85), request=none_clears))
    greedy_is_cheap = (0.9, 0.8, 0.8, 0.9)
    assert set(propensities(draws(settings, p=greedy_is_cheap))) == {"cheap@1"}


@pytest.mark.parametrize("settings", [EPSILON, THOMPSON], ids=["epsilon", "thompson"])
def test_nothing_below_the_floor_is_tried(settings: Exploration) -> None:
    high = dataclasses.replace(settings, floor=0.6)
    assert set(propensities(draws(high))) == {"good@2", "fair@1"}
    at = dataclasses.replace(settings, floor=0.75)
    assert set(propensities(draws(at))) == {"good@2", "fair@1"}


def test_the_policy_keeps_its_choice_where_it_is_below_the_floor_itself() -> None:
    found = draws(dataclasses.replace(EPSILON, floor=0.95), 50)
    assert {(offer(each), each.propensity, each.reasons) for each in found} == {("good@2", 1.0, (Reason.BEST_VALUE,))}


def test_offers_that_the_request_excludes_are_not_tried() -> None:
    request = Request(text="hi", constraints=Constraints(denied_models=("fair",)))
    assert set(propensities(draws(EPSILON, request=request))) == {"good@2", "cheap@1"}
    alone = Request(text="hi", constraints=Constraints(allowed_models=("cheap",)))
    found = draws(EPSILON, 50, request=alone)
    assert {(offer(each), each.propensity) for each in found} == {("cheap@1", 1.0)}


def test_the_greedy_choice_keeps_at_least_what_is_not_shared_out() -> None:
    for settings in (EPSILON, THOMPSON):
        assert propensities(draws(settings))["good@2"] >= 0.7


def test_thompson_tries_what_it_is_unsure_of_and_leaves_the_rest() -> None:
    found = propensities(draws(THOMPSON, deviation=(0.01, 0.8, 0.01, 0.01)))
    assert set(found) == {"good@2", "fair@1"}
    assert found["fair@1"] == pytest.approx(0.3 * 0.3, abs=0.05)
    assert propensities(draws(THOMPSON, deviation=(0.001,) * 4)) == {"good@2": pytest.approx(1.0, abs=1e-9)}


def test_the_threshold_rule_explores_what_may_be_the_cheapest_that_clears() -> None:
    request = Request(text="hi", min_success_probability=0.7)  # `fair` is the cheapest that clears
    found = propensities(draws(THOMPSON, request=request, deviation=(1.5, 0.01, 0.01, 0.01)))
    assert set(found) == {"fair@1", "cheap@1"}
    # P(cheap clears) = P(its log-odds exceed those of 0.7), of a logistic around 0.
    scale = 1.5 * math.sqrt(3) / math.pi
    clears = 1 / (1 + (0.7 / 0.3) ** (1 / scale))
    assert found["cheap@1"] == pytest.approx(0.3 * clears, rel=1e-6)


# -- what is drawn ----------------------------------------------------------------------------------


def test_an_explored_decision_says_so_and_falls_back_in_the_order_of_the_policy() -> None:
    for each in draws(EPSILON, 300):
        names = [POLICY.offers[k].name for k in each.order]
        usual = ["good@2", "fair@1", "good@1", "cheap@1", "cheap@2", "dear@1"]
        if names[0] == "good@2":
            assert (names, each.reasons) == (usual, (Reason.BEST_VALUE,))
        else:
            assert each.reasons == (Reason.EXPLORED,)
            assert names[1:] == [name for name in usual if name != names[0]]


def test_the_same_id_draws_the_same_and_another_salt_draws_otherwise() -> None:
    first, again = (list(map(offer, draws(EPSILON, 300))) for _ in range(2))
    assert first == again
    assert first != list(map(offer, draws(dataclasses.replace(EPSILON, salt="other"), 300)))


def test_numbers_of_the_hash_are_spread_evenly_over_the_unit_interval() -> None:
    numbers = np.array([uniform(f"id-{i}", b"key") for i in range(100_000)])
    assert 0 <= numbers.min() and numbers.max() < 1
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    assert chisquare(counts).pvalue > 0.001
    in_turn = np.histogram2d(numbers[:-1], numbers[1:], bins=10, range=((0, 1), (0, 1)))[0]
    assert chisquare(in_turn.ravel()).pvalue > 0.001  # ids that follow each other draw independently


def test_the_hash_is_what_the_journal_promises() -> None:
    """So that others can make decisions again; see ExplorationRecord in log.proto."""
    decision_id, salt = "0198c0de-0000-7000-8000-000000000000", "ab" * 32
    key = hashlib.sha256(salt.encode()).digest()
    number = int.from_bytes(hashlib.blake2b(decision_id.encode(), digest_size=8, key=key).digest(), "big")
    assert uniform(decision_id, key) == (number >> 11) / 2**53
    choice = RequestPolicy(POLICY).choose(Request(text="hi"), P, (NAN,) * 4, (NAN,) * 4)
    by = rule_of(POLICY, Request(text="hi"))
    draw = Explorer(EPSILON, salt).draw(decision_id, choice, POLICY.column.tolist(), P, by, None)
    edges = [("cheap@1", 0.1), ("fair@1", 0.2), ("good@2", 1.0)]  # in the bundle's order of models
    assert offer(draw) == next(name for name, edge in edges if uniform(decision_id, key) < edge)


# -- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("share", 0.0), ("share", 1.0), ("share", -0.1), ("share", NAN), ("share", "5%"), ("share", None),
        ("cost_multiple", 0.99), ("cost_multiple", math.inf), ("cost_multiple", NAN),
        ("floor", -0.01), ("floor", 1.01), ("floor", NAN), ("salt", None), ("rule", "greedy"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"`{field}` of exploration must be"):
        dataclasses.replace(EPSILON, **{field: value})
