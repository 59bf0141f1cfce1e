"""One request among the offers, its hard constraints included: the decision that stands before every model call.

Plain numbers instead of arrays: for a dozen offers that takes a third of the time. What is not
constrained is chosen as `Policy` chooses it for many prompts at once; a parity test holds both to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from router_ml.errors import NoEligibleOfferError
from router_ml.policy import Policy, price_table
from router_ml.types import NO_CONSTRAINTS, Constraints, Reason, Rejection, Request, Rule

_MAX_CACHED_CONSTRAINTS = 1024


class Choice(NamedTuple):
    """What was picked for one request among o offers; numbers index the offers in catalog order."""

    order: list[int]
    """The eligible offers, chosen first; empty: nothing could be chosen."""
    cost_usd: list[float]
    """[o], expected cost of the call; NaN where it cannot be known."""
    rejected: list[Rejection | None]
    """[o], the first constraint that the offer breaks; None where it is eligible."""
    reasons: tuple[Reason, ...]


class _Price(NamedTuple):
    """One offer's prices in US dollars per token, and per request."""

    offer: str
    model: int
    """Column of the estimates."""
    by_token: bool
    input: float
    cached_input: float
    output: float
    request: float


class RequestPolicy:
    """Chooses for one request at a time. Stateless towards requests and safe to share between threads."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._column: list[int] = policy.column.tolist()
        self._regular, self._batch = (self._prices(batch=batch) for batch in (False, True))
        self._windows = [np.inf if model.context_window is None else model.context_window for model in policy.limits]
        self._longest = [
            np.inf if model.max_output_tokens is None else model.max_output_tokens for model in policy.limits
        ]
        self._limited = min(self._windows) < np.inf
        self._free: list[Rejection | None] = [None] * len(policy.offers)
        self._static: dict[Constraints, list[Rejection | None]] = {}

    def choose(
        self,
        request: Request,
        p_success: Sequence[float],
        output_tokens: Sequence[float],
        input_tokens: Sequence[float],
    ) -> Choice:
        """Choose for one request by its estimates, each [m]; NaN tokens are unknown.

        Where nothing is eligible `order` is empty; `no_offer` makes the error of it.
        """
        cost = self._price(request, output_tokens, input_tokens)
        rejected = self._reject(request, cost, output_tokens, input_tokens)
        return rank(self._column, p_success, cost, rejected, rule_of(self._policy, request))

    def no_offer(self, choice: Choice) -> NoEligibleOfferError:
        """The error for a request that no offer may serve."""
        offers = self._policy.offers
        return NoEligibleOfferError({offer.name: str(why) for offer, why in zip(offers, choice.rejected, strict=True)})

    def _prices(self, *, batch: bool) -> list[_Price]:
        policy = self._policy
        rows = price_table(policy.offers, batch=batch).T.tolist()
        flags, fixed = policy.by_token.tolist(), policy.request_usd.tolist()
        names = [offer.name for offer in policy.offers]
        return [
            _Price(name, j, by_token, row[0], row[1], row[2], usd)
            for name, j, by_token, row, usd in zip(names, self._column, flags, rows, fixed, strict=True)
        ]

    def _price(self, request: Request, output_tokens: Sequence[float], input_tokens: Sequence[float]) -> list[float]:
        cap, cached = request.constraints.max_output_tokens, request.cached_input_tokens
        cost = []
        for name, j, by_token, per_input, per_cached, per_output, usd in (
            self._batch if request.batch else self._regular
        ):
            if by_token:
                inputs, outputs = input_tokens[j], output_tokens[j]
                if cap is not None and outputs > cap:
                    outputs = cap
                tokens = inputs * per_input + outputs * per_output
                if cached:
                    tokens -= min(cached.get(name, 0), inputs) * (per_input - per_cached)
                usd += tokens
            cost.append(usd)
        return cost

    def _reject(
        self, request: Request, cost: list[float], output_tokens: Sequence[float], input_tokens: Sequence[float]
    ) -> list[Rejection | None]:
        """Per offer the first constraint that it breaks, in the order of `Rejection`."""
        limits = request.constraints
        # NaN differs from itself.
        if limits is NO_CONSTRAINTS and not self._limited:
            return [Rejection.PRICE_UNKNOWN if usd != usd else None for usd in cost]
        cap, dearest = limits.max_output_tokens, limits.max_cost_usd
        listed = limits.allowed_models or limits.denied_models or limits.allowed_regions or limits.required_capabilities
        rejected = self._static_rejections(limits).copy() if listed else self._free.copy()
        for k, (j, usd) in enumerate(zip(self._column, cost, strict=True)):
            if rejected[k] is not None:
                continue
            inputs, answer = input_tokens[j], output_tokens[j] if cap is None else cap
            needed = (inputs if inputs == inputs else 0.0) + (answer if answer == answer else 0.0)
            if needed > self._windows[k]:
                rejected[k] = Rejection.CONTEXT_WINDOW
            elif cap is not None and cap > self._longest[k]:
                rejected[k] = Rejection.OUTPUT_LIMIT
            elif dearest is not None and usd > dearest:
                rejected[k] = Rejection.MAX_COST
            elif usd != usd:
                rejected[k] = Rejection.PRICE_UNKNOWN
        return rejected

    def _static_rejections(self, limits: Constraints) -> list[Rejection | None]:
        """[o], what follows from the catalog alone; cached, since backends send few distinct sets."""
        known = self._static.get(limits)
        if known is None:
            known = [self._static_rejection(k, limits) for k in range(len(self._column))]
            if len(self._static) >= _MAX_CACHED_CONSTRAINTS:
                self._static.clear()
            self._static[limits] = known
        return known

    def _static_rejection(self, k: int, limits: Constraints) -> Rejection | None:
        offer, model = self._policy.offers[k], self._policy.limits[k]
        if limits.allowed_models and offer.model not in limits.allowed_models:
            return Rejection.MODEL_NOT_ALLOWED
        if offer.model in limits.denied_models:
            return Rejection.MODEL_DENIED
        # An offer of unknown region cannot be shown to keep a residency rule.
        if limits.allowed_regions and offer.region not in limits.allowed_regions:
            return Rejection.REGION
        if not set(limits.required_capabilities) <= set(model.capabilities):
            return Rejection.CAPABILITY
        return None


def rule_of(policy: Policy, request: Request) -> tuple[Rule, float, Reason]:
    """The rule and level that a request is decided by, and why what they choose is chosen."""
    if request.min_success_probability is not None:
        return Rule.THRESHOLD, request.min_success_probability, Reason.CHEAPEST_CLEARING
    target = request.quality_target
    return policy.default_rule if target is None else policy.rule_at(target)


def rank(
    column: Sequence[int],
    p_success: Sequence[float],
    cost: list[float],
    rejected: list[Rejection | None],
    by: tuple[Rule, float, Reason],
) -> Choice:
    """Order the offers that are not rejected; `column` [o] is the model of each, `p_success` [m], `by` of `rule_of`."""
    rule, level, reason = by
    ranked: list[tuple[float, ...]]
    eligible = [
        (p_success[j], usd, k)
        for k, (j, usd, why) in enumerate(zip(column, cost, rejected, strict=True))
        if why is None
    ]
    if rule is Rule.PROMISE:
        # Equal scores (two offers of one model at lambda 0) go to the cheaper one.
        ranked = [(level * usd - p, usd, k) for p, usd, k in eligible]
        ranked.sort()
    else:
        # Of the clearing offers at one price, the likelier; of the others at one likelihood, the cheaper.
        ranked = [(0, usd, -p, k) if p >= level else (1, -p, usd, k) for p, usd, k in eligible]
        ranked.sort()
        if not ranked or ranked[0][0]:
            reason = Reason.NONE_CLEARS
    reasons = (reason, Reason.ONLY_ELIGIBLE) if len(ranked) == 1 else (reason,)
    return Choice([key[-1] for key in ranked], cost, rejected, reasons)  # type: ignore[misc]
