"""Estimators of the value of a policy from logged rows.

Each is the mean of a `plain` term plus a weighted sum over its `normaliser`, [n] each, so one linearisation and
one bootstrap serve them all (`Contribution`). In the formulas r is the reward, a the logged action, w the weight,
q(x, j) the estimate of model j, q(x, pi) = sum_j pi(j|x) q(x, j), and E_n the mean over n rows. Rows whose reward
was not reported keep their plain term, and those that were stand for them (`LoggedRows.label_weight` multiplies w).
All but the direct method need right propensities, and support: the logging policy could have chosen whatever the
judged one does. Where it could not, IPS counts those choices as reward 0, SNIPS as the mean of the others, and
those with a model as q says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from router_ml.types import Float64Array
from training.off_policy.logged import LoggedRows
from training.off_policy.slope import choose_by_slope

_CANDIDATES = 12
"""Values of the tuning parameter that are tried."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """``value = mean(plain) + sum(weighted) / sum(normaliser)``, [n] each."""

    plain: Float64Array
    weighted: Float64Array
    normaliser: Float64Array
    tuning: float | None = None
    """What was chosen from data: lambda of DRos, tau of SWITCH; None where there is nothing to choose."""

    @property
    def value(self) -> float:
        total = self.normaliser.sum()
        return float(self.plain.mean() + (self.weighted.sum() / total if total > 0 else 0.0))

    @property
    def influence(self) -> Float64Array:
        """[n], what each row adds to the value's deviation from its mean, to first order (delta method); sums to 0."""
        n, total = len(self.plain), self.normaliser.sum()
        psi = (self.plain - self.plain.mean()) / n
        if total > 0:
            psi = psi + (self.weighted - self.weighted.sum() / total * self.normaliser) / total
        return np.asarray(psi)


def direct_method(rows: LoggedRows) -> Contribution:
    """DM: ``E_n[q(x, pi)]``.

    Unbiased only where q is, on the prompts and models that pi chooses; needs no propensities and no support.
    Fails silently: its interval tells nothing of the error of q, which is largest where the logging policy seldom
    went. Source: Beygelzimer & Langford (2009), The offset tree, sec. 1; Dudik, Langford & Li (2011), eq. 1.
    """
    return Contribution(_expected(rows), np.zeros(len(rows)), np.ones(len(rows)))


def inverse_propensity(rows: LoggedRows) -> Contribution:
    """IPS: ``E_n[w r]``.

    Unbiased with right propensities and support, whatever the rewards. Fails by variance: one row of a small
    propensity may decide; it changes when a constant is added to every reward, and leaves the range of the rewards.
    Source: Horvitz & Thompson (1952); Dudik, Langford & Li (2011), eq. 2.
    """
    weight = rows.weight * rows.label_weight
    return Contribution(np.zeros(len(rows)), weight * np.nan_to_num(rows.reward), np.ones(len(rows)))


def self_normalised_ips(rows: LoggedRows) -> Contribution:
    """SNIPS: ``sum w r / sum w``.

    Consistent under the conditions of IPS, with a bias of order 1 / effective sample size; stays within the range of
    the rewards and moves with an added constant. Fails without support, silently: what could not be chosen is taken
    to be like the rest. Source: Swaminathan & Joachims (2015), The self-normalized estimator, eq. 8.
    """
    weight = rows.weight * rows.label_weight
    return Contribution(np.zeros(len(rows)), weight * np.nan_to_num(rows.reward), weight)


def doubly_robust(rows: LoggedRows) -> Contribution:
    """DR: ``E_n[q(x, pi) + w (r - q(x, a))]``.

    Unbiased when propensities are right (with support), or when q is; q must not have seen the row's reward. Its
    variance is that of the residuals, so a good q pays. Fails by variance as IPS does where weights are large and
    q is poor. Source: Dudik, Langford & Li (2011), Doubly robust policy evaluation and learning, eq. 3.
    """
    weight = rows.weight * rows.label_weight
    return Contribution(_expected(rows), weight * rows.residual, np.ones(len(rows)))


def self_normalised_dr(rows: LoggedRows) -> Contribution:
    """SNDR: ``E_n[q(x, pi)] + sum w (r - q(x, a)) / sum w``.

    Consistent whenever DR is, with a bias of order 1 / effective sample size; a constant error of q cancels exactly.
    Fails as DR does, and without support takes the errors of q seen elsewhere to hold there too.
    Source: Thomas & Brunskill (2016), Data-efficient off-policy policy evaluation, sec. 4 (weighted DR), for one step.
    """
    weight = rows.weight * rows.label_weight
    return Contribution(_expected(rows), weight * rows.residual, weight)


def switch_dr(rows: LoggedRows) -> Contribution:
    """SWITCH-DR: ``E_n[q(x, pi) + w 1{w <= tau} (r - q(x, a))]``, tau chosen by SLOPE.

    Biased by what q gets wrong where w > tau, in exchange for weights that are bounded; DR for a great tau, DM for
    tau = 0. Fails where q is wrong just where weights are large, which the data of those rows alone could tell.
    Source: Wang, Agarwal & Dudik (2017), Optimal and adaptive off-policy evaluation, eq. 8.
    """
    weight, expected = rows.weight, _expected(rows)
    correction = rows.label_weight * rows.residual
    positive = np.unique(weight[weight > 0])
    if not positive.size:
        return Contribution(expected, np.zeros(len(rows)), np.ones(len(rows)))
    taus = np.append(np.quantile(positive, np.linspace(0, 1, _CANDIDATES))[::-1], 0.0)
    return _chosen(
        rows,
        taus,
        [
            Contribution(expected, np.where(weight <= tau, weight, 0) * correction, np.ones(len(rows)), float(tau))
            for tau in taus
        ],
    )


def shrunk_dr(rows: LoggedRows) -> Contribution:
    """DRos: ``E_n[q(x, pi) + lambda w / (w^2 + lambda) (r - q(x, a))]``, lambda chosen by SLOPE.

    Optimistic shrinkage: the weight that minimises a bound on the mean squared error for any q; DR as lambda grows,
    DM at 0. Biased towards q where weights are large; fails as SWITCH-DR does, more smoothly.
    Source: Su, Dimakopoulou, Krishnamurthy & Dudik (2020), Doubly robust off-policy evaluation with shrinkage, eq. 6.
    """
    weight, expected = rows.weight, _expected(rows)
    correction = rows.label_weight * rows.residual
    largest = max(float(weight.max()) ** 2, 1e-6)
    scale = np.append(np.geomspace(1e2, 1e-3, _CANDIDATES - 1) * largest, 0.0)
    lambdas = np.concatenate([[np.inf], scale])
    shrunk = [weight if np.isinf(c) else c * weight / np.maximum(weight**2 + c, 1e-300) for c in lambdas]
    found = [
        Contribution(expected, s * correction, np.ones(len(rows)), float(c))
        for s, c in zip(shrunk, lambdas, strict=True)
    ]
    return _chosen(rows, lambdas, found)


Estimator = Callable[[LoggedRows], Contribution]

ESTIMATORS: dict[str, Estimator] = {
    "direct method": direct_method,
    "IPS": inverse_propensity,
    "self-normalised IPS": self_normalised_ips,
    "doubly robust": doubly_robust,
    "self-normalised doubly robust": self_normalised_dr,
    "SWITCH-DR": switch_dr,
    "DR with optimistic shrinkage": shrunk_dr,
}
"""By name, as reports show them."""

DEFAULT = "self-normalised doubly robust"
"""Chosen by the study of docs/learning.md."""


def _expected(rows: LoggedRows) -> Float64Array:
    """[n], q(x, pi)."""
    return np.asarray((rows.target * rows.q).sum(axis=1))


def _chosen(rows: LoggedRows, parameters: Float64Array, found: list[Contribution]) -> Contribution:
    """The candidate that SLOPE takes; they go from the least biased to the least varying."""
    return found[choose_by_slope(found, rows.cluster)]
