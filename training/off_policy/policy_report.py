"""What a version's policy would have been worth on logged requests: success, cost, cost per success, latency."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from router_ml.policy import Policy
from router_ml.types import Estimates, Float64Array
from training.dataset import Dataset
from training.intervals import Interval
from training.off_policy.bound import finite_sample_bound
from training.off_policy.clusters import clusters_of
from training.off_policy.compare import PolicyComparison, Standard, Verdict, judge, paired
from training.off_policy.estimators import DEFAULT, ESTIMATORS
from training.off_policy.logged import LoggedRows
from training.off_policy.overlap import Overlap, overlap_of
from training.off_policy.uncertainty import studentised_intervals

SUCCESS_MARGIN = 0.02
"""A difference in success that would not matter."""
RELATIVE_MARGIN = 0.05
"""The same of costs and latency, as a share of the baseline's."""
_FEWEST_KNOWN = 30
"""Rewards; with fewer a figure is not worth printing."""
_SHRINK = 10.0
"""Rows' worth of a wider group's label rate in a narrower one's."""


@dataclass(frozen=True, slots=True)
class OffPolicyFigure:
    """One metric of the version's policy, and against the policy that wrote the logs (or another baseline)."""

    estimator: str
    value: float
    low: float
    high: float
    bound_low: float | None
    """With `bound_high`, an interval that holds at any number of requests; None: not for this metric."""
    bound_high: float | None
    effective_sample_size: float
    verdict: Verdict
    reason: str
    baseline: Interval
    difference: Interval
    """The version's minus the baseline's."""
    deciding_rows: float
    more_requests: int | None
    """About how many more logged requests like these would settle it; None: settled, or no number would."""
    propensity: float | None
    """Typical propensity of what the version would do otherwise."""
    needed_propensity: float | None
    """That would settle it with as many requests; None: settled, or none would."""
    reported: float
    """Share of the requests whose outcome is known."""
    estimators: dict[str, Interval]
    """By every estimator."""


@dataclass(frozen=True, slots=True)
class OffPolicyReport:
    """All metrics; None where it was not logged, or too seldom."""

    n_requests: int
    baseline: str
    decides_otherwise: float
    """Share of the requests that the version would send elsewhere than the baseline."""
    success: OffPolicyFigure | None
    cost_usd: OffPolicyFigure | None
    """Per request."""
    cost_per_success_usd: OffPolicyFigure | None
    latency_ms: OffPolicyFigure | None
    overlap: Overlap
    rests_on: tuple[str, ...]
    """What must hold for the figures to be right."""


@dataclass(frozen=True, slots=True)
class NotJudged:
    """Why the logs cannot be used."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Metric:
    """How a column of the rows is judged."""

    name: str
    rows: LoggedRows
    standard: Standard
    reported: float


def target_probabilities(policy: Policy, estimates: Estimates) -> Float64Array:
    """Probability with which the policy chooses each model, [n, m]; a row of zeros where no offer can serve.

    The server's own policy decides; constraints of single requests are not in the outcome table.
    """
    chosen = policy.choose(estimates).chosen
    return np.asarray(np.eye(len(policy.models))[policy.column[chosen]] * (chosen >= 0)[:, None])


def report_policy(
    data: Dataset,
    index: NDArray[np.int64],
    policy: Policy,
    estimates: Estimates,
    *,
    baseline: tuple[str, Float64Array] | None = None,
) -> OffPolicyReport | NotJudged:
    """Judge `policy` on the rows of `data`, whose prompts are `index`; estimates must not have seen the rows.

    `estimates` are of the prompts `index`; `baseline` is a name and probabilities [len(index), m], None: the policy
    that wrote the logs.
    """
    found = _propensities(data)
    if isinstance(found, NotJudged):
        return found
    propensity, basis = found
    place = np.full(len(data.prompts), -1)
    place[index] = np.arange(len(index))
    target = target_probabilities(policy, estimates)
    served = target.sum(axis=1) > 0
    usable = ~np.isnan(propensity) & served[place[data.rows.prompt]]
    if usable.sum() < _FEWEST_KNOWN:
        return NotJudged(f"only {int(usable.sum())} requests have a propensity; {_FEWEST_KNOWN} are needed")
    rows = data.where(usable).rows
    at = place[rows.prompt]
    segment = data.prompts.segment[rows.prompt]
    _, prompt = np.unique(data.prompts.prompt_id, return_inverse=True)
    cluster = clusters_of(prompt[rows.prompt], rows.session)
    expected = {
        "success": estimates.p_success.astype(np.float64),
        "cost_usd": policy.cheapest(policy.price(estimates)),
        "latency_ms": estimates.latency_ms.astype(np.float64),
    }
    metrics = []
    for name, q in expected.items():
        reward = getattr(rows, name)
        known = ~np.isnan(reward)
        if known.sum() < _FEWEST_KNOWN:
            continue
        logged = LoggedRows(
            reward=reward,
            action=rows.model,
            propensity=propensity[usable],
            target=target[at],
            q=_filled(q[at], rows.model, reward),
            cluster=cluster,
            label_propensity=None if known.all() else label_propensity(known, rows.model, segment),
        )
        metrics.append(_Metric(name, logged, _standard(name, reward), float(known.mean())))
    if not metrics:
        return NotJudged(f"none of success, cost and latency is known of {_FEWEST_KNOWN} requests with a propensity")
    theirs = None if baseline is None else baseline[1][at]
    overlap = overlap_of(metrics[0].rows, segment, data.segments)
    figures = _figures(metrics, overlap, theirs)
    rests = [basis, "prompts alone decided what the logging policy did beside chance, or it is in the propensities"]
    rests += [
        f"whether {each.name} was reported ({each.reported:.0%} of the requests) depends on model and segment alone"
        for each in metrics
        if each.reported < 1
    ]
    if not served.all():
        rests.append(
            f"requests that fit no offer's limits are left out ({int((~served[place[data.rows.prompt]]).sum())})"
        )
    otherwise = (
        np.maximum(1 - metrics[0].rows.weight, 0) if theirs is None else np.abs(target[at] - theirs).sum(axis=1) / 2
    )
    return OffPolicyReport(
        n_requests=len(rows),
        baseline="as logged" if baseline is None else baseline[0],
        decides_otherwise=float(otherwise.mean()),
        success=figures.get("success"),
        cost_usd=figures.get("cost_usd"),
        cost_per_success_usd=figures.get("cost_per_success_usd"),
        latency_ms=figures.get("latency_ms"),
        overlap=overlap,
        rests_on=tuple(rests),
    )


def label_propensity(known: NDArray[np.bool_], model: NDArray[np.int64], segment: NDArray[np.int64]) -> Float64Array:
    """Probability [n] that an outcome was reported: its share by model and segment, shrunk to the model's and to all's.

    In (0, 1]; right where nothing else about a request decides whether its outcome is reported.
    """
    rate = np.full(len(known), (known.sum() + 1) / (len(known) + 1))
    for group in (model, segment * (model.max() + 1) + model):
        _, place = np.unique(group, return_inverse=True)
        count, seen = np.bincount(place), np.bincount(place, known)
        rate = (seen[place] + _SHRINK * rate) / (count[place] + _SHRINK)
    return np.asarray(rate)


def _propensities(data: Dataset) -> tuple[Float64Array, str] | NotJudged:
    """Propensity [rows], NaN for rows that say nothing, and what it rests on."""
    if np.isnan(data.rows.propensity).all():
        return NotJudged("the rows hold no `propensity`: log the probability with which each model was chosen")
    return data.rows.propensity, "logged propensities"


def _filled(q: Float64Array, action: NDArray[np.int64], reward: Float64Array) -> Float64Array:
    """Estimates without gaps: what is unknown of a model is its mean of the logs, or that of all models.

    Only the direct method would rest on it: the choices of a policy are priced.
    """
    known = ~np.isnan(reward)
    count = np.bincount(action[known], minlength=q.shape[1])
    total = np.bincount(action[known], reward[known], q.shape[1])
    mean = np.where(count > 0, total / np.maximum(count, 1), reward[known].mean())
    return np.where(np.isnan(q), mean, q)


def _standard(name: str, reward: Float64Array) -> Standard:
    if name == "success":
        return Standard(SUCCESS_MARGIN)
    return Standard(
        RELATIVE_MARGIN * float(np.nanmean(reward)), higher_is_better=False, largest=float(np.nanmax(reward))
    )


def _figures(metrics: list[_Metric], overlap: Overlap, baseline: Float64Array | None) -> dict[str, OffPolicyFigure]:
    """All intervals from one bootstrap, so that they rest on the same resamples."""
    alone = {each.name: {name: use(each.rows) for name, use in ESTIMATORS.items()} for each in metrics}
    pairs = {each.name: paired(each.rows, baseline, DEFAULT) for each in metrics}
    by_name = {each.name: each for each in metrics}
    if {"success", "cost_usd"} <= by_name.keys() and pairs["success"][0][:2].min() > 0:
        pairs["cost_per_success_usd"] = _ratio(pairs["cost_usd"], pairs["success"])
        cost = by_name["cost_usd"]
        standard = replace(cost.standard, margin=RELATIVE_MARGIN * float(pairs["cost_per_success_usd"][0][1]))
        reported = min(cost.reported, by_name["success"].reported)
        by_name["cost_per_success_usd"] = replace(cost, standard=standard, reported=reported)
    singles = [(metric, name, found) for metric, some in alone.items() for name, found in some.items()]
    intervals = studentised_intervals(
        np.concatenate([[found.value for _, _, found in singles], *(values for values, _ in pairs.values())]),
        np.column_stack([*(found.influence for _, _, found in singles), *(psi for _, psi in pairs.values())]),
        metrics[0].rows.cluster,
    )
    others: dict[str, dict[str, Interval]] = {name: {} for name in pairs}
    for (column, estimator, _), interval in zip(singles, intervals, strict=False):
        others[column][estimator] = interval
    figures = {}
    for k, name in enumerate(pairs):
        three = intervals[len(singles) + 3 * k :][:3]
        metric = by_name[name]
        judged = judge(metric.rows, overlap, three, baseline=baseline, standard=metric.standard, estimator=DEFAULT)
        figures[name] = _figure(metric, judged, others[name], bounded=name in alone)
    return figures


Pair = tuple[Float64Array, Float64Array]


def _ratio(above: Pair, below: Pair) -> Pair:
    """Value and influence of a ratio by the delta method, for the target, the baseline and their difference."""
    values, influence = [], []
    for k in range(2):
        ratio = above[0][k] / below[0][k]
        values.append(ratio)
        influence.append((above[1][:, k] - ratio * below[1][:, k]) / below[0][k])
    return np.array([*values, values[0] - values[1]]), np.column_stack([*influence, influence[0] - influence[1]])


def _figure(
    metric: _Metric, judged: PolicyComparison, others: dict[str, Interval], *, bounded: bool
) -> OffPolicyFigure:
    found, largest = judged.estimate, metric.standard.largest
    low = high = None
    if bounded and largest > 0:
        scaled = replace(metric.rows, reward=metric.rows.reward / largest)
        low, high = (largest * end for end in finite_sample_bound(scaled, found.value / largest))
    return OffPolicyFigure(
        estimator=found.estimator,
        value=found.value,
        low=max(found.low, 0.0),
        high=min(found.high, largest) if bounded else found.high,
        bound_low=low,
        bound_high=high,
        effective_sample_size=found.effective_sample_size,
        verdict=judged.verdict,
        reason=judged.reason,
        baseline=judged.baseline,
        difference=judged.difference,
        deciding_rows=judged.deciding_rows,
        more_requests=judged.more_requests,
        propensity=judged.propensity,
        needed_propensity=judged.needed_propensity,
        reported=metric.reported,
        estimators=others,
    )
