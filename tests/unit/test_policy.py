from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest

from router_ml.catalog import Catalog, Model, Offer
from router_ml.errors import BundleError
from router_ml.operating_points import OperatingPoints
from router_ml.policy import REJECTIONS, Choices, Policy
from router_ml.types import Constraints, Estimates, Float32Array, Reason, Rejection, Request, Rule

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


def limited(**limits: object) -> Request:
    return Request(text="hi", constraints=Constraints(**limits))  # type: ignore[arg-type]


def decided(of: Policy, choices: Choices, i: int = 0) -> list[str]:
    """Names of the eligible offers of row i, chosen first."""
    return [of.offers[k].name for k in choices.order[i, : choices.n_eligible[i]]]


def rejections(of: Policy, given: Estimates, requests: Sequence[Request] | None) -> list[Rejection | None]:
    return [REJECTIONS[code] for code in of.choose(given, requests).rejected[0]]


# -- prices, by hand --------------------------------------------------------------------------------


def test_tokens_are_priced_per_million() -> None:
    cost = policy().price(estimates(inputs=1000, outputs=500))
    np.testing.assert_allclose(cost, [[1000 * 1e-6 + 500 * 4e-6, 1000 * 10e-6 + 500 * 40e-6]], rtol=1e-12)


def test_a_price_per_request_is_added_and_may_stand_alone() -> None:
    both = dataclasses.replace(SMALL, request_usd=0.5)
    alone = Offer("flat", "large", request_usd=0.25)
    np.testing.assert_allclose(policy(both, alone).price(estimates()), [[0.503, 0.25]], rtol=1e-12)


def test_cached_tokens_cost_their_own_price_at_the_offer_that_holds_them() -> None:
    cached = dataclasses.replace(SMALL, cached_input_usd_per_mtok=0.1)
    request = Request(text="hi", cached_input_tokens={"small": 800, "gone": 5})
    cost = policy(cached, LARGE).price(estimates(), [request])
    np.testing.assert_allclose(cost, [[200 * 1e-6 + 800 * 0.1e-6 + 500 * 4e-6, 0.03]], rtol=1e-12)


def test_cached_tokens_that_a_log_tells_by_model_are_priced_as_those_that_a_request_tells() -> None:
    cached = dataclasses.replace(SMALL, cached_input_usd_per_mtok=0.1)
    logged = np.array([[800.0, np.nan]])
    told = Request(text="hi", cached_input_tokens={"small": 800})
    rules = policy(cached, LARGE)
    np.testing.assert_array_equal(rules.price(estimates(), cached=logged), rules.price(estimates(), [told]))


def test_more_cached_tokens_than_input_are_counted_as_the_input() -> None:
    cached = dataclasses.replace(SMALL, cached_input_usd_per_mtok=0.0)
    request = Request(text="hi", cached_input_tokens={"small": 5000})
    assert policy(cached).price(estimates(), [request])[0, 0] == pytest.approx(500 * 4e-6, rel=1e-12)


def test_cached_tokens_cost_the_regular_price_where_no_other_is_offered() -> None:
    request = Request(text="hi", cached_input_tokens={"small": 800, "large": 800})
    np.testing.assert_array_equal(policy().price(estimates(), [request]), policy().price(estimates()))


def test_batch_prices_hold_for_batch_requests_where_they_are_offered() -> None:
    offered = dataclasses.replace(SMALL, batch_input_usd_per_mtok=0.5, batch_output_usd_per_mtok=2.0)
    cost = policy(offered, LARGE).price(estimates(n=2), [Request(text="hi", batch=True), Request(text="hi")])
    np.testing.assert_allclose(cost, [[0.0015, 0.03], [0.003, 0.03]], rtol=1e-12)


def test_a_missing_half_of_the_batch_price_is_the_regular_one() -> None:
    offered = dataclasses.replace(SMALL, batch_output_usd_per_mtok=2.0)
    cost = policy(offered).price(estimates(), [Request(text="hi", batch=True)])
    assert cost[0, 0] == pytest.approx(1000 * 1e-6 + 500 * 2e-6, rel=1e-12)


@pytest.mark.parametrize(("cached_price", "paid"), [(0.75, 0.5), (0.25, 0.25), (None, 0.5)])
def test_cached_tokens_in_a_batch_cost_the_lower_of_both_prices(cached_price: float | None, paid: float) -> None:
    offer = dataclasses.replace(SMALL, cached_input_usd_per_mtok=cached_price, batch_input_usd_per_mtok=0.5)
    request = Request(text="hi", batch=True, cached_input_tokens={"small": 1000})
    assert policy(offer).price(estimates(), [request])[0, 0] == pytest.approx(paid * 1e-3 + 0.002, rel=1e-12)


def test_cached_tokens_never_cost_less_than_a_dearer_batch_price_when_no_cache_is_offered() -> None:
    offer = dataclasses.replace(SMALL, batch_input_usd_per_mtok=2.0)
    request = Request(text="hi", batch=True, cached_input_tokens={"small": 1000})
    assert policy(offer).price(estimates(), [request])[0, 0] == pytest.approx(0.002 + 0.002, rel=1e-12)


def test_the_callers_output_limit_caps_the_expected_output_and_leaves_the_estimates_alone() -> None:
    given = estimates(n=2)
    cost = policy(SMALL).price(given, [limited(max_output_tokens=100), limited(max_output_tokens=900)])
    np.testing.assert_allclose(cost[:, 0], [0.0014, 0.003], rtol=1e-12)
    np.testing.assert_array_equal(given.output_tokens, 500)


@pytest.mark.parametrize("unknown", [(NAN, 500), (1000, NAN), (NAN, NAN)])
@pytest.mark.parametrize(
    "request_", [None, Request(text="hi"), Request(text="hi", batch=True, cached_input_tokens={"small": 9})]
)
def test_unknown_tokens_make_an_unknown_price_never_zero(
    unknown: tuple[float, float], request_: Request | None
) -> None:
    flat = Offer("flat", "large", request_usd=0.25)
    of = policy(dataclasses.replace(SMALL, cached_input_usd_per_mtok=0.1, request_usd=0.1), flat)
    requests = None if request_ is None else [request_]
    given = estimates(inputs=unknown[0], outputs=unknown[1])
    choices = of.choose(given, requests)
    assert math.isnan(choices.cost_usd[0, 0])
    assert choices.cost_usd[0, 1] == 0.25
    assert rejections(of, given, requests) == [Rejection.PRICE_UNKNOWN, None]
    assert decided(of, choices) == ["flat"]


def test_an_output_limit_does_not_stand_in_for_an_unknown_output() -> None:
    assert np.isnan(policy().price(estimates(outputs=NAN), [limited(max_output_tokens=10)])).all()


# -- hard constraints -------------------------------------------------------------------------------

# Each row breaks, for the offer `small`, the constraint named and every one below it.
BREAKS: list[tuple[Rejection, dict[str, object]]] = [
    (Rejection.MODEL_NOT_ALLOWED, {"allowed_models": ("large",)}),
    (Rejection.MODEL_DENIED, {"denied_models": ("small",)}),
    (Rejection.REGION, {"allowed_regions": ("eu", "uk")}),
    (Rejection.CAPABILITY, {"required_capabilities": ("vision",)}),
    (Rejection.CONTEXT_WINDOW, {"max_output_tokens": 1001}),
    (Rejection.MAX_COST, {"max_cost_usd": 0.001}),
]


@pytest.mark.parametrize(("reason", "limits"), [row for row in BREAKS if row[0] is not Rejection.CONTEXT_WINDOW])
def test_each_constraint_rejects_the_offer_that_breaks_it(reason: Rejection, limits: dict[str, object]) -> None:
    given = estimates(inputs=1000)
    assert rejections(policy(), given, [limited(**limits)])[0] is reason
    assert rejections(policy(), given, [limited()]) == [None, None]


def test_the_first_broken_constraint_in_the_order_of_the_enum_is_reported() -> None:
    for start, (reason, _) in enumerate(BREAKS):
        limits = {name: value for _, row in BREAKS[start:] for name, value in row.items()}
        assert rejections(policy(), estimates(inputs=1500), [limited(**limits)])[0] is reason
    order = list(Rejection)
    assert [reason for reason, _ in BREAKS] == sorted([reason for reason, _ in BREAKS], key=order.index)


def test_the_output_limit_stands_between_context_window_and_cost() -> None:
    roomy = policy(dataclasses.replace(LARGE, name="first"))
    over = limited(max_output_tokens=4001, max_cost_usd=0.0)
    assert rejections(roomy, estimates(inputs=100), [over]) == [Rejection.OUTPUT_LIMIT]
    assert rejections(roomy, estimates(inputs=4000), [over]) == [Rejection.CONTEXT_WINDOW]
    assert rejections(roomy, estimates(inputs=100), [limited(max_output_tokens=4000)]) == [None]


def test_an_unknown_price_is_the_last_reason() -> None:
    unknown = estimates(inputs=NAN)
    assert rejections(policy(), unknown, [limited(max_cost_usd=1.0)]) == [Rejection.PRICE_UNKNOWN] * 2
    assert rejections(policy(), unknown, [limited(denied_models=("small",))])[0] is Rejection.MODEL_DENIED


@pytest.mark.parametrize("requests", [None, [Request(text="hi")]])
def test_input_and_expected_output_must_fit_the_context_window(requests: list[Request] | None) -> None:
    assert rejections(policy(), estimates(inputs=1500, outputs=500), requests) == [None, None]
    assert rejections(policy(), estimates(inputs=1501, outputs=500), requests) == [Rejection.CONTEXT_WINDOW, None]


def test_the_callers_output_limit_is_what_must_fit_the_context_window() -> None:
    of, given = policy(LARGE), estimates(inputs=7000, outputs=1500)
    assert rejections(of, given, [limited(max_output_tokens=1000)]) == [None]
    assert rejections(of, given, [limited(max_output_tokens=1001)]) == [Rejection.CONTEXT_WINDOW]


def test_limits_that_the_catalog_does_not_know_are_not_enforced() -> None:
    of = Policy(Catalog((Model("small"),), (SMALL,)), ["small", "large"], POINTS)
    assert rejections(of, estimates(inputs=1e7), [limited(max_output_tokens=10**6)]) == [None]


def test_a_cost_equal_to_the_highest_allowed_is_eligible() -> None:
    of = policy(Offer("flat", "small", request_usd=0.25))
    assert rejections(of, estimates(), [limited(max_cost_usd=0.25)]) == [None]
    assert rejections(of, estimates(), [limited(max_cost_usd=0.2499)]) == [Rejection.MAX_COST]
    assert rejections(of, estimates(), [limited(max_cost_usd=0.0)]) == [Rejection.MAX_COST]


def test_an_offer_of_unknown_region_never_keeps_a_residency_rule() -> None:
    of = policy(dataclasses.replace(SMALL, region=None), LARGE)
    assert rejections(of, estimates(), [limited(allowed_regions=("us", "eu"))]) == [Rejection.REGION, None]
    assert rejections(of, estimates(), [limited()]) == [None, None]


def test_all_required_capabilities_are_needed() -> None:
    assert rejections(policy(), estimates(), [limited(required_capabilities=("tools", "vision"))])[1] is None
    assert rejections(policy(), estimates(), [limited(required_capabilities=("tools", "audio"))])[1] is (
        Rejection.CAPABILITY
    )


def test_the_constraints_of_one_request_do_not_reach_another() -> None:
    of = policy()
    denied, free = limited(denied_models=("small",)), limited()
    for requests in ([denied, free, denied], [free, denied, free]):
        codes = of.choose(estimates(n=3), requests).rejected
        assert [code[0] > 0 for code in codes] == [request is denied for request in requests]


# -- the promise rule -------------------------------------------------------------------------------


def test_the_promise_rule_picks_the_highest_success_minus_lambda_times_cost() -> None:
    # Costs are 0.003 and 0.03: the large one is worth its 0.027 more as long as lambda < 0.25 / 0.027 = 9.26.
    of = policy()
    assert decided(of, of.choose_at(estimates(), Rule.PROMISE, 9.2)) == ["large", "small"]
    choices = of.choose_at(estimates(), Rule.PROMISE, 9.3)
    assert decided(of, choices) == ["small", "large"]
    assert choices.reasons == ((Reason.BEST_VALUE,),)
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


def test_rejected_offers_come_last_and_are_no_fallbacks() -> None:
    of = policy()
    choices = of.choose(estimates(0.1, 0.9), [limited(denied_models=("large",))])
    assert decided(of, choices) == ["small"]
    assert choices.order.tolist() == [[0, 1]]
    assert choices.reasons == ((Reason.BEST_VALUE, Reason.ONLY_ELIGIBLE),)


# -- the threshold rule -----------------------------------------------------------------------------


def test_the_threshold_rule_picks_the_cheapest_offer_that_clears_the_level() -> None:
    of = policy(LARGE, SMALL)
    choices = of.choose_at(estimates(0.5, 0.75), Rule.THRESHOLD, 0.5)
    assert decided(of, choices) == ["small", "large"]
    assert choices.reasons == ((Reason.CHEAPEST_CLEARING,),)
    assert decided(of, of.choose_at(estimates(0.5, 0.75), Rule.THRESHOLD, 0.51)) == ["large", "small"]


def test_where_none_clears_the_one_most_likely_to_succeed_is_chosen_with_that_reason() -> None:
    of = policy()
    choices = of.choose(estimates(0.5, 0.75), [Request(text="hi", min_success_probability=0.8)])
    assert decided(of, choices) == ["large", "small"]
    assert choices.reasons == ((Reason.NONE_CLEARS,),)


def test_a_rejected_offer_does_not_clear() -> None:
    of = policy()
    request = Request(
        text="hi", min_success_probability=0.6, constraints=Constraints(required_capabilities=(), max_cost_usd=0.01)
    )
    choices = of.choose(estimates(0.5, 0.75), [request])
    assert decided(of, choices) == ["small"]
    assert choices.reasons == ((Reason.NONE_CLEARS, Reason.ONLY_ELIGIBLE),)


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


def chosen_at(of: Policy, request: Request | None = None, **options: float) -> tuple[str, tuple[Reason, ...]]:
    choices = of.choose(estimates(), None if request is None else [request], **options)
    return decided(of, choices)[0], choices.reasons[0]


def test_the_target_in_force_is_the_requests_then_the_callers_then_the_default() -> None:
    points = OperatingPoints((0.8, 0.9), (100.0, 1.0), (None, None), default_target=0.8)
    of = policy(points=points)
    assert chosen_at(of)[0] == "small"
    assert chosen_at(of, quality_target=0.9)[0] == "large"
    assert chosen_at(of, Request(text="hi"), quality_target=0.9)[0] == "large"
    assert chosen_at(of, Request(text="hi", quality_target=0.8), quality_target=0.9)[0] == "small"
    assert chosen_at(of, Request(text="hi", quality_target=0.9))[0] == "large"


def test_an_unreachable_target_takes_the_highest_quality_whatever_it_costs() -> None:
    dear = dataclasses.replace(LARGE, request_usd=1000.0)
    for rule in Rule:
        of = policy(SMALL, dear, points=dataclasses.replace(POINTS, rule=rule))
        assert chosen_at(of, Request(text="hi", quality_target=1.0)) == ("large", (Reason.TARGET_UNREACHABLE,))
        assert chosen_at(of, quality_target=0.99) == ("large", (Reason.TARGET_UNREACHABLE,))


def test_a_level_of_the_request_decides_by_threshold_whatever_the_rule() -> None:
    for rule in Rule:
        of = policy(points=dataclasses.replace(POINTS, rule=rule))
        for level, name in ((0.75, "large"), (0.5, "small"), (0.0, "small")):
            request = Request(text="hi", quality_target=1.0, min_success_probability=level)
            assert chosen_at(of, request) == (name, (Reason.CHEAPEST_CLEARING,))


def test_a_bundle_may_decide_by_threshold() -> None:
    of = policy(points=dataclasses.replace(POINTS, rule=Rule.THRESHOLD))
    assert chosen_at(of) == ("small", (Reason.CHEAPEST_CLEARING,))
    assert chosen_at(of, quality_target=0.95) == ("large", (Reason.CHEAPEST_CLEARING,))


def test_one_batch_may_mix_rules_and_targets() -> None:
    of = policy()
    requests = [
        Request(text="hi"),
        Request(text="hi", min_success_probability=0.75),
        Request(text="hi", quality_target=1.0),
        Request(text="hi", min_success_probability=0.99),
        limited(denied_models=("small", "large")),
    ]
    choices = of.choose(estimates(n=5), requests)
    assert choices.chosen.tolist() == [0, 1, 1, 1, -1]
    assert [reasons[0] for reasons in choices.reasons[:4]] == [
        Reason.BEST_VALUE,
        Reason.CHEAPEST_CLEARING,
        Reason.TARGET_UNREACHABLE,
        Reason.NONE_CLEARS,
    ]


# -- nothing to choose, and what the policy covers --------------------------------------------------


@pytest.mark.parametrize("level", [None, 0.5])
def test_a_row_without_an_eligible_offer_says_so_and_explains_each_offer(level: float | None) -> None:
    of = policy()
    none = Request(
        text="hi",
        min_success_probability=level,
        constraints=Constraints(denied_models=("small",), max_cost_usd=0.001),
    )
    choices = of.choose(estimates(n=2), [Request(text="hi", min_success_probability=level), none])
    assert choices.n_eligible.tolist() == [2, 0]
    assert choices.chosen[1] == -1
    error = of.explain_none(choices, 1)
    assert error.rejected == {"small": "model_denied", "large": "max_cost"}
    assert "small: model_denied, large: max_cost" in str(error)


@pytest.mark.parametrize("requests", [None, []])
def test_no_requests_make_no_choices(requests: list[Request] | None) -> None:
    choices = policy().choose(estimates(n=0), requests)
    assert choices.order.shape == choices.rejected.shape == choices.cost_usd.shape == (0, 2)
    assert choices.n_eligible.shape == choices.chosen.shape == (0,)
    assert choices.reasons == ()


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
    np.testing.assert_array_equal(before.choose(given).rejected, after.choose(given).rejected)


def test_prices_given_by_the_caller_are_used_as_they_are() -> None:
    of = policy()
    cost = np.array([[0.5, 0.25]])
    choices = of.choose_at(estimates(), Rule.PROMISE, 1.0, cost)
    assert choices.cost_usd is cost
    assert decided(of, choices) == ["large", "small"]
