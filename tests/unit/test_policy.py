from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from router_ml.catalog import Catalog, Model, Offer
from router_ml.errors import BundleError
from router_ml.operating_points import OperatingPoints
from router_ml.policy import Choices, Policy
from router_ml.types import Estimates, Float32Array, Reason, Rule

MODELS = (
    Model("small", context_window=2000, max_output_tokens=1000),
    Model("large", context_window=8000, max_output_tokens=4000, capabilities=("tools", "vision")),
)
SMALL = Offer("small", "small", region="us", input_usd_per_mtok=1.0, output_usd_per_mtok=4.0)
LARGE = Offer("large", "large", region="eu", input_usd_per_mtok=10.0, output_usd_per_mtok=40.0)
POINTS = OperatingPoints((0.9, 0.95, 1.0), (100.0, 20.0, None), (0.5, 0.75, None), default_target=0.9)
NAN = math.nan


def policy(*offers: Offer, points: OperatingPoints = POINTS) -> Policy:
    return Policy(Catalog(MODELS, offers or (SMALL, LARGE)), ["small", "large"], points)


def estimates(
    small: float = 0.5, large: float = 0.75, *, inputs: float = 1000, outputs: float = 500, n: int = 1
) -> Estimates:
    """n equal rows; powers of two where exact ties matter."""

    def rows(*values: float) -> Float32Array:
        return np.tile(np.array(values, dtype=np.float32), (n, 1))

    return Estimates(rows(small, large), rows(outputs, outputs), rows(NAN, NAN), rows(inputs, inputs))


def decided(of: Policy, choices: Choices, i: int = 0) -> list[str]:
    """Names of the eligible offers of row i, chosen first."""
    return [of.offers[k].name for k in choices.order[i, : choices.n_eligible[i]]]


# -- prices, by hand --------------------------------------------------------------------------------


def test_tokens_are_priced_per_million() -> None:
    cost = policy().price(estimates(inputs=1000, outputs=500))
    np.testing.assert_allclose(cost, [[1000 * 1e-6 + 500 * 4e-6, 1000 * 10e-6 + 500 * 40e-6]], rtol=1e-12)


def test_a_price_per_request_is_added_and_may_stand_alone() -> None:
    both = dataclasses.replace(SMALL, request_usd=0.5)
    alone = Offer("flat", "large", request_usd=0.25)
    np.testing.assert_allclose(policy(both, alone).price(estimates()), [[0.503, 0.25]], rtol=1e-12)


def test_the_part_of_the_input_that_a_log_says_was_cached_costs_its_own_price() -> None:
    cached = dataclasses.replace(SMALL, cached_input_usd_per_mtok=0.1)
    cost = policy(cached, LARGE).price(estimates(n=2), cached=np.array([[800.0, np.nan], [5000.0, 800.0]]))
    np.testing.assert_allclose(cost, [[0.2e-3 + 0.08e-3 + 2e-3, 0.03], [0.1e-3 + 2e-3, 0.03]], rtol=1e-12)


@pytest.mark.parametrize("unknown", [(NAN, 500), (1000, NAN), (NAN, NAN)])
def test_unknown_tokens_make_an_unknown_price_never_zero(unknown: tuple[float, float]) -> None:
    flat = Offer("flat", "large", request_usd=0.25)
    of = policy(dataclasses.replace(SMALL, request_usd=0.1), flat)
    given = estimates(inputs=unknown[0], outputs=unknown[1])
    choices = of.choose(given)
    assert math.isnan(choices.cost_usd[0, 0])
    assert choices.cost_usd[0, 1] == 0.25
    assert of.eligible(given, choices.cost_usd).tolist() == [[False, True]]
    assert decided(of, choices) == ["flat"]


def test_input_and_expected_output_must_fit_the_context_window() -> None:
    of = policy()
    assert decided(of, of.choose(estimates(inputs=1500, outputs=500))) == ["small", "large"]
    assert decided(of, of.choose(estimates(inputs=1501, outputs=500))) == ["large"]
    assert of.choose(estimates(inputs=8001)).chosen.tolist() == [-1]


# -- the promise rule -------------------------------------------------------------------------------


def test_the_promise_rule_picks_the_highest_success_minus_lambda_times_cost() -> None:
    # Costs are 0.003 and 0.03: the large one is worth its 0.027 more as long as lambda < 0.25 / 0.027 = 9.26.
    of = policy()
    assert decided(of, of.choose_at(estimates(), Rule.PROMISE, 9.2)) == ["large", "small"]
    choices = of.choose_at(estimates(), Rule.PROMISE, 9.3)
    assert decided(of, choices) == ["small", "large"]
    assert choices.chosen.tolist() == [0]


@pytest.mark.parametrize("rule", list(Rule))
def test_two_offers_of_one_model_are_ordered_by_price(rule: Rule) -> None:
    dear, cheap = dataclasses.replace(LARGE, name="dear", request_usd=1.0), dataclasses.replace(LARGE, name="cheap")
    for offers in ((dear, cheap), (cheap, dear)):
        of = policy(*offers)
        assert decided(of, of.choose_at(estimates(), rule, 0.0)) == ["cheap", "dear"]
        assert decided(of, of.choose_at(estimates(), Rule.THRESHOLD, 0.99)) == ["cheap", "dear"]


def test_equal_scores_go_to_the_cheaper_offer() -> None:
    cheap, dear = Offer("cheap", "small", request_usd=0.25), Offer("dear", "large", request_usd=0.5)
    for offers in ((cheap, dear), (dear, cheap)):
        of = policy(*offers)
        assert decided(of, of.choose_at(estimates(0.5, 0.75), Rule.PROMISE, 1.0)) == ["cheap", "dear"]


def test_offers_equal_in_everything_keep_the_order_of_the_catalog() -> None:
    of = policy(dataclasses.replace(SMALL, name="b"), dataclasses.replace(SMALL, name="a"))
    for rule in Rule:
        assert decided(of, of.choose_at(estimates(), rule, 0.25)) == ["b", "a"]


# -- the threshold rule -----------------------------------------------------------------------------


def test_the_threshold_rule_picks_the_cheapest_offer_that_clears_the_level() -> None:
    of = policy(LARGE, SMALL)
    choices = of.choose_at(estimates(0.5, 0.75), Rule.THRESHOLD, 0.5)
    assert decided(of, choices) == ["small", "large"]
    assert decided(of, of.choose_at(estimates(0.5, 0.75), Rule.THRESHOLD, 0.51)) == ["large", "small"]


def test_fallbacks_clear_the_level_first_by_price_and_then_by_success() -> None:
    offers = tuple(
        Offer(name, name, request_usd=cost) for name, cost in (("a", 0.4), ("b", 0.3), ("c", 0.2), ("d", 0.1))
    )
    of = Policy(Catalog(tuple(Model(offer.name) for offer in offers), offers), "abcd", POINTS)
    p = np.array([[0.9, 0.7, 0.4, 0.3]], dtype=np.float32)
    given = Estimates(p, p * 100, p * NAN, p * 100)
    assert decided(of, of.choose_at(given, Rule.THRESHOLD, 0.6)) == ["b", "a", "c", "d"]
    assert decided(of, of.choose_at(given, Rule.PROMISE, 4.0)) == ["d", "c", "b", "a"]
    assert decided(of, of.choose_at(given, Rule.PROMISE, 0.0)) == ["a", "b", "c", "d"]


def test_of_clearing_offers_at_one_price_the_likelier_is_chosen() -> None:
    offers = (Offer("small", "small", request_usd=0.25), Offer("large", "large", request_usd=0.25))
    of = policy(*offers)
    assert decided(of, of.choose_at(estimates(0.5, 0.75), Rule.THRESHOLD, 0.4)) == ["large", "small"]


# -- which rule and level are in force --------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "willingness", "threshold"),
    [(0.5, 100.0, 0.5), (0.9, 100.0, 0.5), (0.901, 20.0, 0.75), (0.95, 20.0, 0.75), (0.96, None, None)],
)
def test_a_target_between_two_fitted_ones_is_met_by_the_stricter(
    target: float, willingness: float | None, threshold: float | None
) -> None:
    assert POINTS.willingness_for(target) == willingness
    assert POINTS.threshold_for(target) == threshold


def test_a_rounding_error_does_not_make_a_target_stricter() -> None:
    assert POINTS.willingness_for(0.3 * 3 + 1e-12) == 100.0


def test_a_target_above_every_fitted_one_is_unreachable() -> None:
    points = OperatingPoints((0.9,), (100.0,), (0.5,), 0.9)
    assert points.willingness_for(0.95) is None


def test_operating_points_come_back_equal_from_plain_data() -> None:
    points = dataclasses.replace(POINTS, rule=Rule.THRESHOLD)
    assert OperatingPoints.from_dict(points.to_dict()) == points
    assert points.to_dict()["rule"] == "threshold"


def test_the_target_in_force_is_the_callers_then_the_default() -> None:
    points = OperatingPoints((0.8, 0.9), (100.0, 1.0), (None, None), default_target=0.8)
    of = policy(points=points)
    assert decided(of, of.choose(estimates()))[0] == "small"
    assert decided(of, of.choose(estimates(), quality_target=0.9))[0] == "large"


def test_an_unreachable_target_takes_the_highest_quality_whatever_it_costs() -> None:
    dear = dataclasses.replace(LARGE, request_usd=1000.0)
    for rule in Rule:
        of = policy(SMALL, dear, points=dataclasses.replace(POINTS, rule=rule))
        assert of.rule_at(0.99) == (Rule.PROMISE, 0.0, Reason.TARGET_UNREACHABLE)
        assert decided(of, of.choose(estimates(), quality_target=0.99))[0] == "large"


def test_a_bundle_may_decide_by_threshold() -> None:
    of = policy(points=dataclasses.replace(POINTS, rule=Rule.THRESHOLD))
    assert of.rule_at(0.9) == (Rule.THRESHOLD, 0.5, Reason.CHEAPEST_CLEARING)
    assert decided(of, of.choose(estimates()))[0] == "small"
    assert decided(of, of.choose(estimates(), quality_target=0.95))[0] == "large"


# -- nothing to choose, and what the policy covers --------------------------------------------------


def test_no_prompts_make_no_choices() -> None:
    choices = policy().choose(estimates(n=0))
    assert choices.order.shape == choices.cost_usd.shape == (0, 2)
    assert choices.n_eligible.shape == choices.chosen.shape == (0,)


def test_offers_and_models_that_have_no_counterpart_are_reported() -> None:
    of = Policy(Catalog(MODELS, (SMALL, LARGE)), ["other", "large"], POINTS)
    assert [offer.name for offer in of.offers] == ["large"]
    assert of.unjudged_offers == ("small",)
    assert of.unoffered_models == ("other",)
    assert of.column.tolist() == [1]


def test_a_catalog_without_any_model_of_the_bundle_is_refused() -> None:
    with pytest.raises(BundleError, match=r"catalog: \['small'\], bundle: \['a', 'b'\]"):
        Policy(Catalog(MODELS, (SMALL,)), ["b", "a"], POINTS)


def test_a_price_change_in_the_catalog_changes_the_decision_and_nothing_else() -> None:
    before, given = policy(), estimates()
    after = policy(SMALL, dataclasses.replace(LARGE, input_usd_per_mtok=1.0, output_usd_per_mtok=4.5))
    assert decided(before, before.choose(given)) == ["small", "large"]
    assert decided(after, after.choose(given)) == ["large", "small"]
    np.testing.assert_array_equal(before.choose(given).n_eligible, after.choose(given).n_eligible)


def test_prices_given_by_the_caller_are_used_as_they_are() -> None:
    of = policy()
    cost = np.array([[0.5, 0.25]])
    choices = of.choose_at(estimates(), Rule.PROMISE, 1.0, cost)
    assert choices.cost_usd is cost
    assert decided(of, choices) == ["large", "small"]
