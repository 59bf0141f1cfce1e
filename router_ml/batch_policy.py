"""The requests of a batch among the offers, chosen for as `RequestPolicy` would one at a time: the very same numbers.

What most requests have in common is computed for all of them at once. A request with constraints of its own, or for
which some offer is out of the question, is left to `RequestPolicy`; a parity test holds the two together.

Array letters: n requests, m models in the bundle's order, o offers in catalog order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml.policy import Policy, price_table
from router_ml.request_policy import Choice, RequestPolicy, rule_of
from router_ml.types import NO_CONSTRAINTS, Float32Array, Float64Array, Reason, Rejection, Request, Rule


class Chosen(NamedTuple):
    """What was picked for one request of a batch, and by which estimates."""

    choice: Choice
    p_success: list[float]
    """[m]"""
    numbers: list[float]
    """As `Weighed` takes them."""


class BatchPolicy:
    """Chooses for many requests at once. Stateless towards requests and safe to share between threads."""

    def __init__(self, policy: Policy, one: RequestPolicy, input_token_ratio: Sequence[float]) -> None:
        self._policy = policy
        self._one = one
        self._ratio = np.array(input_token_ratio, dtype=np.float64)
        self._prices = policy.prices, price_table(policy.offers, batch=True)
        windows = [np.inf if model.context_window is None else model.context_window for model in policy.limits]
        self._windows = np.array(windows) if min(windows) < np.inf else None
        self._none_rejected: list[Rejection | None] = [None] * len(policy.offers)

    def choose(self, requests: Sequence[Request], flat: Float32Array, n_tokens: Float32Array) -> list[Chosen]:
        """Choose for each request, by the graph's output `flat` [n, 3 m] and the tokens [n] of its prompt."""
        column = self._policy.column
        values = flat.astype(np.float64)
        p, outputs, latency = 1.0 - 1.0 / (1.0 + values[:, 0::3]), values[:, 1::3], values[:, 2::3]
        inputs = np.multiply.outer(n_tokens.astype(np.float64), self._ratio)
        for i, request in enumerate(requests):
            if request.input_tokens is not None:
                inputs[i] = request.input_tokens
        by_offer = [each.take(column, axis=1) for each in (p, outputs, inputs, latency)]
        cost = self._price(requests, by_offer[2], by_offer[1])
        alike = self._are_alike(requests, cost, by_offer[2], by_offer[1])
        order, reasons = self._rank(requests, by_offer[0], cost)
        numbers = np.stack((by_offer[0], by_offer[1], cost, by_offer[3]), axis=2).reshape(len(requests), -1).tolist()
        rows = zip(requests, alike, order, cost.tolist(), reasons, p.tolist(), numbers, strict=True)
        chosen = []
        for i, (request, is_alike, offers, usd, why, p_success, all_numbers) in enumerate(rows):
            if is_alike:
                choice = Choice(offers, usd, self._none_rejected, why)
            else:
                choice = self._one.choose(request, p_success, outputs[i].tolist(), inputs[i].tolist())
                all_numbers[2::4] = choice.cost_usd
            chosen.append(Chosen(choice, p_success, all_numbers))
        return chosen

    def _price(self, requests: Sequence[Request], inputs: Float64Array, outputs: Float64Array) -> Float64Array:
        """Cost [n, o] of requests without an output limit or cached tokens."""
        policy, (regular, batch) = self._policy, self._prices
        per_input, _, per_output = regular
        in_batch = [request.batch for request in requests]
        if any(in_batch):
            is_batch = np.array(in_batch)[:, None]
            per_input = np.where(is_batch, batch[0], per_input)
            per_output = np.where(is_batch, batch[2], per_output)
        tokens = inputs * per_input + outputs * per_output
        return np.asarray(np.where(policy.by_token, tokens, 0.0) + policy.request_usd)

    def _are_alike(
        self, requests: Sequence[Request], cost: Float64Array, inputs: Float64Array, outputs: Float64Array
    ) -> list[bool]:
        """Whether nothing but its estimates tells a request from others, and every offer is eligible for it."""
        out = np.isnan(cost)
        if self._windows is not None:
            out |= np.where(np.isnan(inputs), 0.0, inputs) + np.where(np.isnan(outputs), 0.0, outputs) > self._windows
        some_out: list[bool] = np.any(out, axis=1).tolist()
        return [
            not is_out and request.constraints is NO_CONSTRAINTS and not request.cached_input_tokens
            for request, is_out in zip(requests, some_out, strict=True)
        ]

    def _rank(
        self, requests: Sequence[Request], p: Float64Array, cost: Float64Array
    ) -> tuple[list[list[int]], list[tuple[Reason, ...]]]:
        """For each request, where all offers are eligible, the offers from the best down, and why the first is it."""
        by = [rule_of(self._policy, request) for request in requests]
        level = np.array([each[1] for each in by])[:, None]
        reasons = [each[2] for each in by]
        thresholds = [i for i, each in enumerate(by) if each[0] is Rule.THRESHOLD]
        # Equal scores (two offers of one model at lambda 0) go to the cheaper one.
        order = np.lexsort((cost, level * cost - p))
        if thresholds:
            order[thresholds], clears = _by_threshold(p[thresholds], cost[thresholds], level[thresholds])
            for i, one_clears in zip(thresholds, clears, strict=True):
                if not one_clears:
                    reasons[i] = Reason.NONE_CLEARS
        only = (Reason.ONLY_ELIGIBLE,) if len(self._none_rejected) == 1 else ()
        return order.tolist(), [(reason, *only) for reason in reasons]


def _by_threshold(p: Float64Array, cost: Float64Array, level: Float64Array) -> tuple[NDArray[np.intp], list[bool]]:
    """Order [n, o] of the offers, and whether one reaches the level."""
    clears = p >= level
    any_clears: list[bool] = np.any(clears, axis=1).tolist()
    # Of the clearing offers at one price, the likelier; of the others at one likelihood, the cheaper.
    order = np.lexsort((np.where(clears, -p, cost), np.where(clears, cost, -p), ~clears))
    return order, any_clears
