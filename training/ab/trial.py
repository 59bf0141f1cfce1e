"""A test, ready to be read: which unit is in which arm, with which weight, from which look on each request counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

import numpy as np

from router_ml.errors import InputError
from router_ml.types import Float64Array
from training.ab.metrics import METRICS, Metric, sums
from training.ab.moments import FOLDS, Moments, Units, moments
from training.ab.requests import Bools, Ints, Requests

CONTROL_NAMES = ("champion", "control")
_MOST_SEGMENTS = 8
"""That become covariates; the others share one."""
_KNOWN_OF_OLD = 0.95
"""Outcomes have settled at an age at which so large a share of those that ever come is there."""


class Scope(StrEnum):
    """Whose predictions are covariates."""

    FIRST = "first-request"
    """Of a unit's first request: nothing the arm did can have influenced it."""
    EVERY = "every-request"
    """Of all; unbiased only where the arms do not influence what is asked next."""


@dataclass(frozen=True, slots=True)
class Share:
    """From a time on, the share of the traffic that an arm gets."""

    arm: str
    share: float
    since: datetime | None = None
    """None: from the start."""


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """How a test is read; everything here is to be fixed before it begins."""

    control: str | None = None
    """None: `champion` or `control`, whichever the table has."""
    shares: tuple[Share, ...] = ()
    """Of the arms besides the control, which gets the rest; empty: not known."""
    goals: tuple[str, ...] = ("success", "cost_per_request")
    """A challenger must be better in one of them."""
    guardrails: tuple[str, ...] = ("error_rate",)
    """It must not be worse in these, nor in the goals."""
    margins: dict[str, float] = field(default_factory=dict)
    """Metric -> how much worse is still as good: points of a share (0.01), share of the control's value of the others
    (0.05). Default: `default_margin`."""
    alpha: float = 0.05
    """Chance that any deciding interval of any arm, at any look, misses the truth."""
    horizon: datetime | None = None
    """When the one look of a fixed-horizon test is due; None: valid at every look."""
    settle_days: int | None = None
    """Days until outcomes are in; None: found from the log."""
    scope: Scope = Scope.FIRST
    quality_target: float | None = None
    """Promised share of the reference arm's success."""
    reference: str | None = None
    """Arm that the promise is about, best the one that always calls the best model; None: the control."""

    def __post_init__(self) -> None:
        for name in (*self.goals, *self.guardrails, *self.margins):
            if name not in METRICS:
                raise InputError(f"no metric `{name}`; there are {', '.join(METRICS)}")
        for name, margin in self.margins.items():
            if not 0 <= margin < 1:
                raise InputError(f"the margin of `{name}` must lie in [0, 1), found {margin}")

    @property
    def deciding(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.goals, *self.guardrails)))

    def margin(self, metric: Metric) -> float:
        """As a difference of shares, or as a share of the control's value."""
        return self.margins.get(metric.name, 0.01 if metric.is_share else 0.05)


@dataclass(frozen=True, slots=True)
class Trial:
    """Requests that belong to arms, and their u units."""

    requests: Requests
    settings: ReadSettings
    control: int
    unit_arm: Ints
    """[u], the arm of the unit's first request, which later requests in other arms do not change."""
    first: Ints
    """[u], index of the unit's first request."""
    fold: Ints
    period: Ints
    """[u], the latest change of shares before the unit came."""
    shares: Float64Array | None
    """[periods, arms]; None where they are not known."""
    covariates: Float64Array
    """[n, p], of each request; no NaN."""
    settle_days: int

    @property
    def arms(self) -> tuple[str, ...]:
        return self.requests.arms

    @property
    def challengers(self) -> tuple[int, ...]:
        return tuple(i for i in range(len(self.arms)) if i != self.control)

    @property
    def n_looks(self) -> int:
        """One after each day."""
        return self.requests.n_days

    def units(self, arm: int, against: int) -> Units:
        """The units for a comparison of two arms, the arm as 0 and what it is held against as 1; others have weight 0.

        Where shares changed, each unit weighs as much as the other arm had of the traffic of both (overlap weights:
        Li, Morgan & Zaslavsky 2018, JASA 113), so that days on which one arm was small do not pass for a difference.
        """
        place = np.full(len(self.arms), -1)
        place[[arm, against]] = 0, 1
        which = place[self.unit_arm]
        weight = (which >= 0).astype(np.float64)
        if self.shares is not None and len(self.shares) > 1:
            pair = self.shares[:, [against, arm]]
            weight *= (pair / np.maximum(pair.sum(axis=1, keepdims=True), 1e-12))[self.period, which]
        return Units(np.maximum(which, 0), self.fold, weight, self.covariates[self.first])

    def moments(
        self,
        metric: Metric,
        arm: int,
        keep: Bools | None = None,
        *,
        against: int | None = None,
        adjusted: bool = True,
    ) -> Moments:
        """Of a metric, for an arm (as 0) and `against` or else the control (as 1), of the requests `keep` [n]."""
        numerator, denominator = sums(metric, self.requests)
        if keep is not None:
            denominator = np.where(keep, denominator, np.nan)
        pair = (arm, self.control if against is None else against)
        return self._moments(numerator, denominator, pair, self._look(metric), adjusted)

    def moments_of_covariate(self, k: int, arm: int, keep: Bools) -> Moments:
        """Of a covariate over the requests `keep` [n], as if it were a metric."""
        return self._moments(
            self.covariates[:, k], np.where(keep, 1.0, np.nan), (arm, self.control), self.requests.day, False
        )

    def moments_by_arrival(self, metric: Metric, arm: int) -> Moments:
        """Of a metric, but each look holds all requests of the units that came on its day."""
        numerator, denominator = sums(metric, self.requests)
        settled = self._look(metric) < self.n_looks
        arrived = self.requests.day[self.first][self.requests.unit]
        return self._moments(numerator, np.where(settled, denominator, np.nan), (arm, self.control), arrived, False)

    def _look(self, metric: Metric) -> Ints:
        """At which each request comes to count, [n]."""
        return self.requests.day + (self.settle_days if metric.needs_outcome else 0)

    def _moments(
        self, numerator: Float64Array, denominator: Float64Array, pair: tuple[int, int], look: Ints, adjusted: bool
    ) -> Moments:
        units = self._units(pair, adjusted)
        denominator = np.where(units.weight[self.requests.unit] > 0, denominator, np.nan)
        per_request = self.covariates if adjusted and self.settings.scope is Scope.EVERY else None
        return moments(units, self.requests.unit, look, numerator, denominator, self.n_looks, 2, per_request)

    def _units(self, pair: tuple[int, int], adjusted: bool) -> Units:
        """Units with the first arm as 0, the second as 1; of other arms they have weight 0.

        Where shares changed, each unit weighs as much as the other arm had of the traffic of both (overlap weights:
        Li, Morgan & Zaslavsky 2018, JASA 113), so that days on which one arm was small do not pass for a difference.
        """
        place = np.full(len(self.arms), -1)
        place[list(pair)] = 0, 1
        which = place[self.unit_arm]
        weight = (which >= 0).astype(np.float64)
        if self.shares is not None and len(self.shares) > 1:
            others = self.shares[:, pair[::-1]]
            weight *= (others / np.maximum(others.sum(axis=1, keepdims=True), 1e-12))[self.period, which]
        covariates = self.covariates[self.first] if adjusted else np.empty((len(which), 0))
        return Units(np.maximum(which, 0), self.fold, weight, covariates)


def make_trial(requests: Requests, settings: ReadSettings) -> Trial:
    """InputError where the table is no test: no arm, one arm, no control, nothing known."""
    n_outside = int((requests.arm < 0).sum())
    if n_outside == len(requests):
        raise InputError("no row has an `arm`; name the side of the test that answered each request, such as champion")
    if n_outside:
        requests = requests.where(requests.arm >= 0)
        requests = replace(requests, rows_left_out={**requests.rows_left_out, "requests without an `arm`": n_outside})
    present = np.unique(requests.arm)
    if len(present) < 2:
        raise InputError(
            f"the only arm is `{requests.arms[present[0]]}`; a test compares two or more: add the rows of the other "
            "arm, or look whether --since and --until leave it out"
        )
    if np.isnan(requests.success).all() and np.isnan(requests.cost_usd).all():
        raise InputError(
            "neither `success` nor `cost_usd` is known of any request in an arm; there is nothing to compare"
        )
    control = _control(requests.arms, settings.control)
    if settings.reference is not None and settings.reference not in requests.arms:
        raise InputError(f"the reference `{settings.reference}` is none of the arms: {', '.join(requests.arms)}")
    first = np.flatnonzero(np.diff(np.maximum.accumulate(requests.unit), prepend=-1))
    period, shares = _periods(requests, settings.shares, control, first)
    return Trial(
        requests=requests,
        settings=settings,
        control=control,
        unit_arm=requests.arm[first],
        first=first,
        fold=np.random.default_rng(0).integers(FOLDS, size=len(first)),
        period=period,
        shares=shares,
        covariates=covariates_of(requests),
        settle_days=settled_after(requests) if settings.settle_days is None else settings.settle_days,
    )


def settled_after(requests: Requests) -> int:
    """Days after which nearly all outcomes that come are there, by the ages of requests without one, all arms alike.

    Age counts from the end of the log. Tells nothing of outcomes that take longer than half the log.
    """
    judged = ~(requests.failed & np.isnan(requests.success))
    age = requests.n_days - 1 - requests.day[judged]
    n = np.bincount(age, minlength=requests.n_days)
    known = np.bincount(age, ~np.isnan(requests.success[judged]), requests.n_days)
    half = requests.n_days // 2
    if half < 2 or not known[half:].sum():
        return 0
    old = known[half:].sum() / n[half:].sum()
    noise = 2 * np.sqrt(old * (1 - old) / np.maximum(n, 1))
    short = known < n * (_KNOWN_OF_OLD * old - noise)
    young = np.flatnonzero(short[:half])
    return int(young[-1]) + 1 if len(young) else 0


def _control(arms: Sequence[str], wanted: str | None) -> int:
    if wanted is not None:
        if wanted not in arms:
            raise InputError(f"the control `{wanted}` is none of the arms: {', '.join(arms)}")
        return arms.index(wanted)
    found = [name for name in CONTROL_NAMES if name in arms]
    if len(found) != 1:
        raise InputError(f"name the control with --control; the arms are {', '.join(arms)}")
    return arms.index(found[0])


def _periods(
    requests: Requests, shares: Sequence[Share], control: int, first: Ints
) -> tuple[Ints, Float64Array | None]:
    """Which schedule was in force when each unit came, [u], and the shares, [periods, arms]."""
    if not shares:
        return np.zeros(len(first), dtype=np.int64), None
    begin = int(requests.time_us[0])
    changes = [(begin if s.since is None else max(begin, int(s.since.timestamp() * 1e6)), s) for s in shares]
    times = np.array(sorted({begin, *(time for time, _ in changes)}))
    table = np.zeros((len(times), len(requests.arms)))
    for time, share in sorted(changes, key=lambda change: change[0]):
        if share.arm not in requests.arms:
            raise InputError(f"--share names `{share.arm}`, which is none of the arms: {', '.join(requests.arms)}")
        place = requests.arms.index(share.arm)
        if place == control:
            raise InputError(f"--share is for the other arms; the control `{share.arm}` gets what they leave")
        table[times >= time, place] = share.share
    unnamed = [arm for i, arm in enumerate(requests.arms) if i != control and not table[:, i].any()]
    if unnamed:
        raise InputError(f"--share is given, but not for {', '.join(unnamed)}; give the share of each arm")
    table[:, control] = 1 - table.sum(axis=1)
    if (table[:, control] <= 0).any():
        raise InputError("the shares of the arms must leave something to the control")
    return np.searchsorted(times, requests.time_us[first], side="right") - 1, table


def covariates_of(requests: Requests) -> Float64Array:
    """Predictions, unknown ones at their mean, and segments, [n, p]."""
    means = np.array([np.nanmean(x) if (~np.isnan(x)).any() else 0.0 for x in requests.predicted.T])
    predicted = np.where(np.isnan(requests.predicted), means, requests.predicted)
    counts = np.bincount(requests.segment + 1, minlength=1)
    frequent = [k for k in np.argsort(-counts, kind="stable")[:_MOST_SEGMENTS] if counts[k]]
    dummies = [(requests.segment + 1 == k).astype(np.float64) for k in frequent[1:]]
    return np.column_stack([predicted, *dummies]) if dummies else predicted
