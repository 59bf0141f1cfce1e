"""Laws of the policy over random catalogs, estimates and requests.

Probabilities, prices and levels are small multiples of powers of two, so that sums and products are
exact and a law is not broken by rounding; equal values, hence ties, are frequent.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from router_ml.batch_policy import BatchPolicy
from router_ml.catalog import Catalog, Model, Offer
from router_ml.features import Features
from router_ml.heads import rows_of
from router_ml.operating_points import OperatingPoints
from router_ml.policy import Choices, Policy
from router_ml.request_policy import Choice, RequestPolicy
from router_ml.types import NO_CONSTRAINTS, Constraints, Estimates, Reason, Rejection, Request, Rule

REGIONS = ("us", "eu", "uk")
CAPABILITIES = ("tools", "vision")
USD_PER_MTOK = 1e6 / 2**20
"""Times a whole number: a price per token that is a multiple of 2**-20, exact once divided by a million."""

maybe = st.none
shares = st.integers(0, 16).map(lambda x: x / 16)
prices = st.integers(0, 16).map(lambda x: x * USD_PER_MTOK)
tokens = st.integers(0, 1024)
lambdas = st.integers(0, 64).map(lambda x: x / 4)
laws = settings(max_examples=100, deadline=None)


def subsets(values: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(values), unique=True, max_size=2).map(tuple)


@st.composite
def catalogs(draw: st.DrawFn) -> Catalog:
    n_models = draw(st.integers(1, 4))
    models = tuple(
        Model(
            f"m{j}",
            draw(maybe() | st.integers(1, 2048)),
            draw(maybe() | st.integers(1, 1024)),
            draw(subsets(CAPABILITIES)),
        )
        for j in range(n_models)
    )
    offers = []
    for k in range(draw(st.integers(1, 6))):
        by_token = draw(st.booleans())
        optional: Any = (maybe() | prices) if by_token else maybe()
        offers.append(
            Offer(
                f"o{k}",
                f"m{draw(st.integers(0, n_models - 1))}",
                region=draw(maybe() | st.sampled_from(REGIONS)),
                input_usd_per_mtok=draw(prices) if by_token else None,
                output_usd_per_mtok=draw(prices) if by_token else None,
                cached_input_usd_per_mtok=draw(optional),
                batch_input_usd_per_mtok=draw(optional),
                batch_output_usd_per_mtok=draw(optional),
                request_usd=draw(maybe() | shares) if by_token else draw(shares),
            )
        )
    return Catalog(models, tuple(offers))


@st.composite
def operating_points(draw: st.DrawFn) -> OperatingPoints:
    return OperatingPoints(
        (0.75, 1.0),
        (draw(maybe() | lambdas), draw(maybe() | lambdas)),
        (draw(maybe() | shares), draw(maybe() | shares)),
        default_target=draw(st.sampled_from((0.75, 1.0))),
        rule=draw(st.sampled_from(Rule)),
    )


@st.composite
def requests(draw: st.DrawFn) -> Request:
    limits = Constraints(
        allowed_models=draw(st.just(()) | subsets(("m0", "m1", "m2"))),
        denied_models=draw(st.just(()) | subsets(("m0", "m3"))),
        allowed_regions=draw(st.just(()) | subsets(REGIONS)),
        required_capabilities=draw(st.just(()) | subsets(CAPABILITIES)),
        max_cost_usd=draw(maybe() | shares),
        max_output_tokens=draw(maybe() | st.integers(1, 1024)),
    )
    return Request(
        text="hi",
        constraints=limits,
        quality_target=draw(maybe() | st.sampled_from((0.5, 0.75, 0.9, 1.0))),
        min_success_probability=draw(maybe() | shares),
        cached_input_tokens=draw(st.dictionaries(st.sampled_from(("o0", "o1", "gone")), tokens)),
        batch=draw(st.booleans()),
    )


@st.composite
def estimates_of(draw: st.DrawFn, n: int, m: int) -> Estimates:
    def table(values: st.SearchStrategy[float]) -> Any:
        flat = draw(st.lists(values, min_size=n * m, max_size=n * m))
        return np.array(flat, dtype=np.float32).reshape(n, m)

    length: Any = tokens | tokens | st.just(float("nan"))
    return Estimates(table(shares), table(length), np.full((n, m), np.nan, np.float32), table(length))


@dataclass(frozen=True)
class Case:
    """A policy with estimates for its models, one row per request."""

    catalog: Catalog
    policy: Policy
    estimates: Estimates
    requests: list[Request]

    @property
    def p(self) -> Any:
        """[n, o] success probability of each offer."""
        return self.estimates.p_success[:, self.policy.column].astype(np.float64)

    def choose(self) -> list[Choice]:
        """One by one, as they would be asked."""
        return [self.choose_one(i, request) for i, request in enumerate(self.requests)]

    def choose_one(self, i: int, request: Request) -> Choice:
        rows = (self.estimates.p_success, self.estimates.output_tokens, self.estimates.input_tokens)
        return RequestPolicy(self.policy).choose(request, *(values[i].tolist() for values in rows))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    catalog = draw(catalogs())
    asked = draw(st.lists(requests(), min_size=1, max_size=5))
    policy = Policy(catalog, catalog.model_names, draw(operating_points()))
    return Case(catalog, policy, draw(estimates_of(len(asked), len(catalog.models))), asked)


def names(case: Case, choice: Choice) -> list[str]:
    """Names of the eligible offers, chosen first."""
    return [case.policy.offers[k].name for k in choice.order]


def check_same(one: Choice, other: Choice) -> None:
    np.testing.assert_array_equal(one.cost_usd, other.cost_usd)
    assert (one.order, one.rejected, one.reasons) == (other.order, other.rejected, other.reasons)


def chosen_cost(choices: Choices) -> Any:
    """[n] cost of what was chosen; NaN where nothing was."""
    picked = choices.chosen
    return np.where(picked < 0, np.nan, choices.cost_usd[np.arange(len(picked)), picked])


# -- one and many -----------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from((0.5, 0.75, 0.9, 1.0)))
def test_requests_that_ask_for_nothing_are_chosen_for_as_many_prompts_at_once(case: Case, target: float) -> None:
    many = case.policy.choose(case.estimates, quality_target=target)
    for i in range(len(case.requests)):
        one = case.choose_one(i, Request(text="hi", quality_target=target))
        assert one.order == many.order[i, : many.n_eligible[i]].tolist()
        np.testing.assert_array_equal(one.cost_usd, many.cost_usd[i])


@settings(max_examples=200, deadline=None)
@given(cases(), shares)
def test_a_level_of_the_request_chooses_as_that_level_for_many_prompts_at_once(case: Case, level: float) -> None:
    many = case.policy.choose_at(case.estimates, Rule.THRESHOLD, level)
    for i in range(len(case.requests)):
        one = case.choose_one(i, Request(text="hi", min_success_probability=level))
        assert one.order == many.order[i, : many.n_eligible[i]].tolist()


@settings(max_examples=500, deadline=None)
@given(cases(), st.data())
def test_a_batch_is_chosen_for_as_its_requests_one_by_one_to_the_last_bit(case: Case, data: st.DataObject) -> None:
    n, m = case.estimates.p_success.shape
    asked = [_in_batch(each, data) for each in case.requests]
    odds = data.draw(st.lists(st.floats(0, 1e9, width=32), min_size=n * m, max_size=n * m))
    flat = np.empty((n, 3 * m), dtype=np.float32)
    flat[:, 0::3] = np.reshape(odds, (n, m))
    flat[:, 1::3], flat[:, 2::3] = case.estimates.output_tokens, case.estimates.latency_ms
    n_tokens, ratio = case.estimates.input_tokens[:, 0], [1.1, 0.9, 1.0, 1.3][:m]
    of_one = RequestPolicy(case.policy)
    batch = BatchPolicy(case.policy, of_one, ratio).choose(asked, flat, n_tokens)
    features = Features(flat, flat, flat, flat, n_tokens)  # type: ignore[arg-type]  # only the tokens are looked at
    for request, chosen, row in zip(asked, batch, rows_of(flat, features, ratio), strict=True):
        told = request.input_tokens
        inputs = row.input_tokens if told is None else [float(told)] * m
        one = of_one.choose(request, row.p_success, row.output_tokens, inputs)
        check_same(chosen.choice, one)
        assert chosen.p_success == row.p_success
        at = case.policy.column.tolist()
        for k, each in enumerate(([row.p_success[j] for j in at], [row.output_tokens[j] for j in at], one.cost_usd)):
            np.testing.assert_array_equal(chosen.numbers[k::4], each)


def _in_batch(request: Request, data: st.DataObject) -> Request:
    """The request, or one without constraints and cached tokens, as most are."""
    bare = dataclasses.replace(request, constraints=NO_CONSTRAINTS, cached_input_tokens={})
    chosen = data.draw(st.sampled_from((request, bare, bare)))
    return dataclasses.replace(chosen, input_tokens=data.draw(maybe() | tokens))


@laws
@given(cases())
def test_cached_tokens_of_a_log_are_priced_as_those_of_requests(case: Case) -> None:
    of_model = np.full((len(case.requests), len(case.policy.models)), 100.0)
    many = case.policy.price(case.estimates, cached=of_model)
    told = {offer.name: 100 for offer in case.policy.offers}
    for i in range(len(case.requests)):
        one = case.choose_one(i, Request(text="hi", cached_input_tokens=told))
        np.testing.assert_array_equal(one.cost_usd, many[i])


@laws
@given(cases())
def test_deciding_does_not_change_the_next_decision(case: Case) -> None:
    of = RequestPolicy(case.policy)
    rows = (case.estimates.p_success, case.estimates.output_tokens, case.estimates.input_tokens)
    for fresh, i in zip(case.choose() * 2, [*range(len(case.requests))] * 2, strict=True):
        check_same(of.choose(case.requests[i], *(values[i].tolist() for values in rows)), fresh)


# -- hard constraints -------------------------------------------------------------------------------


def keeps(case: Case, i: int, k: int, cost: float) -> bool:
    """Whether offer k keeps every constraint of request i, written out plainly."""
    offer, limits = case.policy.offers[k], case.requests[i].constraints
    j = case.catalog.model_names.index(offer.model)
    model = case.catalog.models[j]
    inputs, answer = (
        float(np.nan_to_num(tokens[i, j])) for tokens in (case.estimates.input_tokens, case.estimates.output_tokens)
    )
    answer = answer if limits.max_output_tokens is None else limits.max_output_tokens
    return (
        not np.isnan(cost)
        and (not limits.allowed_models or offer.model in limits.allowed_models)
        and offer.model not in limits.denied_models
        and (not limits.allowed_regions or offer.region in limits.allowed_regions)
        and all(capability in model.capabilities for capability in limits.required_capabilities)
        and (model.context_window is None or inputs + answer <= model.context_window)
        and (limits.max_output_tokens is None or answer <= (model.max_output_tokens or np.inf))
        and (limits.max_cost_usd is None or cost <= limits.max_cost_usd)
    )


@laws
@given(cases())
def test_chosen_and_fallbacks_are_exactly_the_offers_that_keep_every_constraint(case: Case) -> None:
    choices, n_offers = case.choose(), len(case.policy.offers)
    for i in range(len(case.requests)):
        kept = [k for k in range(n_offers) if keeps(case, i, k, choices[i].cost_usd[k])]
        assert sorted(choices[i].order) == kept
        assert (Reason.ONLY_ELIGIBLE in choices[i].reasons) == (len(kept) == 1)
        assert [k for k in range(n_offers) if choices[i].rejected[k] is None] == kept


@laws
@given(cases())
def test_a_request_that_no_offer_may_serve_gets_a_reason_for_each(case: Case) -> None:
    for choice in case.choose():
        assume(not choice.order)
        rejected = RequestPolicy(case.policy).no_offer(choice).rejected
        assert list(rejected) == [offer.name for offer in case.catalog.offers]
        assert set(rejected.values()) <= {str(rejection) for rejection in Rejection}


@laws
@given(cases())
def test_costs_are_never_negative_and_unknown_exactly_where_tokens_are(case: Case) -> None:
    cost = np.array([choice.cost_usd for choice in case.choose()])
    unknown = np.isnan(case.estimates.input_tokens + case.estimates.output_tokens)[:, case.policy.column]
    by_token = np.array([offer.input_usd_per_mtok is not None for offer in case.policy.offers])
    np.testing.assert_array_equal(np.isnan(cost), unknown & by_token)
    assert not (cost < 0).any()


# -- the choice -------------------------------------------------------------------------------------


@laws
@given(cases(), lambdas, lambdas)
def test_raising_lambda_never_raises_the_expected_cost(case: Case, first: float, second: float) -> None:
    low, high = sorted((first, second))
    dear = chosen_cost(case.policy.choose_at(case.estimates, Rule.PROMISE, low))
    cheap = chosen_cost(case.policy.choose_at(case.estimates, Rule.PROMISE, high))
    np.testing.assert_array_equal(np.isnan(dear), np.isnan(cheap))
    assert not (cheap > dear).any()


@laws
@given(cases(), lambdas)
def test_the_promise_rule_orders_by_value_then_by_cost(case: Case, willingness: float) -> None:
    choices = case.policy.choose_at(case.estimates, Rule.PROMISE, willingness)
    for i, (p, cost) in enumerate(zip(case.p, choices.cost_usd, strict=True)):
        ranked = choices.order[i, : choices.n_eligible[i]]
        keys = [(willingness * cost[k] - p[k], cost[k], k) for k in ranked]
        assert keys == sorted(keys)


@laws
@given(cases(), shares)
def test_the_threshold_rule_orders_the_clearing_by_cost_and_the_others_by_success(case: Case, level: float) -> None:
    choices = case.policy.choose_at(case.estimates, Rule.THRESHOLD, level)
    for i, (p, cost) in enumerate(zip(case.p, choices.cost_usd, strict=True)):
        ranked = choices.order[i, : choices.n_eligible[i]]
        keys = [(False, cost[k], -p[k], k) if p[k] >= level else (True, -p[k], cost[k], k) for k in ranked]
        assert keys == sorted(keys)
        clears = any(p[k] >= level for k in ranked)
        reasons = case.choose_one(i, Request(text="hi", min_success_probability=level)).reasons
        assert reasons[0] is (Reason.CHEAPEST_CLEARING if clears else Reason.NONE_CLEARS)


@laws
@given(cases(), st.data())
def test_removing_an_offer_that_was_not_chosen_leaves_the_choice_and_the_order_of_the_rest(
    case: Case, data: st.DataObject
) -> None:
    before = names(case, case.choose()[0])
    others = [offer.name for offer in case.catalog.offers if offer.name not in before[:1]]
    assume(others and len(case.catalog.offers) > 1)
    gone = data.draw(st.sampled_from(others))
    offers = tuple(offer for offer in case.catalog.offers if offer.name != gone)
    catalog = dataclasses.replace(case.catalog, offers=offers)
    smaller = dataclasses.replace(case, catalog=catalog, policy=Policy(catalog, case.policy.models, case.policy.points))
    assert names(smaller, smaller.choose()[0]) == [name for name in before if name != gone]


@laws
@given(cases(), st.sampled_from(Rule), shares, st.integers(0, 5))
def test_a_lower_price_never_costs_an_offer_its_place(case: Case, rule: Rule, level: float, k: int) -> None:
    assume(k < len(case.policy.offers))
    before = case.policy.choose_at(case.estimates, rule, level)
    cost = before.cost_usd.copy()
    cost[:, k] /= 2
    after = case.policy.choose_at(case.estimates, rule, level, cost)
    assert (after.chosen[before.chosen == k] == k).all()


@laws
@given(cases())
def test_a_catalog_that_went_through_plain_data_decides_the_same(case: Case) -> None:
    catalog = Catalog.from_dict(json.loads(json.dumps(case.catalog.to_dict())))
    points = OperatingPoints.from_dict(json.loads(json.dumps(case.policy.points.to_dict())))
    again = dataclasses.replace(case, policy=Policy(catalog, case.policy.models, points))
    for one, other in zip(case.choose(), again.choose(), strict=True):
        check_same(one, other)
