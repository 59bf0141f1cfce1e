"""Reads a test: figures of every arm, differences with intervals that hold at every look, health, verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from router_ml.errors import InputError
from router_ml.types import Float64Array
from training.ab.contrast import Contrast, contrast
from training.ab.health import Finding, examine
from training.ab.metrics import COST, METRICS, SUCCESS, Metric, sums
from training.ab.requests import Requests
from training.ab.sequence import e_level, fixed_half_width, half_width, log_e_value, progress
from training.ab.trial import ReadSettings, Trial, make_trial
from training.ab.verdict import Judged, Verdict, judge

DAYS_PER_MONTH = 30.44
_MOST_SEGMENTS = 20


@dataclass(frozen=True, slots=True)
class Range:
    """A figure with its interval; None is unknown."""

    estimate: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """A challenger against the control on one metric."""

    metric: str
    arm: float | None
    control: float | None
    difference: Range
    """Arm minus control."""
    relative: Range
    """Arm divided by control, minus 1."""
    alpha: float
    """Chance that the interval misses at any look."""
    variance_saved: float | None
    """By the covariates: 0.3 is what 43 % more traffic would have done."""
    shown_since: int | None
    """Day, counted from 1, since which the interval has excluded zero; None if it does not, or at a fixed horizon."""
    path: tuple[Range, ...]
    """The difference after each day."""


@dataclass(frozen=True, slots=True)
class SegmentDifference:
    """A challenger against the control within a segment."""

    segment: str
    metric: str
    requests: int
    difference: Range
    alpha: float
    """Of this interval; such that of the segments whose interval excludes zero 5 % at most are wrong, on average."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The promise: the arm's success as a share of the reference arm's."""

    reference: str
    target: float
    kept: Range
    words: str


@dataclass(frozen=True, slots=True)
class Challenger:
    """All about one challenger."""

    arm: str
    verdict: Verdict
    differences: tuple[Difference, ...]
    segments: tuple[SegmentDifference, ...]
    usd_per_month: Range
    """What all the test's traffic would cost more per month with the challenger than with the control."""
    successes_per_month: Range
    promise: Kept | None


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """One arm."""

    arm: str
    units: int
    requests: int
    versions: tuple[str, ...]
    metrics: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a test says."""

    control: str
    unit: str
    start: datetime
    end: datetime
    days: int
    requests: int
    requests_per_month: float
    settle_days: int
    alpha: float
    fixed_horizon: bool
    deciding: tuple[str, ...]
    arms: tuple[ArmFigures, ...]
    challengers: tuple[Challenger, ...]
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_test(requests: Requests, settings: ReadSettings) -> Reading:
    """The reading after the last request; InputError where the table is no test."""
    last = _time(requests.time_us[-1])
    is_due = settings.horizon is None or last >= settings.horizon
    if settings.horizon is not None:
        requests = _until(requests, settings.horizon)
    trial = make_trial(requests, settings)
    requests = trial.requests
    findings = examine(trial)
    begin, end = (_time(requests.time_us[k]) for k in (0, -1))
    days = max((end - begin).total_seconds() / 86400, 1 / 24)
    monthly = len(requests) / days * DAYS_PER_MONTH
    return Reading(
        control=trial.arms[trial.control],
        unit=requests.unit_kind,
        start=begin,
        end=end,
        days=trial.n_looks,
        requests=len(requests),
        requests_per_month=monthly,
        settle_days=trial.settle_days,
        alpha=settings.alpha,
        fixed_horizon=settings.horizon is not None,
        deciding=settings.deciding,
        arms=tuple(_arm(trial, arm) for arm in range(len(trial.arms))),
        challengers=tuple(_challenger(trial, arm, findings, monthly, is_due) for arm in trial.challengers),
        findings=tuple(findings),
    )


def _arm(trial: Trial, arm: int) -> ArmFigures:
    r = trial.requests
    mine = trial.unit_arm[r.unit] == arm
    figures = {}
    for metric in METRICS.values():
        numerator, denominator = sums(metric, r)
        total = np.nansum(denominator[mine])
        figures[metric.name] = float(np.nansum(numerator[mine]) / total) if total > 0 else None
    versions = tuple(r.versions[k] for k in np.unique(r.version[mine]) if k >= 0)
    return ArmFigures(trial.arms[arm], int((trial.unit_arm == arm).sum()), int(mine.sum()), versions, figures)


def _challenger(trial: Trial, arm: int, findings: list[Finding], monthly: float, is_due: bool) -> Challenger:
    settings = trial.settings
    alpha = settings.alpha / len(settings.deciding) / len(trial.challengers)
    differences, judged, unknown = {}, [], {}
    for metric in METRICS.values():
        moments = trial.moments(metric, arm)
        found = contrast(moments, 0, 1, is_share=metric.is_share)
        relative = contrast(moments, 0, 1, is_share=metric.is_share, relative=True)
        one = _difference(metric, found, relative, alpha, settings.horizon is not None and is_due)
        differences[metric.name] = one
        if metric.name in settings.deciding:
            # Harm is acted upon before a horizon too, and then by the sequence.
            judged.append(_judged(metric, one, found, settings, alpha))
            if found.begun >= trial.n_looks:
                unknown[metric.words] = "not known of any request old enough"
    verdict = judge(judged, findings, never_seen=unknown, is_due=is_due)
    return Challenger(
        arm=trial.arms[arm],
        verdict=verdict,
        differences=tuple(differences.values()),
        segments=_segments(trial, arm),
        usd_per_month=_scaled(differences[COST.name].difference, monthly),
        successes_per_month=_scaled(differences[SUCCESS.name].difference, monthly),
        promise=_promise(trial, arm, alpha),
    )


def _difference(metric: Metric, found: Contrast, relative: Contrast, alpha: float, fixed: bool) -> Difference:
    width, relative_width = _width(found, alpha), _width(relative, alpha)
    path = tuple(_range(e, w) for e, w in zip(found.estimate.tolist(), width.tolist(), strict=True))
    if fixed:
        width, relative_width = fixed_half_width(found.variance, alpha), fixed_half_width(relative.variance, alpha)
    excluded = np.abs(found.estimate) > width
    since = int(np.flatnonzero(~excluded)[-1]) + 1 if not excluded.all() else 0
    return Difference(
        metric=metric.name,
        arm=_known(found.mean[-1]),
        control=_known(found.control_mean[-1]),
        difference=_range(found.estimate[-1], width[-1]),
        relative=_range(relative.estimate[-1], relative_width[-1]),
        alpha=alpha,
        variance_saved=_known(found.variance_saved),
        shown_since=since + 1 if excluded[-1] and not fixed else None,
        path=path,
    )


def _judged(metric: Metric, one: Difference, found: Contrast, settings: ReadSettings, alpha: float) -> Judged:
    margin = settings.margin(metric)
    if not metric.is_share:
        margin *= one.control or 0.0
    low, high = one.difference.low, one.difference.high
    if metric.better < 0:
        low, high = (None if high is None else -high), (None if low is None else -low)
    wait = days_to_see(margin, found, alpha) if margin > 0 else None
    return Judged(metric.words, low, high, margin, metric.name in settings.goals, wait)


def days_to_see(effect: float, found: Contrast, alpha: float) -> float | None:
    """More days of the same traffic until the sequence is as narrow as `effect` to each side; None: not known."""
    variance = found.variance[-1]
    if not variance > 0 or not effect > 0:
        return None
    days = len(found.variance) - found.begun
    ahead = np.geomspace(1, 1000, 1000)
    now = progress(found.variance, found.begun)[-1]
    enough = np.flatnonzero(half_width(variance / ahead, now * ahead, alpha) <= effect)
    return float((ahead[enough[0]] - 1) * days) if len(enough) else float("inf")


def _segments(trial: Trial, arm: int) -> tuple[SegmentDifference, ...]:
    """Success and cost within the segments of most requests, corrected for looking at all of them."""
    r = trial.requests
    counts = np.bincount(r.segment[r.segment >= 0], minlength=len(r.segments))
    found, log_e = [], []
    if len(r.segments) < 2:
        return ()
    for k in np.argsort(-counts, kind="stable")[:_MOST_SEGMENTS]:
        for metric in (SUCCESS, COST):
            one = contrast(trial.moments(metric, arm, r.segment == k), 0, 1, is_share=metric.is_share)
            found.append((int(k), metric, one))
            log_e.append(log_e_value(one.estimate, one.variance, progress(one.variance, one.begun))[-1])
    alpha = e_level(np.array(log_e), trial.settings.alpha / len(trial.challengers))
    return tuple(
        SegmentDifference(
            r.segments[k], metric.name, int(counts[k]), _range(one.estimate[-1], _width(one, alpha)[-1]), alpha
        )
        for k, metric, one in found
    )


def _promise(trial: Trial, arm: int, alpha: float) -> Kept | None:
    """Success relative to the reference arm's, against the target."""
    target = trial.settings.quality_target
    if target is None:
        return None
    reference = trial.control if trial.settings.reference is None else trial.arms.index(trial.settings.reference)
    if arm == reference:
        return None
    found = contrast(trial.moments(SUCCESS, arm, against=reference), 0, 1, is_share=True, relative=True)
    kept = _range(1 + found.estimate[-1], _width(found, alpha)[-1])
    words = "cannot tell"
    if kept.low is not None and kept.high is not None:
        words = "kept" if kept.low >= target else "broken" if kept.high < target else "cannot tell yet"
    return Kept(trial.arms[reference], target, kept, words)


def _width(found: Contrast, alpha: float) -> Float64Array:
    return half_width(found.variance, progress(found.variance, found.begun), alpha)


def _range(estimate: float, width: float) -> Range:
    return Range(_known(estimate), _known(estimate - width), _known(estimate + width))


def _until(requests: Requests, horizon: datetime) -> Requests:
    keep = requests.time_us < int(horizon.timestamp() * 1e6)
    if not keep.any():
        raise InputError(f"no request came before the horizon, {horizon.isoformat()}")
    return requests.where(keep)


def _scaled(figure: Range, by: float) -> Range:
    return Range(*(None if x is None else x * by for x in (figure.estimate, figure.low, figure.high)))


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _time(time_us: int) -> datetime:
    return datetime.fromtimestamp(int(time_us) / 1e6, UTC)
