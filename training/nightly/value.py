"""What one policy is worth beside another on the requests of the newest days, with an interval and a verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Float64Array
from training import off_policy
from training.intervals import Interval, bootstrap
from training.logging_policy import propensities_of_choices
from training.nightly.choices import Models, Requests
from training.off_policy import DEFAULT, LoggedRows, Verdict, clusters_of
from training.off_policy.compare import Standard
from training.off_policy.overlap import overlap_of
from training.off_policy.policy_rows import RELATIVE_MARGIN, SUCCESS_MARGIN, label_propensity

FIGURES = ("success", "cost_usd", "value")
_FEWEST = 30
_REPEATS = 1000
_MOSTLY = 0.5


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of two policies; None where it cannot be known."""

    estimator: str
    new: float | None
    new_low: float | None
    new_high: float | None
    """With `new_low`, the interval of `new`."""
    old: float | None
    difference: float | None
    """New minus old, with its interval `low` to `high`."""
    low: float | None
    high: float | None
    effective_sample_size: float
    verdict: str
    """As `off_policy.Verdict`; of `cost_usd`, less is better."""
    reason: str
    more_requests: int | None = None
    """About how many more logged requests would settle it; None: it is settled, or no number would."""

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
    found = propensities_of_choices(requests.data)
    propensity, estimated = found.propensity, found.estimated
    at = np.flatnonzero(~np.isnan(propensity))
    action = requests.action[at]
    # What was reported without a cost is taken at its expected price; what was not reported at all stays unknown.
    unpriced = known[at] & np.isnan(rows.cost_usd[at])
    filled = np.where(unpriced, q_cost[at, action], np.where(known[at], rows.cost_usd[at], np.nan))
    told = int(known[at].sum())
    basis = f"{told:,} of {len(known):,} logged requests, those with an outcome and a propensity"
    if estimated[at].any():
        basis += f"; {estimated[at].mean():.0%} of the propensities are estimated, and all rests on these estimates"
    return Evidence("doubly robust", basis, at, action, propensity[at], rows.success[at], filled, requests.cluster[at])


def compare(
    requests: Requests,
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
    served = (new[evidence.row] >= 0) & (old[evidence.row] >= 0)
    found = {}
    for name in FIGURES:
        reward, q = (
            {"success": success, "cost_usd": cost, "value": success - willingness * cost}[name]
            for success, cost in ((evidence.success, evidence.cost_usd), (q_success, q_cost))
        )
        one = _Compared(reward, new[evidence.row], old[evidence.row], q[evidence.row], served, _standard(name, reward))
        found[name] = (
            _direct(evidence, one, confidence)
            if evidence.estimator == "direct"
            else _off_policy(requests, evidence, one, confidence)
        )
    return found


@dataclass(frozen=True, slots=True)
class _Compared:
    """One figure of two policies on the rows of the evidence."""

    reward: Float64Array
    """[n], or [n, m] where every model answered; NaN unknown."""
    new: Models
    old: Models
    q: Float64Array
    """[n, m]"""
    served: NDArray[np.bool_]
    """[n], requests that both can serve."""
    standard: Standard


def _standard(name: str, reward: Float64Array) -> Standard:
    if name == "cost_usd":
        mean = float(np.nanmean(reward)) if (~np.isnan(reward)).any() else 0.0
        return Standard(RELATIVE_MARGIN * mean, higher_is_better=False, largest=float(np.nanmax(reward, initial=0.0)))
    spread = float(np.nanmax(reward, initial=0.0) - np.nanmin(reward, initial=0.0))
    return Standard(SUCCESS_MARGIN, largest=max(1.0, spread))


def _off_policy(requests: Requests, evidence: Evidence, one: _Compared, confidence: float) -> Difference:
    """From rows of one model each: the estimator, the intervals and the verdict of `off_policy`."""
    known = one.served & ~np.isnan(one.reward)
    if known.sum() < _FEWEST:
        return _unknown(DEFAULT, f"{int(known.sum())} requests have an outcome and a propensity, {_FEWEST} are needed")
    at = one.served
    row, m = evidence.row[at], one.q.shape[1]
    data, action, reward = requests.data, evidence.action[at], one.reward[at]
    prompt, session = data.rows.prompt[row], data.rows.session[row]
    segment = data.prompts.segment[prompt]
    _, content = np.unique(data.prompts.prompt_id, return_inverse=True)
    reported = ~np.isnan(reward)
    rows = LoggedRows(
        reward=reward,
        action=action,
        propensity=evidence.propensity[at],
        target=np.eye(m)[one.new[at]],
        q=_filled(one.q[at], reward),
        cluster=clusters_of(content[prompt], session),
        label_propensity=None if reported.all() else label_propensity(reported, action, segment),
    )
    found = off_policy.compare(
        rows,
        overlap_of(rows, segment, data.segments),
        baseline=np.eye(m)[one.old[at]],
        standard=one.standard,
        level=confidence,
    )
    if not np.isfinite([found.difference.low, found.difference.high, found.estimate.low, found.estimate.high]).all():
        return _unknown(found.estimate.estimator, found.reason)
    return Difference(
        found.estimate.estimator,
        found.estimate.value,
        found.estimate.low,
        found.estimate.high,
        found.baseline.estimate,
        found.difference.estimate,
        found.difference.low,
        found.difference.high,
        found.estimate.effective_sample_size,
        str(found.verdict),
        found.reason,
        found.more_requests,
    )


def _filled(q: Float64Array, reward: Float64Array) -> Float64Array:
    """What no version can estimate is taken as the mean of the logs; it is in the logs alone."""
    return np.where(np.isnan(q), np.nanmean(reward), q)


def _direct(evidence: Evidence, one: _Compared, confidence: float) -> Difference:
    """From prompts that every model answered: a paired bootstrap."""
    rows = np.arange(len(one.new))
    of_new, of_old = one.reward[rows, one.new], one.reward[rows, one.old]
    usable = one.served & ~np.isnan(of_new) & ~np.isnan(of_old)
    _, number = np.unique(evidence.cluster[usable], return_inverse=True)
    count = np.bincount(number)
    if usable.sum() < _FEWEST or len(count) < 2:
        return _unknown("direct", f"only {int(usable.sum())} prompts tell of both, {_FEWEST} are needed")
    totals = np.column_stack([np.bincount(number, values[usable]) for values in (of_new, of_new - of_old)])
    own, found = bootstrap(
        lambda w: (w @ totals) / (w @ count)[:, None], len(count), repeats=_REPEATS, level=confidence
    )
    verdict, reason = _verdict(found, one.standard)
    figures = own.estimate, own.low, own.high, float(of_old[usable].mean()), found.estimate, found.low, found.high
    return Difference("direct", *figures, float(usable.sum()), str(verdict), reason)


def _verdict(found: Interval, standard: Standard) -> tuple[Verdict, str]:
    apart = f"the difference is {found}"
    if found.excludes_zero:
        return (Verdict.BETTER if (found.estimate > 0) == standard.higher_is_better else Verdict.WORSE), apart
    if max(found.high - found.estimate, found.estimate - found.low) <= standard.margin:
        return Verdict.NO_DIFFERENT, f"{apart}, within {standard.margin:.3g} of zero"
    return Verdict.CANNOT_TELL, f"{apart}, too wide to tell"


def _unknown(estimator: str, reason: str) -> Difference:
    return Difference(estimator, None, None, None, None, None, None, None, 0.0, str(Verdict.CANNOT_TELL), reason)


def _cells(requests: Requests, values: Float64Array) -> Float64Array:
    """Mean per prompt and model, [prompts, m], models as in `requests`."""
    own, _ = requests.data.cells(values)
    found = np.full((len(own), len(requests.models)), np.nan)
    found[:, [requests.models.index(name) for name in requests.data.models]] = own
    return found
