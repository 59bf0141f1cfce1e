"""Whether units came to the arms as often as they should: sample-ratio mismatch, at every look.

Logarithms of e-values: evidence whose mean is 1 at most while the split is right, whenever one looks, so that it
reaches 1 / alpha with probability at most alpha (Ville's inequality).
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln

from router_ml.types import Float64Array
from training.ab.moments import Ints

_CONCENTRATION = 1000.0
"""Of the Dirichlet prior around the right shares: it expects a split that is off by a point or two, which is what goes
unnoticed otherwise; far greater mistakes show at once under any prior."""


def split_evidence(counts: Ints, shares: Float64Array) -> Float64Array:
    """Log e-value after each look against the right `shares` [periods, arms], from all units so far.

    `counts` [t, periods, arms]. The sequential multinomial test of Lindon & Malek (2020, arXiv:2011.03567): the
    Dirichlet-multinomial probability of the counts over that under the right shares, multiplied over the periods
    between changes of the shares. An arm that should get nothing and gets a unit is infinite evidence.
    """
    with np.errstate(divide="ignore"):
        expected = np.where(counts > 0, counts * np.log(shares), 0.0).sum(axis=-1)
    prior = np.maximum(_CONCENTRATION * shares, 1e-9)
    return np.asarray((_dirichlet_multinomial(counts, prior) - expected).sum(axis=-1))


def constancy_evidence(counts: Ints) -> Float64Array:
    """Log e-value after each look against shares that never change, whatever they are, from counts [t, arms] per look.

    For tests whose shares nobody stated. Universal inference (Wasserman, Ramdas & Balakrishnan 2020, PNAS 117(29),
    section 8): each look is predicted from those before it, and the product is held against the best constant shares.
    """
    before = np.cumsum(counts, axis=0) - counts
    share = (before + 1) / (before + 1).sum(axis=1, keepdims=True)
    weight = np.minimum(before.sum(axis=1, keepdims=True) + counts.shape[1], _CONCENTRATION)
    predicted = np.cumsum(_dirichlet_multinomial(counts, share * weight))
    total = np.cumsum(counts, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        best = np.where(total > 0, total * np.log(total / total.sum(axis=1, keepdims=True)), 0.0).sum(axis=1)
    return np.asarray(predicted - best)


def _dirichlet_multinomial(counts: Ints, prior: Float64Array) -> Float64Array:
    """Log probability of one sequence with these counts [..., arms]."""
    a, n = prior.sum(axis=-1), counts.sum(axis=-1)
    each = (gammaln(prior + counts) - gammaln(prior)).sum(axis=-1)
    return np.asarray(gammaln(a) - gammaln(a + n) + each)
