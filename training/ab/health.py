"""Whether a test can be trusted: what would make its figures mean something else than they say.

Each check has a chance of at most `ALPHA` to raise a false alarm at any look of a sound test, apart from those that
simply state what the rows hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from training.ab.contrast import Contrast, contrast
from training.ab.metrics import CACHED, COST, MISSING, SUCCESS, Metric
from training.ab.moments import Moments
from training.ab.sequence import half_width, progress
from training.ab.split_test import constancy_evidence, split_evidence
from training.ab.trend import effect_by_arrival, halves, trend_evidence
from training.ab.trial import Scope, Trial

ALPHA = 0.01
_BOTH_ARMS = 0.001
"""Share of units in more than one arm from which on the arms are no longer what was assigned."""
_LIMIT_SHARE = 0.001


class Weight(StrEnum):
    """What a finding does to the verdict."""

    WITHHOLDS = "withholds the verdict"
    WARNS = "warning"
    NOTES = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about the test."""

    kind: str
    weight: Weight
    words: str
    """What was found, and what to do."""


def examine(trial: Trial) -> list[Finding]:
    """All findings, the gravest first."""
    found = [*_split(trial), *_both_arms(trial), *_versions(trial)]
    for arm in trial.challengers:
        found += [*_traffic(trial, arm), *_missing(trial, arm), *_caches(trial, arm), *_trend(trial, arm)]
    found += [*_limits(trial), *_settling(trial), *_left_out(trial)]
    order = list(Weight)
    return sorted(found, key=lambda finding: order.index(finding.weight))


def _split(trial: Trial) -> list[Finding]:
    """Sample-ratio mismatch, in all and per segment."""
    arrived, arms = trial.requests.day[trial.first], len(trial.arms)
    if trial.shares is None:
        cell = arrived * arms + trial.unit_arm
        counts = np.bincount(cell, minlength=trial.n_looks * arms).reshape(trial.n_looks, arms)
        evidence = constancy_evidence(counts)
        share = ", ".join(
            f"{name} {x:.1%}" for name, x in zip(trial.arms, counts.sum(axis=0) / counts.sum(), strict=True)
        )
        if (evidence >= -np.log(ALPHA)).any():
            day = int(np.argmax(evidence >= -np.log(ALPHA))) + 1
            words = (
                f"the arms' shares of new units changed during the test (seen on day {day}; over all {share}): days "
                "with another share pass for a difference between arms; state shares and changes with --share"
            )
            return [Finding("shares changed", Weight.WITHHOLDS, words)]
        words = f"the split was not stated (--share), so only its constancy was checked: {share} of the units"
        return [Finding("split not stated", Weight.NOTES, words)]
    found = []
    segment = trial.requests.segment[trial.first]
    groups = [("", np.ones(len(segment), dtype=np.bool_))]
    groups += [(name, segment == k) for k, name in enumerate(trial.requests.segments)]
    for name, members in groups:
        # The whole gets half of the level, segments share the rest.
        level = ALPHA / 2 / (max(1, len(groups) - 1) if name else 1)
        periods = len(trial.shares)
        cell = ((arrived * periods + trial.period) * arms + trial.unit_arm)[members]
        counts = np.bincount(cell, minlength=trial.n_looks * periods * arms)
        evidence = split_evidence(np.cumsum(counts.reshape(trial.n_looks, periods, arms), axis=0), trial.shares)
        if (evidence >= -np.log(level)).any():
            day = int(np.argmax(evidence >= -np.log(level))) + 1
            got = np.bincount(trial.unit_arm[members], minlength=arms)
            due = trial.shares[trial.period[members]].sum(axis=0)
            counted = ", ".join(
                f"{arm} {n:,} where {d:,.0f} were due" for arm, n, d in zip(trial.arms, got, due, strict=True)
            )
            where = f" in segment {name}" if name else ""
            words = (
                f"sample-ratio mismatch{where}, seen on day {day}: {counted} units; some units are lost or sent to the "
                "wrong arm, and those that are left cannot be compared: find out why before reading on"
            )
            found.append(Finding("split", Weight.WITHHOLDS, words))
    return found


def _both_arms(trial: Trial) -> list[Finding]:
    strays = np.unique(trial.requests.unit[trial.requests.arm != trial.unit_arm[trial.requests.unit]])
    if not len(strays):
        return []
    share = len(strays) / len(trial.first)
    kind = trial.requests.unit_kind
    words = f"{len(strays):,} {kind}s ({share:.2%}) were answered by more than one arm; each is counted in its first"
    if share < _BOTH_ARMS:
        return [Finding("units in two arms", Weight.NOTES, words)]
    words += f"; the assignment is not sticky, or the unit is not the {kind}: see --unit"
    return [Finding("units in two arms", Weight.WITHHOLDS, words)]


def _versions(trial: Trial) -> list[Finding]:
    found, r = [], trial.requests
    for arm, name in enumerate(r.arms):
        mine = (r.arm == arm) & (r.version >= 0)
        versions = np.unique(r.version[mine])
        if len(versions) > 1:
            spans = []
            for version in versions:
                times = r.time_us[mine & (r.version == version)]
                spans.append((times[0], f"{r.versions[version]} ({len(times):,} requests from {_time(times[0])})"))
            words = (
                f"arm {name} was answered by {len(versions)} versions: {', '.join(text for _, text in sorted(spans))}; "
                "the figures belong to none of them: read the time of one version alone with --since or --until"
            )
            found.append(Finding("version change", Weight.WITHHOLDS, words))
    if (r.version < 0).all():
        words = "no row names its `version`, so a change of version within an arm cannot be seen"
        found.append(Finding("version not stated", Weight.NOTES, words))
    return found


def _traffic(trial: Trial, arm: int) -> list[Finding]:
    """Covariates that differ between arms: of first requests the split is to blame, of all the arm's influence."""
    found = []
    names = ("predicted success", "predicted cost")[: trial.requests.predicted.shape[1]]
    is_first = np.zeros(len(trial.requests), dtype=np.bool_)
    is_first[trial.first] = True
    for k, name in enumerate(names):
        level = ALPHA / 2 / len(names) / len(trial.challengers)
        first = _told_apart(trial.moments_of_covariate(k, arm, is_first), level)
        if first:
            words = (
                f"{name} of first requests differs between {trial.arms[arm]} and {trial.arms[trial.control]} "
                f"({first:+.2%} of it): the arms are sent different traffic, so the split is not random"
            )
            found.append(Finding("traffic", Weight.WITHHOLDS, words))
            continue
        every = _told_apart(trial.moments_of_covariate(k, arm, np.ones_like(is_first)), level)
        if every:
            adjusts = trial.settings.scope is Scope.EVERY
            words = (
                f"{name} of all requests differs between {trial.arms[arm]} and {trial.arms[trial.control]} "
                f"({every:+.2%} of it), though not of first requests: an arm's answers influence what is asked next"
            )
            words += "; read with --covariates first-request" if adjusts else ""
            found.append(Finding("influence", Weight.WITHHOLDS if adjusts else Weight.WARNS, words))
    return found


def _missing(trial: Trial, arm: int) -> list[Finding]:
    gap = _share_gap(trial, MISSING, arm)
    if gap is None:
        return []
    words = (
        f"outcomes are missing for {gap.mean[-1]:.1%} of the requests of {trial.arms[arm]} and "
        f"{gap.control_mean[-1]:.1%} of {trial.arms[trial.control]}: those that are known may be of another kind in "
        "each arm, so success cannot be compared; find out which outcomes get lost"
    )
    return [Finding("missing outcomes", Weight.WITHHOLDS, words)]


def _share_gap(trial: Trial, metric: Metric, arm: int) -> Contrast | None:
    """The difference in a share from the control; None where it may be noise."""
    gap = contrast(trial.moments(metric, arm, adjusted=False), 0, 1, is_share=True)
    return gap if _excludes_zero(gap, ALPHA / len(trial.challengers)) else None


def _caches(trial: Trial, arm: int) -> list[Finding]:
    gap = _share_gap(trial, CACHED, arm)
    if gap is None:
        return []
    words = (
        f"of the input tokens of {trial.arms[arm]} {gap.mean[-1]:.1%} came from a prompt cache, of "
        f"{trial.arms[trial.control]} {gap.control_mean[-1]:.1%}: an arm with little traffic finds caches cold, and "
        "arms warm them for each other, so costs at full traffic will differ from these"
    )
    return [Finding("shared cache", Weight.WARNS, words)]


def _limits(trial: Trial) -> list[Finding]:
    r = trial.requests
    hit = [float(r.hit_limit[r.arm == arm].mean()) for arm in range(len(r.arms))]
    if max(hit) < _LIMIT_SHARE:
        return []
    shares = ", ".join(f"{name} {share:.2%}" for name, share in zip(r.arms, hit, strict=True))
    words = (
        f"requests met a rate limit, quota or budget: {shares}; arms that draw on the same one take from each other, "
        "so an arm's errors may be the other's doing, and alone it might meet fewer, or more"
    )
    return [Finding("shared budget", Weight.WARNS, words)]


def _settling(trial: Trial) -> list[Finding]:
    if not trial.settle_days:
        return []
    words = f"outcomes come late: success counts requests that are at least {trial.settle_days} days old"
    return [Finding("late outcomes", Weight.NOTES, words)]


def _left_out(trial: Trial) -> list[Finding]:
    counts = ", ".join(f"{n:,} {why}" for why, n in trial.requests.rows_left_out.items())
    return [Finding("rows left out", Weight.NOTES, f"left out: {counts}")] if counts else []


def _trend(trial: Trial, arm: int) -> list[Finding]:
    found = []
    for metric in (SUCCESS, COST):
        steps = effect_by_arrival(trial, metric, arm)
        if trend_evidence(steps) < -np.log(ALPHA / 2 / len(trial.challengers)):
            continue
        early, late = (f"{100 * x:+.2f} points" if metric.is_share else f"${x:+.2g}" for x in halves(steps))
        words = (
            f"the difference in {metric.words} between {trial.arms[arm]} and {trial.arms[trial.control]} was {early} "
            f"for units of the first half of the test and {late} for those of the second: novelty that wears off, or a "
            "world that moved; the mean over the test is no forecast, read the later days with --since"
        )
        found.append(Finding("effect changes over time", Weight.WARNS, words))
    return found


def _told_apart(moments: Moments, alpha: float) -> float:
    """Relative difference of a covariate's means at the last look; 0 where chance may explain it."""
    found = contrast(moments, 0, 1)
    return float(found.plain_estimate[-1] / found.control_mean[-1]) if _excludes_zero(found, alpha) else 0.0


def _excludes_zero(found: Contrast, alpha: float) -> bool:
    width = half_width(found.plain_variance, progress(found.plain_variance, found.begun), alpha)
    return bool(abs(found.plain_estimate[-1]) > width[-1])


def _time(time_us: int) -> str:
    return str(np.datetime64(int(time_us) - int(time_us) % 60_000_000, "us").astype("datetime64[m]"))
