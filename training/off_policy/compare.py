"""The value of a policy, and whether it is better than another: estimate, interval, verdict, what would settle it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from router_ml.types import Float64Array
from training.intervals import LEVEL, Interval
from training.off_policy.estimators import DEFAULT, ESTIMATORS, Contribution
from training.off_policy.logged import LoggedRows
from training.off_policy.overlap import Overlap, effective_sample_size
from training.off_policy.uncertainty import REPEATS, studentised_intervals

FEWEST_DECIDING = 50
"""Effective rows on which the policies differ; with fewer, rare outcomes have not been seen, and intervals are too
short. Set by the study of docs/learning.md: at 30, "better" was wrong in 5.8 % of the logs of one comparison."""
_SURE_OF_NOTHING = 0.5
"""A propensity that exploration cannot be asked to give."""


_HEADROOM = 1.1
"""More requests than the interval's width asks for, since that width is itself an estimate."""

_POWER = 2.0
"""More requests than put the end of the interval at zero, so that a difference is found four times in five."""


class Verdict(StrEnum):
    """Of a policy against another."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENT = "no different beyond noise"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True, slots=True)
class OffPolicyEstimate:
    """The value of a policy."""

    estimator: str
    value: float
    low: float
    high: float
    """With `low`, a 95 % interval: studentised bootstrap over clusters of prompt and session."""
    effective_sample_size: float
    n_known: int
    """Rows whose reward was reported."""


@dataclass(frozen=True, slots=True)
class PolicyComparison:
    """A policy against a baseline, on the same rows."""

    estimate: OffPolicyEstimate
    baseline: Interval
    difference: Interval
    """The policy's value minus the baseline's, paired."""
    deciding_rows: float
    """Effective number of rows that show what one of the two does otherwise than the other; the fewer."""
    verdict: Verdict
    reason: str
    more_requests: int | None
    """About how many more logged requests like these would settle it; None: it is settled, or no number would."""
    propensity: float | None
    """Of what the policy would do otherwise; None where it does nothing otherwise."""
    needed_propensity: float | None
    """That would settle it at this number of requests; None: it is settled, or none would."""


@dataclass(frozen=True, slots=True)
class Standard:
    """What counts as better, and as much."""

    margin: float = 0.02
    """A difference that would not matter, in units of the reward."""
    higher_is_better: bool = True
    largest: float = 1.0
    """No reward is larger, and none below 0."""


def estimate(
    rows: LoggedRows, *, estimator: str = DEFAULT, level: float = LEVEL, repeats: int = REPEATS, seed: int = 0
) -> OffPolicyEstimate:
    """Value of `rows.target` with its interval; `estimator` is one of `ESTIMATORS`."""
    found = ESTIMATORS[estimator](rows)
    values, influence = np.array([found.value]), found.influence[:, None]
    (interval,) = studentised_intervals(values, influence, rows.cluster, level=level, repeats=repeats, seed=seed)
    return _estimate(rows, estimator, interval)


def compare(
    rows: LoggedRows,
    overlap: Overlap,
    *,
    baseline: Float64Array | None = None,
    standard: Standard | None = None,
    estimator: str = DEFAULT,
    level: float = LEVEL,
    repeats: int = REPEATS,
    seed: int = 0,
) -> PolicyComparison:
    """`rows.target` against the probabilities `baseline` [n, m]; None: against the policy that wrote the logs.

    The verdict rests on the paired difference. Even where its interval excludes zero, "cannot tell" is said
    where some choices had no chance in the logs, or where too few rows show what is done otherwise.
    """
    values, influence = paired(rows, baseline, estimator)
    intervals = studentised_intervals(values, influence, rows.cluster, level=level, repeats=repeats, seed=seed)
    return judge(rows, overlap, intervals, baseline=baseline, standard=standard or Standard(), estimator=estimator)


def paired(rows: LoggedRows, baseline: Float64Array | None, estimator: str) -> tuple[Float64Array, Float64Array]:
    """Value of the target, of the baseline, and their difference, [3], with their influence values [n, 3]."""
    ours = ESTIMATORS[estimator](rows)
    theirs = _logged(rows) if baseline is None else ESTIMATORS[estimator](rows.toward(baseline))
    values = np.array([ours.value, theirs.value, ours.value - theirs.value])
    return values, np.column_stack([ours.influence, theirs.influence, ours.influence - theirs.influence])


def judge(
    rows: LoggedRows,
    overlap: Overlap,
    intervals: Sequence[Interval],
    *,
    baseline: Float64Array | None,
    standard: Standard,
    estimator: str,
) -> PolicyComparison:
    """The verdict of `compare`, given the intervals of the three figures of `paired`."""
    found, theirs, difference = intervals
    otherwise = _otherwise(rows, baseline)
    verdict, reason, factor = _verdict(difference, otherwise, overlap, standard)
    more = needed = None
    if factor is not None and math.isfinite(factor) and factor > 1:
        more = math.ceil(otherwise.rows * (factor - 1))
        asked = factor * (otherwise.propensity or 1.0)
        needed = asked if asked < _SURE_OF_NOTHING else None
    return PolicyComparison(
        _estimate(rows, estimator, found),
        theirs,
        difference,
        otherwise.deciding,
        verdict,
        reason,
        more,
        otherwise.propensity,
        needed,
    )


@dataclass(frozen=True, slots=True)
class _Otherwise:
    """What a policy does otherwise than the baseline."""

    rows: int
    share: float
    deciding: float
    propensity: float | None


def share_otherwise(rows: LoggedRows, baseline: Float64Array | None) -> float:
    """Share of the decisions that the target makes otherwise: half the sum of absolute differences of probabilities.

    Against the logging policy, whose probabilities are known of its own choices alone, its mean is estimated.
    """
    if baseline is None:
        return float(np.maximum(1 - rows.weight, 0).mean())
    return float(np.abs(rows.target - baseline).sum(axis=1).mean() / 2)


def _otherwise(rows: LoggedRows, baseline: Float64Array | None) -> _Otherwise:
    change = (rows.weight - (1 if baseline is None else rows.toward(baseline).weight)) * rows.known
    # What one of the two does and the other does not must both have been seen.
    deciding = min(effective_sample_size(np.maximum(side, 0)) for side in (change, -change))
    more = change > 1e-9
    propensity = float(1 / rows.weight[more].mean()) if more.any() else None
    return _Otherwise(len(rows), share_otherwise(rows, baseline), deciding, propensity)


def _verdict(
    difference: Interval, otherwise: _Otherwise, overlap: Overlap, standard: Standard
) -> tuple[Verdict, str, float | None]:
    """The verdict, why, and by what factor more rows would settle it."""
    if otherwise.share * standard.largest <= standard.margin and not difference.excludes_zero:
        alike = f"it decides otherwise than the baseline on {otherwise.share:.1%} of the requests"
        return Verdict.NO_DIFFERENT, f"{alike}, which cannot make a difference that matters", None
    if overlap.problem:
        return (
            Verdict.CANNOT_TELL,
            f"{overlap.problem}; more requests like these would not help, exploration would",
            None,
        )
    half = max(difference.high - difference.estimate, difference.estimate - difference.low)
    # An interval no wider than the margin settles it whatever the true difference is.
    wide = _HEADROOM * (half / standard.margin) ** 2 if standard.margin > 0 else math.inf
    if otherwise.deciding < FEWEST_DECIDING:
        seen = f"what it does otherwise was seen on too few requests, worth {otherwise.deciding:.0f} of equal weight"
        thin = FEWEST_DECIDING / max(otherwise.deciding, 0.1)
        # A difference as large as it looks is found sooner than one that does not matter is ruled out.
        apparent = _POWER * (half / abs(difference.estimate)) ** 2 if difference.estimate else math.inf
        return Verdict.CANNOT_TELL, f"{seen}; {FEWEST_DECIDING} are needed", max(thin, min(wide, apparent))
    if difference.excludes_zero:
        better = (difference.estimate > 0) == standard.higher_is_better
        return (Verdict.BETTER if better else Verdict.WORSE), "the interval of the difference excludes zero", None
    if half <= standard.margin:
        return Verdict.NO_DIFFERENT, "the difference is at most one that would not matter", None
    words = "the interval of the difference holds zero, and is too wide to rule out a difference that matters"
    return Verdict.CANNOT_TELL, words, wide


def _logged(rows: LoggedRows) -> Contribution:
    """The logging policy: the mean of what was reported."""
    weight = rows.label_weight
    return Contribution(np.zeros(len(rows)), weight * np.nan_to_num(rows.reward), weight)


def _estimate(rows: LoggedRows, estimator: str, interval: Interval) -> OffPolicyEstimate:
    size = effective_sample_size(rows.weight * rows.label_weight)
    return OffPolicyEstimate(estimator, interval.estimate, interval.low, interval.high, size, int(rows.known.sum()))
