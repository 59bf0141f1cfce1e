"""Exploration: a small share of decisions is left to chance, so that the logs tell what the policy does not see.

Chance chooses among the safe models of a request: those with an eligible offer that costs at most a multiple of
the greedy choice's, and whose estimated success is not below a floor. The greedy choice, the one of the policy, is
always among them, whatever its estimate, and keeps a probability of at least 1 - share. The probabilities are
computed first and the model is drawn from those very numbers, so a logged propensity is exact.

Array letters: n requests, m models in the bundle's order.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml.errors import InputError
from router_ml.policy import Policy
from router_ml.request_policy import Choice
from router_ml.thompson import chance_of_best
from router_ml.types import Estimates, Float64Array, Reason, Rule

_NO_DEVIATION = "the exploration rule `thompson` needs the deviations of the models' log-odds; found none"


class ExplorationRule(StrEnum):
    """How the share is spread over the safe models."""

    EPSILON = "epsilon"
    """Evenly, the greedy choice included."""

    THOMPSON = "thompson"
    """By the probability that each would be the policy's choice, if the truth is as uncertain as the bundle says."""


@dataclass(frozen=True, slots=True)
class Exploration:
    """How much is left to chance, and where. InputError on a value out of its range."""

    share: float
    """Of the decisions, in (0, 1): the most probability that all but the greedy choice have together."""
    rule: ExplorationRule = ExplorationRule.EPSILON
    cost_multiple: float = 2.0
    """A model is not tried where it costs more than so many times the greedy choice, 1 or more. With the default,
    exploring raises the expected cost of no request by more than the share."""
    floor: float = 0.5
    """A model is not tried where its estimated success is lower, in [0, 1]. Below the default, trying it would be
    likelier to fail a user than to serve one."""
    salt: str = ""
    """Names the sequence of draws; empty: the hash of the bundle that decides."""

    def __post_init__(self) -> None:
        if self.rule not in tuple(ExplorationRule):
            raise InputError(f"`rule` of exploration must be one of {', '.join(ExplorationRule)}; found {self.rule!r}")
        for name, low, high, bounds in (
            ("share", 0.0, 1.0, "between 0 and 1, both excluded"),
            ("cost_multiple", 1.0, sys.float_info.max, "of 1 or more, and finite"),
            ("floor", 0.0, 1.0, "in [0, 1]"),
        ):
            value = getattr(self, name)
            inside = isinstance(value, float | int) and low <= value <= high
            if not inside or (name == "share" and value in (low, high)):
                raise InputError(f"`{name}` of exploration must be a number {bounds}; found {value!r}")
        if not isinstance(self.salt, str):
            raise InputError(f"`salt` of exploration must be a string; found {self.salt!r}")

    def __str__(self) -> str:
        return f"{self.rule}, share {self.share:g}, at most {self.cost_multiple:g} times the cost, floor {self.floor:g}"


class Drawn(NamedTuple):
    """What chance had to do with one decision; for the journal, not for callers."""

    settings: Exploration
    deviation: tuple[float, ...] | None
    """[m], standard deviations of the models' log-odds of success; None where they played no part."""


class Spread(NamedTuple):
    """What chance may choose for one request."""

    models: list[int]
    probability: list[float]
    """Of each of these models, in [0, 1]."""
    first: dict[int, int]
    """Model -> the offer of it that the policy ranks first."""
    drawn: Drawn


class Draw(NamedTuple):
    """A choice after chance has had its say."""

    order: list[int]
    """The eligible offers, chosen first, the others in the order of the policy."""
    reasons: tuple[Reason, ...]
    propensity: float
    """Probability in (0, 1] of the chosen model."""
    drawn: Drawn


class Explorer:
    """Draws for one request at a time. Stateless towards requests and safe to share between threads."""

    def __init__(self, settings: Exploration, bundle_sha256: str) -> None:
        self.settings = settings
        self._key = hashlib.sha256((settings.salt or bundle_sha256).encode()).digest()
        self._certain = Drawn(settings, None)

    def spread(
        self,
        choice: Choice,
        column: Sequence[int],
        p_success: Sequence[float],
        by: tuple[Rule, float, Reason],
        deviation: Sequence[float] | None,
    ) -> Spread:
        """The chances of the models of a choice with an eligible offer.

        `column` [o] is the model of each offer, `by` what the choice was made by. `p_success` and `deviation` are
        [m], the latter for `thompson` alone.
        """
        settings, cost = self.settings, choice.cost_usd
        greedy = column[choice.order[0]]
        dearest = settings.cost_multiple * cost[choice.order[0]]
        first: dict[int, int] = {}
        for k in choice.order:
            j = column[k]
            if j not in first and (j == greedy or (cost[k] <= dearest and p_success[j] >= settings.floor)):
                first[j] = k
        if len(first) == 1:
            return Spread([greedy], [1.0], first, self._certain)
        models = sorted(first)
        if settings.rule is ExplorationRule.EPSILON:
            even = settings.share / len(models)
            probability = [even] * len(models)
            probability[models.index(greedy)] = 1.0 - settings.share + even
            return Spread(models, probability, first, self._certain)
        if deviation is None:
            raise InputError(_NO_DEVIATION)
        p = np.array([[p_success[j] for j in models]])
        usd = np.array([[cost[first[j]] for j in models]])
        spread = np.array([[deviation[j] for j in models]])
        at = np.array([models.index(greedy)])
        (row,) = probabilities(settings, p, usd, at, rule=by[0], level=by[1], deviation=spread)
        return Spread(models, row.tolist(), first, Drawn(settings, tuple(deviation)))

    def draw(
        self,
        decision_id: str,
        choice: Choice,
        column: Sequence[int],
        p_success: Sequence[float],
        by: tuple[Rule, float, Reason],
        deviation: Sequence[float] | None,
    ) -> Draw:
        """Draw a model, and of that model the offer that the policy ranks first; arguments as for `spread`."""
        models, probability, first, drawn = self.spread(choice, column, p_success, by, deviation)
        if len(models) == 1:
            return Draw(choice.order, choice.reasons, 1.0, drawn)
        place = _pick(probability, uniform(decision_id, self._key))
        chosen = first[models[place]]
        if models[place] == column[choice.order[0]]:
            return Draw(choice.order, choice.reasons, probability[place], drawn)
        order = [chosen, *(k for k in choice.order if k != chosen)]
        return Draw(order, (Reason.EXPLORED,), probability[place], drawn)


def uniform(decision_id: str, key: bytes) -> float:
    """A number in [0, 1), 53 bits of the keyed BLAKE2b hash (RFC 7693) of the decision's id."""
    digest = hashlib.blake2b(decision_id.encode(), digest_size=8, key=key).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def _pick(probability: Sequence[float], u: float) -> int:
    """The place where the sum of the probabilities passes `u`."""
    total = 0.0
    for place, each in enumerate(probability):
        total += each
        if u < total:
            return place
    # Rounding left the sum below one: the last that can be chosen at all.
    return max(place for place, each in enumerate(probability) if each > 0)


# -- many requests at once -------------------------------------------------------------------------


def choice_probabilities(
    policy: Policy,
    estimates: Estimates,
    exploration: Exploration | None = None,
    *,
    quality_target: float | None = None,
    deviation: NDArray[np.floating] | None = None,
) -> Float64Array:
    """Probability [n, m] that the policy, with exploration if any, chooses each model for each of n requests.

    Rows sum to 1, or to 0 where nothing is eligible. `deviation` [n, m] is what `thompson` needs, see `uncertainty`.
    """
    rule, level, _ = policy.rule_at(policy.points.default_target if quality_target is None else quality_target)
    cost = policy.price(estimates)
    choices = policy.choose_at(estimates, rule, level, cost)
    can = choices.n_eligible > 0
    greedy = policy.column[choices.order[:, 0]]
    found = np.zeros((len(cost), len(policy.models)))
    if exploration is None:
        found[np.flatnonzero(can), greedy[can]] = 1.0
        return found
    open_cost = np.where(policy.eligible(estimates, cost), cost, np.inf)
    found[can] = probabilities(
        exploration,
        estimates.p_success[can].astype(np.float64),
        policy.cheapest(open_cost[can]),
        greedy[can],
        rule=rule,
        level=level,
        deviation=None if deviation is None else deviation[can].astype(np.float64),
    )
    return found


def probabilities(
    exploration: Exploration,
    p_success: Float64Array,
    cost_usd: Float64Array,
    greedy: NDArray[np.intp],
    *,
    rule: Rule,
    level: float,
    deviation: Float64Array | None = None,
) -> Float64Array:
    """Probability [n, m] of each model; rows sum to 1, `greedy` [n] has at least 1 - share, unsafe models have 0.

    `p_success`, `cost_usd` and `deviation` are [n, m]; cost is that of the model's cheapest eligible offer, infinite
    or NaN where it has none. InputError where `thompson` gets no deviations.
    """
    rows = np.arange(len(greedy))
    dearest = exploration.cost_multiple * cost_usd[rows, greedy]
    safe = np.isfinite(cost_usd) & (cost_usd <= dearest[:, None]) & (p_success >= exploration.floor)
    safe[rows, greedy] = True
    if exploration.rule is ExplorationRule.EPSILON:
        spread = safe / safe.sum(axis=1, keepdims=True)
    elif deviation is None:
        raise InputError(_NO_DEVIATION)
    else:
        spread = chance_of_best(p_success, cost_usd, deviation, safe, rule=rule, level=level)
    found: Float64Array = exploration.share * spread
    found[rows, greedy] += 1.0 - exploration.share
    return found
