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
from training.off_policy.compare import PolicyComparison, Verdict, judge, paired, share_otherwise
from training.off_policy.estimators import DEFAULT, ESTIMATORS
from training.off_policy.overlap import Overlap, overlap_of
from training.off_policy.policy_rows import RELATIVE_MARGIN, Metric, NotJudged, policy_rows
from training.off_policy.uncertainty import studentised_intervals


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


def report_policy(
    data: Dataset,
    index: NDArray[np.int64],
    policy: Policy,
    estimates: Estimates,
    *,
    baseline: tuple[str, Float64Array] | None = None,
) -> OffPolicyReport | NotJudged:
    """Judge `policy` on the rows of `data`, whose prompts are `index`.

    `estimates` are of the prompts `index` and must not have seen the rows. `baseline` is a name and the
    probabilities [len(index), m] of another policy; None: the policy that wrote the logs.
    """
    found = policy_rows(data, index, policy, estimates)
    if isinstance(found, NotJudged):
        return found
    first = next(iter(found.metrics.values())).rows
    theirs = None if baseline is None else baseline[1][found.at]
    overlap = overlap_of(first, found.segment, data.segments)
    figures = _figures(found.metrics, overlap, theirs)
    return OffPolicyReport(
        n_requests=len(found),
        baseline="as logged" if baseline is None else baseline[0],
        decides_otherwise=share_otherwise(first, theirs),
        success=figures.get("success"),
        cost_usd=figures.get("cost_usd"),
        cost_per_success_usd=figures.get("cost_per_success_usd"),
        latency_ms=figures.get("latency_ms"),
        overlap=overlap,
        rests_on=found.rests_on,
    )


def _figures(metrics: dict[str, Metric], overlap: Overlap, baseline: Float64Array | None) -> dict[str, OffPolicyFigure]:
    """All intervals from one bootstrap, so that they rest on the same resamples."""
    alone = {name: {key: use(each.rows) for key, use in ESTIMATORS.items()} for name, each in metrics.items()}
    pairs = {name: paired(each.rows, baseline, DEFAULT) for name, each in metrics.items()}
    by_name = dict(metrics)
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
        next(iter(metrics.values())).rows.cluster,
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


def _figure(metric: Metric, judged: PolicyComparison, others: dict[str, Interval], *, bounded: bool) -> OffPolicyFigure:
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
