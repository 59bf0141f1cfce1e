"""One request among the offers: prices by hand, hard constraints, which rule is in force."""

from __future__ import annotations

import dataclasses
import math

import pytest

from router_ml.catalog import Catalog, Model, Offer
from router_ml.operating_points import OperatingPoints
from router_ml.policy import Policy
from router_ml.request_policy import Choice, RequestPolicy
from router_ml.types import Constraints, Reason, Rejection, Request, Rule

MODELS = (
    Model("small", context_window=2000, max_output_tokens=1000),
    Model("large", context_window=8000, max_output_tokens=4000, capabilities=("tools", "vision")),
)
SMALL = Offer("small", "small", region="us", input_usd_per_mtok=1.0, output_usd_per_mtok=4.0)
LARGE = Offer("large", "large", region="eu", input_usd_per_mtok=10.0, output_usd_per_mtok=40.0)
POINTS = OperatingPoints((0.9, 0.95, 1.0), (100.0, 20.0, None), (0.5, 0.75, None), default_target=0.9)
NAN = math.nan
FREE = Request(text="hi")


def policy(*offers: Offer, models: tuple[Model, ...] = MODELS, points: OperatingPoints = POINTS) -> RequestPolicy:
    return RequestPolicy(Policy(Catalog(models, offers or (SMALL, LARGE)), ["small", "large"], points))


def choose(
    of: RequestPolicy,
    request: Request = FREE,
    *,
    p: tuple[float, float] = (0.5, 0.75),
    inputs: float = 1000,
    outputs: float = 500,
) -> Choice:
    """Powers of two where exact ties matter."""
    return of.choose(request, p, (outputs, outputs), (inputs, inputs))


def limited(**limits: object) -> Request:
    return Request(text="hi", constraints=Constraints(**limits))  # type: ignore[arg-type]


def cost(of: RequestPolicy, request: Request) -> list[float]:
    return choose(of, request).cost_usd


# -- prices, by hand --------------------------------------------------------------------------------


def test_tokens_are_priced_per_million_and_requests_on_top() -> None:
    assert cost(policy(), FREE) == pytest.approx([1000 * 1e-6 + 500 * 4e-6, 1000 * 10e-6 + 500 * 40e-6], rel=1e-12)
    both = dataclasses.replace(SMALL, request_usd=0.5)
    alone = Offer("flat", "large", request_usd=0.25)
    assert cost(policy(both, alone), FREE) == pytest.approx([0.503, 0.25], rel=1e-12)


def test_cached_tokens_cost_their_own_price_at_the_offer_that_holds_them() -> None:
    cached = dataclasses.replace(SMALL, cached_input_usd_per_mtok=0.1)
    request = Request(text="hi", cached_input_tokens={"small": 800, "gone": 5})
    assert cost(policy(cached, LARGE), request) == pytest.approx([200e-6 + 800 * 0.1e-6 + 500 * 4e-6, 0.03], rel=1e-12)


def test_more_cached_tokens_than_input_are_counted_as_the_input() -> None:
    cached = dataclasses.replace(SMALL, cached_input_usd_per_mtok=0.0)
    request = Request(text="hi", cached_input_tokens={"small": 5000})
    assert cost(policy(cached), request) == pytest.approx([500 * 4e-6], rel=1e-12)


def test_cached_tokens_cost_the_regular_price_where_no_other_is_offered() -> None:
    request = Request(text="hi", cached_input_tokens={"small": 800, "large": 800})
    assert cost(policy(), request) == cost(policy(), FREE)


def test_batch_prices_hold_for_batch_requests_where_they_are_offered() -> None:
    of = policy(dataclasses.replace(SMALL, batch_input_usd_per_mtok=0.5, batch_output_usd_per_mtok=2.0), LARGE)
    assert cost(of, Request(text="hi", batch=True)) == pytest.approx([0.0015, 0.03], rel=1e-12)
    assert cost(of, FREE) == pytest.approx([0.003, 0.03], rel=1e-12)


def test_a_missing_half_of_the_batch_price_is_the_regular_one() -> None:
    offered = dataclasses.replace(SMALL, batch_output_usd_per_mtok=2.0)
    assert cost(policy(offered), Request(text="hi", batch=True)) == pytest.approx([1000e-6 + 500 * 2e-6], rel=1e-12)


@pytest.mark.parametrize(("cached_price", "paid"), [(0.75, 0.5), (0.25, 0.25), (None, 0.5)])
def test_cached_tokens_in_a_batch_cost_the_lower_of_both_prices(cached_price: float | None, paid: float) -> None:
    offer = dataclasses.replace(SMALL, cached_input_usd_per_mtok=cached_price, batch_input_usd_per_mtok=0.5)
    request = Request(text="hi", batch=True, cached_input_tokens={"small": 1000})
    assert cost(policy(offer), request) == pytest.approx([paid * 1e-3 + 0.002], rel=1e-12)


def test_cached_tokens_never_cost_less_than_a_dearer_batch_price_when_no_cache_is_offered() -> None:
    offer = dataclasses.replace(SMALL, batch_input_usd_per_mtok=2.0)
    request = Request(text="hi", batch=True, cached_input_tokens={"small": 1000})
    assert cost(policy(offer), request) == pytest.approx([0.002 + 0.002], rel=1e-12)


def test_the_callers_output_limit_caps_the_expected_output() -> None:
    of = policy(SMALL)
    assert cost(of, limited(max_output_tokens=100)) == pytest.approx([0.0014], rel=1e-12)
    assert cost(of, limited(max_output_tokens=900)) == pytest.approx([0.003], rel=1e-12)


@pytest.mark.parametrize("unknown", [(NAN, 500), (1000, NAN), (NAN, NAN)])
@pytest.mark.parametrize("request_", [FREE, Request(text="hi", batch=True, cached_input_tokens={"small": 9})])
def test_unknown_tokens_make_an_unknown_price_never_zero(unknown: tuple[float, float], request_: Request) -> None:
    flat = Offer("flat", "large", request_usd=0.25)
    of = policy(dataclasses.replace(SMALL, cached_input_usd_per_mtok=0.1, request_usd=0.1), flat)
    choice = choose(of, request_, inputs=unknown[0], outputs=unknown[1])
    assert math.isnan(choice.cost_usd[0])
    assert choice.cost_usd[1] == 0.25
    assert choice.rejected == [Rejection.PRICE_UNKNOWN, None]
    assert choice.order == [1]


def test_an_output_limit_does_not_stand_in_for_an_unknown_output() -> None:
    assert all(map(math.isnan, choose(policy(), limited(max_output_tokens=10), outputs=NAN).cost_usd))


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
    assert choose(policy(), limited(**limits)).rejected[0] is reason
    assert choose(policy(), limited()).rejected == [None, None]


def test_the_first_broken_constraint_in_the_order_of_the_enum_is_reported() -> None:
    for start, (reason, _) in enumerate(BREAKS):
        limits = {name: value for _, row in BREAKS[start:] for name, value in row.items()}
        assert choose(policy(), limited(**limits), inputs=1500).rejected[0] is reason
    order = list(Rejection)
    assert [reason for reason, _ in BREAKS] == sorted([reason for reason, _ in BREAKS], key=order.index)


def test_the_output_limit_stands_between_context_window_and_cost() -> None:
    roomy = policy(dataclasses.replace(LARGE, name="first"))
    over = limited(max_output_tokens=4001, max_cost_usd=0.0)
    assert choose(roomy, over, inputs=100).rejected == [Rejection.OUTPUT_LIMIT]
    assert choose(roomy, over, inputs=4000).rejected == [Rejection.CONTEXT_WINDOW]
    assert choose(roomy, limited(max_output_tokens=4000), inputs=100).rejected == [None]


def test_an_unknown_price_is_the_last_reason() -> None:
    assert choose(policy(), limited(max_cost_usd=1.0), inputs=NAN).rejected == [Rejection.PRICE_UNKNOWN] * 2
    assert choose(policy(), limited(denied_models=("small",)), inputs=NAN).rejected[0] is Rejection.MODEL_DENIED


def test_input_and_expected_output_must_fit_the_context_window() -> None:
    assert choose(policy(), inputs=1500).rejected == [None, None]
    assert choose(policy(), inputs=1501).rejected == [Rejection.CONTEXT_WINDOW, None]


def test_the_callers_output_limit_is_what_must_fit_the_context_window() -> None:
    of = policy(LARGE)
    assert choose(of, limited(max_output_tokens=1000), inputs=7000, outputs=1500).rejected == [None]
    assert choose(of, limited(max_output_tokens=1001), inputs=7000, outputs=1500).rejected == [Rejection.CONTEXT_WINDOW]


def test_limits_that_the_catalog_does_not_know_are_not_enforced() -> None:
    of = policy(SMALL, models=(Model("small"),))
    assert choose(of, limited(max_output_tokens=10**6), inputs=1e7).rejected == [None]


def test_a_cost_equal_to_the_highest_allowed_is_eligible() -> None:
    of = policy(Offer("flat", "small", request_usd=0.25))
    assert choose(of, limited(max_cost_usd=0.25)).rejected == [None]
    assert choose(of, limited(max_cost_usd=0.2499)).rejected == [Rejection.MAX_COST]
    assert choose(of, limited(max_cost_usd=0.0)).rejected == [Rejection.MAX_COST]


def test_an_offer_of_unknown_region_never_keeps_a_residency_rule() -> None:
    of = policy(dataclasses.replace(SMALL, region=None), LARGE)
    assert choose(of, limited(allowed_regions=("us", "eu"))).rejected == [Rejection.REGION, None]
    assert choose(of, limited()).rejected == [None, None]


def test_all_required_capabilities_are_needed() -> None:
    assert choose(policy(), limited(required_capabilities=("tools", "vision"))).rejected[1] is None
    assert choose(policy(), limited(required_capabilities=("tools", "audio"))).rejected[1] is Rejection.CAPABILITY


def test_the_constraints_of_one_request_do_not_reach_another() -> None:
    of = policy()
    denied, free = limited(denied_models=("small",)), limited()
    for requests in ([denied, free, denied], [free, denied, free]):
        for request in requests:
            assert (choose(of, request).rejected[0] is not None) == (request is denied)


def test_what_is_remembered_of_constraints_is_bounded() -> None:
    of = policy()
    for n in range(3000):
        assert choose(of, limited(denied_models=(f"other-{n}",), max_cost_usd=1.0)).rejected == [None, None]
    assert len(of._static) <= 1024


# -- the choice -------------------------------------------------------------------------------------


def test_rejected_offers_are_no_fallbacks() -> None:
    choice = choose(policy(), limited(denied_models=("large",)), p=(0.1, 0.9))
    assert choice.order == [0]
    assert choice.reasons == (Reason.BEST_VALUE, Reason.ONLY_ELIGIBLE)


def test_where_none_clears_the_one_most_likely_to_succeed_is_chosen_with_that_reason() -> None:
    choice = choose(policy(), Request(text="hi", min_success_probability=0.8))
    assert choice.order == [1, 0]
    assert choice.reasons == (Reason.NONE_CLEARS,)


def test_a_rejected_offer_does_not_clear() -> None:
    request = Request(text="hi", min_success_probability=0.6, constraints=Constraints(max_cost_usd=0.01))
    choice = choose(policy(), request)
    assert choice.order == [0]
    assert choice.reasons == (Reason.NONE_CLEARS, Reason.ONLY_ELIGIBLE)


def test_the_target_in_force_is_the_requests_then_the_default() -> None:
    points = OperatingPoints((0.8, 0.9), (100.0, 1.0), (None, None), default_target=0.8)
    assert choose(policy(points=points)).order[0] == 0
    assert choose(policy(points=points), Request(text="hi", quality_target=0.9)).order[0] == 1


def test_an_unreachable_target_takes_the_highest_quality_whatever_it_costs() -> None:
    dear = dataclasses.replace(LARGE, request_usd=1000.0)
    for rule in Rule:
        of = policy(SMALL, dear, points=dataclasses.replace(POINTS, rule=rule))
        choice = choose(of, Request(text="hi", quality_target=1.0))
        assert (choice.order[0], choice.reasons) == (1, (Reason.TARGET_UNREACHABLE,))


def test_a_level_of_the_request_decides_by_threshold_whatever_the_rule() -> None:
    for rule in Rule:
        of = policy(points=dataclasses.replace(POINTS, rule=rule))
        for level, chosen in ((0.75, 1), (0.5, 0), (0.0, 0)):
            choice = choose(of, Request(text="hi", quality_target=1.0, min_success_probability=level))
            assert (choice.order[0], choice.reasons) == (chosen, (Reason.CHEAPEST_CLEARING,))


@pytest.mark.parametrize("level", [None, 0.5])
def test_a_request_without_an_eligible_offer_gets_an_error_that_explains_each_offer(level: float | None) -> None:
    of = policy()
    limits = Constraints(denied_models=("small",), max_cost_usd=0.001)
    choice = choose(of, Request(text="hi", min_success_probability=level, constraints=limits))
    assert choice.order == []
    error = of.no_offer(choice)
    assert error.rejected == {"small": "model_denied", "large": "max_cost"}
    assert "small: model_denied, large: max_cost" in str(error)
