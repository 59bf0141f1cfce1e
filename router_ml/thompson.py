"""The probability that a model is the policy's choice, when what is known of its success is uncertain.

Each model's log-odds of success are taken as independent and logistic around their estimate, with the given standard
deviation: the shape of a normal but for its tails, and with a distribution function that costs one exponential.
Thompson (1933) draws from it once and takes the best. Here the probability of each outcome of that draw is computed
instead, by Gauss-Legendre quadrature over the quantiles of one model at a time, so that the propensity of what is
then drawn from these numbers is exact whatever the error of the quadrature.

Array letters: n requests, m models, q nodes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Float64Array, Rule

_NODES, _WEIGHTS = (x / 2 for x in np.polynomial.legendre.leggauss(32))
_QUANTILES = _NODES + 0.5
_CELLS_AT_ONCE = 1 << 20
"""Numbers of one array that are held at a time."""
_LEAST_SCALE = 1e-4
"""Of log-odds: certainty, but for the division."""
_LEAST_ODDS = 1e-9


def chance_of_best(
    p_success: Float64Array,
    cost_usd: Float64Array,
    deviation: Float64Array,
    among: NDArray[np.bool_],
    *,
    rule: Rule,
    level: float,
) -> Float64Array:
    """Probability [n, m] that each model is the choice of `rule` at `level`; 0 outside `among`, rows sum to 1.

    All arrays are [n, m]; `deviation` is of the log-odds of `p_success`, 0 or more. `among` holds one model or more
    of each row. The first of equals takes all where costs are equal under `threshold`.
    """
    n, m = p_success.shape
    rows = max(1, _CELLS_AT_ONCE // (m * m * len(_NODES)))
    found = np.empty((n, m))
    for part in (slice(a, a + rows) for a in range(0, n, rows)):
        found[part] = _chance(p_success[part], cost_usd[part], deviation[part], among[part], rule, level)
    return found


def _chance(
    p: Float64Array, cost: Float64Array, deviation: Float64Array, among: NDArray[np.bool_], rule: Rule, level: float
) -> Float64Array:
    centre = _log_odds(p)
    scale = np.maximum(deviation * (np.sqrt(3) / np.pi), _LEAST_SCALE)
    if rule is Rule.PROMISE:
        found = _best_of_all(centre, scale, level * np.where(among, cost, 0.0), among, np.ones(p.shape))
    else:
        below = _distribution(np.full(p.shape, level), centre, scale)
        # None clears: the likeliest of them, each known to lie below the level.
        found = _best_of_all(centre, scale, np.zeros(p.shape), among, below)
        found += _first_to_clear(p, np.where(among, cost, np.inf), np.where(among, 1.0 - below, 0.0))
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def _best_of_all(
    centre: Float64Array, scale: Float64Array, price: Float64Array, among: NDArray[np.bool_], top: Float64Array
) -> Float64Array:
    """P(model j has the highest success minus price, and lies below its quantile `top`), all arrays [n, m].

    The integral over j's quantile u in (0, top) of the probability that every other model lies below it.
    """
    m = centre.shape[1]
    u = top[:, :, None] * _QUANTILES
    value = _probability(centre[:, :, None] + scale[:, :, None] * _log_odds(u)) - price[:, :, None]
    # [n, j, k, q]: is model k below where model j is at its node q?
    others = value[:, :, None, :] + price[:, None, :, None]
    below = _distribution(others, centre[:, None, :, None], scale[:, None, :, None])
    np.copyto(below, 1.0, where=(~among[:, None, :] | np.eye(m, dtype=bool))[..., None])
    return np.asarray(np.where(among, top * (below.prod(axis=2) @ _WEIGHTS), 0.0))


def _first_to_clear(p: Float64Array, cost: Float64Array, clears: Float64Array) -> Float64Array:
    """P(model j clears and none that is cheaper does); of equal cost the likelier comes first."""
    order = np.lexsort((-p, cost))
    ordered = np.take_along_axis(clears, order, axis=1)
    none_before = np.cumprod(np.concatenate([np.ones((len(p), 1)), 1.0 - ordered[:, :-1]], axis=1), axis=1)
    found = np.empty(p.shape)
    np.put_along_axis(found, order, ordered * none_before, axis=1)
    return found


def _distribution(p: Float64Array, centre: Float64Array, scale: Float64Array) -> Float64Array:
    """P(success probability of the model is below `p`), of any p; 0 or 1 outside (0, 1)."""
    return np.asarray(_probability((_log_odds(p) - centre) / scale))


def _probability(log_odds: Float64Array) -> Float64Array:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * log_odds))


def _log_odds(p: Float64Array) -> Float64Array:
    p = np.minimum(np.maximum(p, _LEAST_ODDS), 1 - _LEAST_ODDS)  # in a third of the time of np.clip
    return np.asarray(np.log(p / (1 - p)))
