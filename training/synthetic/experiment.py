"""Draws A/B tests whose truth is known, fast enough for thousands: numbers only, no prompts.

Sessions come evenly over the days. A session has at least k turns with probability k to the power of -1.5, and a turn
follows the one before after hours, so that long sessions last for days. Turns of a session share a part of their
difficulty. Of a turn's difficulty and cost a part can be predicted, as a router does. Success is known for some turns
only, and later than the turn; a failure is known sooner than a success.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Float64Array

SESSION_TAIL = 1.5
LONGEST_SESSION = 200
_GAP_DAYS = 0.1
_BASE, _SPAN = 0.1, 0.8
"""Success lies between, so that effects of up to ten points need no clipping and hold exactly."""
_LEVEL = 1.4
"""Log-odds within that range: about 0.7 of the requests succeed."""
_SEEN_SESSION, _HIDDEN_SESSION, _SEEN_TURN, _HIDDEN_TURN = 0.7, 0.5, 0.9, 0.6
"""Standard deviations of log-odds: what can be predicted, and what cannot."""
_SEEN_COST, _HIDDEN_COST = 0.8, 0.6
"""Of the logarithm of cost."""
MEAN_COST_USD = 0.004
_DELAY_DAYS = (0.3, 0.8)
"""Mean time until a failure is known, and a success."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ExperimentSettings:
    """A test of two arms."""

    days: int = 30
    sessions_per_day: int = 200
    share: float = 0.5
    """Of the challenger."""
    success_effect: float = 0.0
    """Added to the probability of success in the challenger, up to 0.1 either way."""
    cost_effect: float = 0.0
    """The challenger's cost is 1 plus this times the control's."""
    label_rate: float = 1.0
    delayed: bool = False
    """Whether outcomes are late."""
    base_success: float | None = None
    """The control's probability of success, the same for every request; None: varies as described, 0.7 on average."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """r requests in order of session, u sessions."""

    arm: Ints
    """[u], 1 is the challenger."""
    session: Ints
    """[r]"""
    time: Float64Array
    """[r], days since the start; below `days`."""
    known: Float64Array
    """[r], days since the start from which on `success` is known; infinite: never."""
    success: Float64Array
    """[r], 0 or 1, whether known or not."""
    cost_usd: Float64Array
    """[r]"""
    predicted: Float64Array
    """[r, 2], success and cost as a router predicts them, whatever the arm."""


def draw_experiment(rng: np.random.Generator, settings: ExperimentSettings) -> Experiment:
    """One test."""
    u = settings.sessions_per_day * settings.days
    n_turns = np.minimum((1.0 - rng.random(u)) ** (-1.0 / SESSION_TAIL), LONGEST_SESSION).astype(np.int64)
    session = np.repeat(np.arange(u), n_turns)
    arm = (rng.random(u) < settings.share).astype(np.int64)
    r = len(session)
    first = np.concatenate([[0], np.cumsum(n_turns)[:-1]])
    gaps = rng.exponential(_GAP_DAYS, r)
    gaps[first] = np.sort(rng.random(u)) * settings.days
    total = np.cumsum(gaps)
    time = total - (total[first] - gaps[first])[session]

    def normal(scale: float, n: int) -> Float64Array:
        return np.asarray(scale * rng.standard_normal(n))

    seen = _LEVEL + normal(_SEEN_SESSION, u)[session] + normal(_SEEN_TURN, r)
    odds = seen + normal(_HIDDEN_SESSION, u)[session] + normal(_HIDDEN_TURN, r)
    p = _BASE + _SPAN / (1 + np.exp(-odds))
    if settings.base_success is not None:
        p = np.full(r, settings.base_success)
    p += settings.success_effect * arm[session]
    success = (rng.random(r) < p).astype(np.float64)
    seen_cost = normal(_SEEN_COST, r) - _SEEN_COST**2 / 2
    cost = MEAN_COST_USD * np.exp(seen_cost + normal(_HIDDEN_COST, r) - _HIDDEN_COST**2 / 2)
    cost *= 1 + settings.cost_effect * arm[session]
    delay = rng.exponential(np.where(success > 0, _DELAY_DAYS[1], _DELAY_DAYS[0])) if settings.delayed else 0.0
    known = np.where(rng.random(r) < settings.label_rate, time + delay, np.inf)
    predicted = np.column_stack([_BASE + _SPAN / (1 + np.exp(-seen)), MEAN_COST_USD * np.exp(seen_cost)])
    kept = time < settings.days
    return Experiment(arm, session[kept], time[kept], known[kept], success[kept], cost[kept], predicted[kept])
