"""What one policy is worth beside another on the requests of the newest days, with an interval and a verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Float64Array
from training.dataset import Dataset
from training.intervals import bootstrap
from training.nightly.choices import Models, Requests

FIGURES = ("success", "cost_usd", "value")
_MARGIN = 0.02
"""In points of success: a policy that is at most so much worse is called no different."""
_FEWEST_EFFECTIVE = 50
_REPEATS = 1000
_MOSTLY = 0.5


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of two policies; None where it cannot be known."""

    estimator: str
    new: float | None
    old: float | None
    difference: float | None
    """New minus old."""
    low: float | None
    high: float | None
    effective_sample_size: float
    verdict: str
    """`better`, `worse`, `no different` or `cannot tell`; of `cost_usd`, less is better."""
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the logs tell of n requests (or n prompts, where every model answered) on m models."""

    estimator: str
    basis: str
    """In words."""
    row: NDArray[np.int64]
    """[n], row of the requests that each stands for."""
    action: Models
    """[n], the model called; -1 where all were."""
    propensity: Float64Array
    """[n]; 1 where all models were called."""
    success: Float64Array
    """[n]: of the model called; or [n, m], NaN unknown."""
    cost_usd: Float64Array
    cluster: NDArray[np.int64]


def evidence_of(requests: Requests, q_cost: Float64Array) -> Evidence:
    """Complete outcomes where the logs hold most models' answers to most prompts, else rows with a propensity."""
    rows = requests.data.rows
    known = ~np.isnan(rows.success)
    success, cost = (_cells(requests, values) for values in (rows.success, rows.cost_usd))
    asked = (~np.isnan(success)).any(axis=1)
    several = (~np.isnan(success)).sum(axis=1) > 1
    if asked.any() and several[asked].mean() > _MOSTLY:
        first = np.unique(rows.prompt, return_index=True)
        at = first[1][np.isin(first[0], np.flatnonzero(several))]
        prompts = rows.prompt[at]
        filled = np.where(np.isnan(cost[prompts]), q_cost[at], cost[prompts])
        basis = f"outcomes of several models on each of {len(at):,} prompts"
        unknown = np.full(len(at), -1)
        return Evidence("direct", basis, at, unknown, np.ones(len(at)), success[prompts], filled, requests.cluster[at])
    propensity, estimated = propensities(requests.data)
    at = np.flatnonzero(known & ~np.isnan(propensity))
    action = requests.action[at]
    filled = np.where(np.isnan(rows.cost_usd[at]), q_cost[at, action], rows.cost_usd[at])
    basis = f"{len(at):,} of {len(known):,} logged requests, those with an outcome and a propensity"
    if estimated[at].any():
        basis += f"; {estimated[at].mean():.0%} of the propensities are estimated, and all rests on these estimates"
    return Evidence("doubly robust", basis, at, action, propensity[at], rows.success[at], filled, requests.cluster[at])


def propensities(data: Dataset) -> tuple[Float64Array, NDArray[np.bool_]]:
    """[r], logged where logged, NaN where unknown; and whether each was estimated."""
    return data.rows.propensity, np.zeros(len(data.rows), dtype=np.bool_)


def compare(
    evidence: Evidence,
    new: Models,
    old: Models,
    q_success: Float64Array,
    q_cost: Float64Array,
    willingness: float,
    confidence: float,
) -> dict[str, Difference]:
    """Success, cost and value (success minus `willingness` times cost) of the choices `new` [r] and `old` [r].

    `q_success` and `q_cost` [r, m] are estimates that saw none of these outcomes.
    """
    a, b = new[evidence.row], old[evidence.row]
    served = (a >= 0) & (b >= 0)
    q = {"success": q_success, "cost_usd": q_cost, "value": q_success - willingness * q_cost}
    reward = {
        "success": evidence.success,
        "cost_usd": evidence.cost_usd,
        "value": evidence.success - willingness * evidence.cost_usd,
    }
    return {
        name: _difference(name, evidence, reward[name], a, b, q[name][evidence.row], served, confidence)
        for name in FIGURES
    }


def _difference(
    name: str,
    evidence: Evidence,
    reward: Float64Array,
    new: Models,
    old: Models,
    q: Float64Array,
    served: NDArray[np.bool_],
    confidence: float,
) -> Difference:
    """One figure; here off-policy estimation takes place."""
    rows = np.arange(len(new))
    if evidence.estimator == "direct":
        of_new, of_old = reward[rows, new], reward[rows, old]
        usable = served & ~np.isnan(of_new) & ~np.isnan(of_old)
        effective = float(usable.sum())
    else:
        of_new, of_old = (_doubly_robust(reward, evidence, target, q) for target in (new, old))
        usable = served & ~np.isnan(of_new) & ~np.isnan(of_old)
        weight = (evidence.action == new)[usable] / evidence.propensity[usable]
        effective = float(weight.sum() ** 2 / (weight**2).sum()) if weight.any() else 0.0
    n_clusters = len(np.unique(evidence.cluster[usable]))
    if effective < _FEWEST_EFFECTIVE or n_clusters < 2:
        reason = f"the logs tell as much of it as {effective:.0f} requests would, {_FEWEST_EFFECTIVE} are needed"
        return Difference(evidence.estimator, None, None, None, None, None, effective, "cannot tell", reason)
    difference = of_new[usable] - of_old[usable]
    _, number = np.unique(evidence.cluster[usable], return_inverse=True)
    total, count = np.bincount(number, difference), np.bincount(number)
    (interval,) = bootstrap(lambda w: (w @ total) / (w @ count), n_clusters, repeats=_REPEATS, level=confidence)
    verdict, reason = _verdict(name, interval.low, interval.high)
    return Difference(
        evidence.estimator,
        float(of_new[usable].mean()),
        float(of_old[usable].mean()),
        interval.estimate,
        interval.low,
        interval.high,
        effective,
        verdict,
        reason,
    )


def _doubly_robust(reward: Float64Array, evidence: Evidence, target: Models, q: Float64Array) -> Float64Array:
    """Per request: the estimate for what the policy calls, corrected where the log called the same (Dudik et al. 2011).

    Unbiased where propensities are right, whatever the estimates are; wide where the log seldom did the same.
    """
    rows = np.arange(len(target))
    residual = (reward - q[rows, evidence.action]) / evidence.propensity
    return np.asarray(q[rows, target] + np.where(evidence.action == target, residual, 0.0))


def _verdict(name: str, low: float, high: float) -> tuple[str, str]:
    if name == "cost_usd":
        low, high = -high, -low
        margin = 0.0
    else:
        margin = _MARGIN
    if low > 0:
        return "better", "the interval lies on the better side of zero"
    if high < 0:
        return "worse", "the interval lies on the worse side of zero"
    if low >= -margin:
        return "no different", f"at most {margin:g} worse, by the interval"
    return "cannot tell", "the interval holds both zero and differences that matter"


def _cells(requests: Requests, values: Float64Array) -> Float64Array:
    """Mean per prompt and model, [prompts, m], models as in `requests`."""
    own, _ = requests.data.cells(values)
    found = np.full((len(own), len(requests.models)), np.nan)
    found[:, [requests.models.index(name) for name in requests.data.models]] = own
    return found
