"""From estimates, catalog and constraints to a choice: pure, batch first, no I/O.

The same object decides in the server, in `predict` and in offline evaluation, so
that what is measured is what is served. Array letters: n requests, m models in
the bundle's order, o offers in catalog order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router_ml.catalog import Catalog
from router_ml.errors import BundleError, NoEligibleOfferError
from router_ml.operating_points import OperatingPoints
from router_ml.types import NO_CONSTRAINTS, Constraints, Estimates, Float64Array, Reason, Rejection, Request, Rule

REJECTIONS: tuple[Rejection | None, ...] = (None, *Rejection)
"""`Choices.rejected` holds indices into this; 0 is eligible."""

_CODE = {rejection: code for code, rejection in enumerate(REJECTIONS)}
_MAX_CACHED_CONSTRAINTS = 1024


@dataclass(frozen=True, slots=True)
class Choices:
    """What the policy picked for n requests among o offers."""

    order: NDArray[np.intp]
    """[n, o], offers from the chosen one down; the first `n_eligible[i]` of row i are eligible."""
    n_eligible: NDArray[np.intp]
    """[n]; 0: nothing could be chosen."""
    cost_usd: Float64Array
    """[n, o], expected cost of the call; NaN where it cannot be known."""
    rejected: NDArray[np.int8]
    """[n, o], index into `REJECTIONS`; 0: eligible."""
    reasons: tuple[tuple[Reason, ...], ...]
    """Per request."""

    @property
    def chosen(self) -> NDArray[np.intp]:
        """[n], the offer chosen; -1 where none is eligible."""
        return np.where(self.n_eligible > 0, self.order[:, 0], -1)


class Policy:
    """Chooses offers. Stateless towards requests and safe to share between threads.

    Offers whose model the bundle cannot judge are left out and listed in
    `unjudged_offers`; models without an offer in `unoffered_models`.
    """

    def __init__(self, catalog: Catalog, models: Sequence[str], points: OperatingPoints) -> None:
        column = {name: j for j, name in enumerate(models)}
        self.offers = tuple(offer for offer in catalog.offers if offer.model in column)
        self.unjudged_offers = tuple(offer.name for offer in catalog.offers if offer.model not in column)
        offered = {offer.model for offer in self.offers}
        self.unoffered_models = tuple(name for name in models if name not in offered)
        if not self.offers:
            raise BundleError(
                f"no offer of the catalog is for a model that the bundle can judge; catalog: "
                f"{sorted({offer.model for offer in catalog.offers})}, bundle: {sorted(models)}"
            )
        self.points = points
        self.models = tuple(models)
        self.column = np.array([column[offer.model] for offer in self.offers], dtype=np.intp)
        """[o], the model of each offer."""
        limits = {model.name: model for model in catalog.models}
        self._limits = tuple(limits[offer.model] for offer in self.offers)
        self._context = _floats([model.context_window for model in self._limits], np.inf)
        self._max_output = _floats([model.max_output_tokens for model in self._limits], np.inf)
        self._by_token = np.array([offer.input_usd_per_mtok is not None for offer in self.offers])
        self._request_usd = _floats([offer.request_usd for offer in self.offers], 0.0)
        self._flat = ~self._by_token if not self._by_token.all() else None
        self._limited_context = bool(np.isfinite(self._context).any())
        self._prices = self._price_table(batch=False)
        self._batch_prices = self._price_table(batch=True)
        self._offer_index = {offer.name: k for k, offer in enumerate(self.offers)}
        self._static: dict[Constraints, NDArray[np.int8]] = {}

    def _price_table(self, *, batch: bool) -> Float64Array:
        """[3, o]: input, cached input, output in US dollars per token; what is not offered costs the regular price."""
        rows = []
        for offer in self.offers:
            regular_in, regular_out = offer.input_usd_per_mtok or 0.0, offer.output_usd_per_mtok or 0.0
            cached = offer.cached_input_usd_per_mtok
            if batch and offer.batch_input_usd_per_mtok is not None:
                regular_in = offer.batch_input_usd_per_mtok
                cached = None if cached is None else min(cached, regular_in)
            if batch and offer.batch_output_usd_per_mtok is not None:
                regular_out = offer.batch_output_usd_per_mtok
            rows.append((regular_in, regular_in if cached is None else cached, regular_out))
        return np.array(rows).T / 1e6

    # -- prices ---------------------------------------------------------------------------------

    def price(
        self,
        estimates: Estimates,
        requests: Sequence[Request] | None = None,
        *,
        cached: Float64Array | None = None,
    ) -> Float64Array:
        """Expected cost of each call in US dollars, [n, o]; NaN where tokens are needed and not known.

        `cached`, [n, m], is the part of the input that each model's provider held, where a log tells it
        and not a request; NaN counts as nothing.
        """
        inputs = estimates.input_tokens.take(self.column, axis=1).astype(np.float64)
        outputs = estimates.output_tokens.take(self.column, axis=1).astype(np.float64)
        per_input, per_cached, per_output = self._prices
        if cached is not None:
            cached = np.nan_to_num(cached).take(self.column, axis=1)
        if requests is not None:
            for i, request in enumerate(requests):
                if request.constraints.max_output_tokens is not None:
                    np.minimum(outputs[i], request.constraints.max_output_tokens, out=outputs[i])
                if request.cached_input_tokens:
                    cached = np.zeros_like(inputs) if cached is None else cached
                    self._set_cached(cached[i], request)
            if any(request.batch for request in requests):
                batch = np.array([request.batch for request in requests])[:, None]
                per_input, per_cached, per_output = (
                    np.where(batch, low, high) for low, high in zip(self._batch_prices, self._prices, strict=True)
                )
        by_token = inputs * per_input + outputs * per_output
        if cached is not None:
            by_token -= np.minimum(cached, inputs) * (per_input - per_cached)
        if self._flat is not None:
            np.copyto(by_token, 0.0, where=self._flat)
        by_token += self._request_usd
        return np.asarray(by_token)

    def _set_cached(self, row: Float64Array, request: Request) -> None:
        for name, tokens in request.cached_input_tokens.items():
            k = self._offer_index.get(name)
            if k is not None:
                row[k] = tokens

    def cheapest(self, cost: Float64Array) -> Float64Array:
        """Cost [n, m] of each model's cheapest offer, from the cost [n, o] of offers; NaN for a model without one."""
        cheapest = np.full((len(cost), len(self.models)), np.nan)
        for j in np.unique(self.column):
            cheapest[:, j] = cost[:, self.column == j].min(axis=1)
        return cheapest

    # -- hard constraints -----------------------------------------------------------------------

    def reject(
        self, estimates: Estimates, cost: Float64Array, requests: Sequence[Request] | None = None
    ) -> NDArray[np.int8]:
        """Hard constraints, [n, o]: index into `REJECTIONS` of the first that an offer breaks, 0 where eligible."""
        n = len(cost)
        rejected = np.isnan(cost).astype(np.int8)
        rejected *= _CODE[Rejection.PRICE_UNKNOWN]
        free = requests is None or all(request.constraints is NO_CONSTRAINTS for request in requests)
        if free and not self._limited_context:
            return rejected
        # fmax takes what is unknown as zero, in a tenth of the time of nan_to_num.
        needed = np.fmax(estimates.input_tokens.take(self.column, axis=1), 0)
        outputs = np.fmax(estimates.output_tokens.take(self.column, axis=1), 0)
        if requests is None:
            rejected[needed + outputs > self._context] = _CODE[Rejection.CONTEXT_WINDOW]
            return rejected
        for i in range(n):
            limits = requests[i].constraints
            if limits.max_cost_usd is not None:
                rejected[i, cost[i] > limits.max_cost_usd] = _CODE[Rejection.MAX_COST]
            answer = outputs[i]
            if limits.max_output_tokens is not None:
                answer = np.float64(limits.max_output_tokens)
                rejected[i, answer > self._max_output] = _CODE[Rejection.OUTPUT_LIMIT]
            rejected[i, needed[i] + answer > self._context] = _CODE[Rejection.CONTEXT_WINDOW]
            if limits.allowed_models or limits.denied_models or limits.allowed_regions or limits.required_capabilities:
                static = self._static_rejections(limits)
                np.copyto(rejected[i], static, where=static > 0)
        return rejected

    def _static_rejections(self, limits: Constraints) -> NDArray[np.int8]:
        """[o], what follows from the catalog alone; cached, since backends send few distinct sets."""
        known = self._static.get(limits)
        if known is not None:
            return known
        codes = np.zeros(len(self.offers), dtype=np.int8)
        for k, offer in enumerate(self.offers):
            codes[k] = _CODE[self._static_rejection(k, offer.model, offer.region, limits)]
        if len(self._static) >= _MAX_CACHED_CONSTRAINTS:
            self._static.clear()
        self._static[limits] = codes
        return codes

    def _static_rejection(self, k: int, model: str, region: str | None, limits: Constraints) -> Rejection | None:
        if limits.allowed_models and model not in limits.allowed_models:
            return Rejection.MODEL_NOT_ALLOWED
        if model in limits.denied_models:
            return Rejection.MODEL_DENIED
        # An offer of unknown region cannot be shown to keep a residency rule.
        if limits.allowed_regions and region not in limits.allowed_regions:
            return Rejection.REGION
        if not set(limits.required_capabilities) <= set(self._limits[k].capabilities):
            return Rejection.CAPABILITY
        return None

    # -- the choice -----------------------------------------------------------------------------

    def choose(
        self,
        estimates: Estimates,
        requests: Sequence[Request] | None = None,
        *,
        quality_target: float | None = None,
    ) -> Choices:
        """Choose for n requests; `requests` None means no constraints, all at `quality_target`.

        A row without any eligible offer has `n_eligible` 0; `explain_none` makes the error of it.
        """
        cost = self.price(estimates, requests)
        rejected = self.reject(estimates, cost, requests)
        default = self.points.default_target if quality_target is None else quality_target
        if not requests:
            rule, level, reason = self._rule(None, default)
            return self._rank(rule, np.full(len(cost), level), estimates, cost, rejected, [reason] * len(cost))
        rules = [self._rule(request, default) for request in requests]
        if len({rule for rule, _, _ in rules}) == 1:
            levels = np.array([level for _, level, _ in rules])
            return self._rank(rules[0][0], levels, estimates, cost, rejected, [reason for _, _, reason in rules])
        parts = [
            self._rank(
                rule, np.array([level]), estimates.take(slice(i, i + 1)), cost[i : i + 1], rejected[i : i + 1], [reason]
            )
            for i, (rule, level, reason) in enumerate(rules)
        ]
        return _stack(parts)

    def choose_at(self, estimates: Estimates, rule: Rule, level: float, cost: Float64Array | None = None) -> Choices:
        """Choose without constraints at one level: lambda for `promise`, a probability for `threshold`.

        What fitting and evaluation sweep; `cost` [n, o] saves pricing again.
        """
        cost = self.price(estimates) if cost is None else cost
        rejected = self.reject(estimates, cost)
        reason = Reason.BEST_VALUE if rule is Rule.PROMISE else Reason.CHEAPEST_CLEARING
        return self._rank(rule, np.full(len(cost), level), estimates, cost, rejected, [reason] * len(cost))

    def explain_none(self, choices: Choices, i: int) -> NoEligibleOfferError:
        """The error for request i that no offer may serve."""
        reasons = (REJECTIONS[code] for code in choices.rejected[i])
        return NoEligibleOfferError({offer.name: str(why) for offer, why in zip(self.offers, reasons, strict=True)})

    def _rule(self, request: Request | None, default_target: float) -> tuple[Rule, float, Reason]:
        if request is not None and request.min_success_probability is not None:
            return Rule.THRESHOLD, request.min_success_probability, Reason.CHEAPEST_CLEARING
        target = default_target if request is None or request.quality_target is None else request.quality_target
        if self.points.rule is Rule.THRESHOLD:
            level, reason = self.points.threshold_for(target), Reason.CHEAPEST_CLEARING
        else:
            level, reason = self.points.willingness_for(target), Reason.BEST_VALUE
        if level is None:  # lambda 0: whatever it costs
            return Rule.PROMISE, 0.0, Reason.TARGET_UNREACHABLE
        return self.points.rule, level, reason

    def _rank(
        self,
        rule: Rule,
        level: Float64Array,
        estimates: Estimates,
        cost: Float64Array,
        rejected: NDArray[np.int8],
        reasons: list[Reason],
    ) -> Choices:
        p = estimates.p_success.take(self.column, axis=1).astype(np.float64)
        out, price = rejected > 0, cost
        constrained = np.count_nonzero(out) > 0
        n_eligible = np.full(len(out), out.shape[1], dtype=np.intp)
        if constrained:
            n_eligible -= np.count_nonzero(out, axis=1)
            price = np.where(out, np.inf, cost)
        if rule is Rule.PROMISE:
            loss = level[:, None] * cost
            loss -= p
            if constrained:
                loss[out] = np.inf
            # Equal scores (two offers of one model at lambda 0) go to the cheaper one.
            order = np.lexsort((price, loss))
        else:
            clears = ~out & (p >= level[:, None])
            # Of the clearing offers at one price, the likelier; of the others at one likelihood, the cheaper.
            order = np.lexsort((np.where(clears, -p, price), np.where(clears, price, -p), ~clears, out))
            cleared = np.count_nonzero(clears, axis=1)
            reasons = [reason if cleared[i] else Reason.NONE_CLEARS for i, reason in enumerate(reasons)]
        return Choices(order, n_eligible, cost, rejected, _with_only(reasons, n_eligible))


def _with_only(reasons: list[Reason], n_eligible: NDArray[np.intp]) -> tuple[tuple[Reason, ...], ...]:
    return tuple(
        (reason, Reason.ONLY_ELIGIBLE) if count == 1 else (reason,)
        for reason, count in zip(reasons, n_eligible.tolist(), strict=True)
    )


def _floats(values: Sequence[float | int | None], missing: float) -> Float64Array:
    return np.array([missing if value is None else value for value in values], dtype=np.float64)


def _stack(parts: Sequence[Choices]) -> Choices:
    return Choices(
        np.concatenate([part.order for part in parts]),
        np.concatenate([part.n_eligible for part in parts]),
        np.concatenate([part.cost_usd for part in parts]),
        np.concatenate([part.rejected for part in parts]),
        tuple(reason for part in parts for reason in part.reasons),
    )
