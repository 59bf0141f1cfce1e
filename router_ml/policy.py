"""From estimates and a catalog to choices for many prompts at once: pure, no I/O.

What fitting, evaluation and `predict` sweep, without the constraints of a request; those are weighed
one request at a time by `request_policy`, which takes its prices and levels from here and chooses the same where
nothing is constrained. Array letters: n prompts, m models in the bundle's order, o offers in catalog order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router_ml.catalog import Catalog, Offer
from router_ml.errors import BundleError
from router_ml.operating_points import OperatingPoints
from router_ml.types import Estimates, Float64Array, Reason, Rule


@dataclass(frozen=True, slots=True)
class Choices:
    """What the policy picked for n prompts among o offers."""

    order: NDArray[np.intp]
    """[n, o], offers from the chosen one down; the first `n_eligible[i]` of row i are eligible."""
    n_eligible: NDArray[np.intp]
    """[n]; 0: nothing could be chosen."""
    cost_usd: Float64Array
    """[n, o], expected cost of the call; NaN where it cannot be known."""

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
        self.limits = tuple(limits[offer.model] for offer in self.offers)
        """Per offer, what its model takes."""
        self.prices = price_table(self.offers, batch=False)
        """[3, o]: input, cached input and output in US dollars per token."""
        self.request_usd = _floats([offer.request_usd for offer in self.offers], 0.0)
        """[o], on top of the tokens."""
        self.by_token = np.array([offer.input_usd_per_mtok is not None for offer in self.offers])
        """[o]; False: a price per request alone, so tokens need not be known."""
        self.default_rule = self.rule_at(points.default_target)
        """`rule_at` the target of requests that set none."""
        self._context = _floats([model.context_window for model in self.limits], np.inf)

    def price(self, estimates: Estimates, *, cached: Float64Array | None = None) -> Float64Array:
        """Expected cost of each call in US dollars, [n, o]; NaN where tokens are needed and not known.

        `cached`, [n, m], is the part of the input that each model's provider held in its prompt cache, where a log
        tells it; NaN counts as nothing.
        """
        inputs = estimates.input_tokens.take(self.column, axis=1).astype(np.float64)
        outputs = estimates.output_tokens.take(self.column, axis=1).astype(np.float64)
        per_input, per_cached, per_output = self.prices
        cost = inputs * per_input + outputs * per_output
        if cached is not None:
            held = np.nan_to_num(cached).take(self.column, axis=1)
            cost -= np.minimum(held, inputs) * (per_input - per_cached)
        np.copyto(cost, 0.0, where=~self.by_token)
        cost += self.request_usd
        return np.asarray(cost)

    def cheapest(self, cost: Float64Array) -> Float64Array:
        """Cost [n, m] of each model's cheapest offer, from the cost [n, o] of offers; NaN for a model without one."""
        cheapest = np.full((len(cost), len(self.models)), np.nan)
        for j in np.unique(self.column):
            cheapest[:, j] = cost[:, self.column == j].min(axis=1)
        return cheapest

    def eligible(self, estimates: Estimates, cost: Float64Array) -> NDArray[np.bool_]:
        """[n, o], the offers whose price is known and whose context window takes the prompt and its answer."""
        # fmax takes what is unknown as zero, in a tenth of the time of nan_to_num.
        needed, outputs = (
            np.fmax(tokens.take(self.column, axis=1), 0).astype(np.float64)
            for tokens in (estimates.input_tokens, estimates.output_tokens)
        )
        return np.asarray(~np.isnan(cost) & (needed + outputs <= self._context))

    def choose(self, estimates: Estimates, *, quality_target: float | None = None) -> Choices:
        """Choose for n prompts, all at `quality_target`; None: the default one."""
        rule, level, _ = self.rule_at(self.points.default_target if quality_target is None else quality_target)
        return self.choose_at(estimates, rule, level)

    def choose_at(self, estimates: Estimates, rule: Rule, level: float, cost: Float64Array | None = None) -> Choices:
        """Choose at one level: lambda for `promise`, a probability for `threshold`.

        `cost` [n, o] saves pricing again.
        """
        cost = self.price(estimates) if cost is None else cost
        p = estimates.p_success.take(self.column, axis=1).astype(np.float64)
        out = ~self.eligible(estimates, cost)
        price = np.where(out, np.inf, cost)
        if rule is Rule.PROMISE:
            loss = level * cost
            loss -= p
            loss[out] = np.inf
            # Equal scores (two offers of one model at lambda 0) go to the cheaper one.
            order = np.lexsort((price, loss))
        else:
            clears = ~out & (p >= level)
            # Of the clearing offers at one price, the likelier; of the others at one likelihood, the cheaper.
            order = np.lexsort((np.where(clears, -p, price), np.where(clears, price, -p), ~clears, out))
        return Choices(order, np.count_nonzero(~out, axis=1), cost)

    def rule_at(self, target: float) -> tuple[Rule, float, Reason]:
        """The rule and the level in force at a quality target, and why what they choose is chosen."""
        if self.points.rule is Rule.THRESHOLD:
            level, reason = self.points.threshold_for(target), Reason.CHEAPEST_CLEARING
        else:
            level, reason = self.points.willingness_for(target), Reason.BEST_VALUE
        if level is None:  # lambda 0: whatever it costs
            return Rule.PROMISE, 0.0, Reason.TARGET_UNREACHABLE
        return self.points.rule, level, reason


def price_table(offers: Sequence[Offer], *, batch: bool) -> Float64Array:
    """[3, o]: input, cached input, output in US dollars per token; what is not offered costs the regular price."""
    rows = []
    for offer in offers:
        regular_in, regular_out = offer.input_usd_per_mtok or 0.0, offer.output_usd_per_mtok or 0.0
        cached = offer.cached_input_usd_per_mtok
        if batch and offer.batch_input_usd_per_mtok is not None:
            regular_in = offer.batch_input_usd_per_mtok
            cached = None if cached is None else min(cached, regular_in)
        if batch and offer.batch_output_usd_per_mtok is not None:
            regular_out = offer.batch_output_usd_per_mtok
        rows.append((regular_in, regular_in if cached is None else cached, regular_out))
    return np.array(rows).T / 1e6


def _floats(values: Sequence[float | int | None], missing: float) -> Float64Array:
    return np.array([missing if value is None else value for value in values], dtype=np.float64)
