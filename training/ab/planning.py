"""How long a test would take, from logs of traffic as it is: no arm needed.

The variance per unit is that of the latest week: requests per unit, label rate and spread of costs as they are. An
effect counts as seen when a challenger that has it is shown to be better (or worse) with probability `POWER` by that
day: the confidence sequence leaves zero. It may be seen earlier, since one may look every day.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from router_ml.errors import InputError
from training.ab.contrast import contrast
from training.ab.metrics import METRICS, Metric, sums
from training.ab.moments import FOLDS, Units, moments
from training.ab.requests import DAY_US, Bools, Requests
from training.ab.sequence import TUNED_DAYS, fixed_half_width, half_width
from training.ab.trial import Scope, covariates_of, settled_after

POWER = 0.8
WEEK_DAYS = 7
_DAYS = np.arange(1, 366, dtype=np.float64)
SHOWN_DAYS = (7, 14, 28)


@dataclass(frozen=True, slots=True)
class Effect:
    """What is to be seen: success by 0.01, or cost per request by 0.05 of it."""

    metric: str
    size: float
    """Difference of a share; share of the present value of any other metric."""


@dataclass(frozen=True, slots=True)
class Need:
    """What it takes to see one effect."""

    metric: str
    effect: float
    """As asked."""
    effect_absolute: float
    """In the metric's unit."""
    days: int | None
    """None: more than a year."""
    requests: int | None
    """Of all arms, with or without a known outcome."""
    days_fixed: int | None
    """With one look only, at a horizon declared at the start."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The least effect that would be seen, by days."""

    metric: str
    value: float
    """Of the metric now."""
    known: float
    """Share of the requests of which it is known."""
    variance_saved: float
    """By covariates."""
    by_days: dict[int, float]
    """Days -> difference in the metric's unit."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a test of this traffic can tell, and when."""

    share: float
    arms: int
    unit: str
    days_read: float
    requests_per_day: float
    units_per_day: float
    returning: float
    """Share of the last day's units that had come before: more days bring fewer new ones than that suggests."""
    settle_days: int
    alpha: float
    needs: tuple[Need, ...]
    detectable: tuple[Seen, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_test(
    requests: Requests,
    effects: Sequence[Effect],
    *,
    share: float,
    arms: int = 2,
    deciding: Sequence[str] = ("success", "cost_per_request", "error_rate"),
    alpha: float = 0.05,
    scope: Scope = Scope.FIRST,
) -> Plan:
    """Plan a test in which each challenger gets `share` of the units and the control the rest.

    InputError where the logs do not know a metric, or the shares leave nothing to the control.
    """
    if arms < 2 or not 0 < share * (arms - 1) < 1:
        raise InputError(
            f"{arms - 1} challengers with {share:.3g} each: together above 0 and below 1, so that the control has some"
        )
    settle = settled_after(requests)
    week = _last_week(requests)
    level = alpha / len(deciding) / (arms - 1)
    span = max((week.time_us[-1] - week.time_us[0]) / DAY_US, 1 / 24)
    first = np.unique(week.unit, return_index=True)[1]
    control = 1 - share * (arms - 1)

    n_units = len(first) / span * _DAYS
    per_unit_of_both = 1 / (n_units * share) + 1 / (n_units * control)
    needs, detectable = [], []
    for metric in METRICS.values():
        wanted = [effect for effect in effects if effect.metric == metric.name]
        spread = _spread(week, metric, scope, settle)
        if spread is None:
            if wanted:
                raise InputError(
                    f"`{metric.name}` is known of too few {week.unit_kind}s of the latest week to plan for; give more "
                    "logs, or another --unit"
                )
            continue
        variance = spread.per_unit * (1 - spread.saved) * per_unit_of_both
        lift = norm.ppf(POWER) * np.sqrt(variance)
        seen = half_width(variance, _DAYS / TUNED_DAYS, level) + lift
        seen_once = fixed_half_width(variance, level) + lift
        wait = settle if metric.needs_outcome else 0
        for effect in wanted:
            size = effect.size if metric.is_share else effect.size * spread.value
            days = _first_day(seen <= size, wait)
            total = None if days is None else round(days * len(week) / span)
            needs.append(Need(metric.name, effect.size, size, days, total, _first_day(seen_once <= size, wait)))
        if metric.name in deciding:
            shown = {day: float(seen[day - wait - 1]) for day in SHOWN_DAYS if day > wait}
            detectable.append(Seen(metric.name, spread.value, spread.known, spread.saved, shown))
    last_day = week.unit[week.day == week.n_days - 1]
    before = np.isin(np.unique(last_day), week.unit[week.day < week.n_days - 1])
    return Plan(
        share=share,
        arms=arms,
        unit=week.unit_kind,
        days_read=span,
        requests_per_day=len(week) / span,
        units_per_day=len(first) / span,
        returning=float(before.mean()) if week.n_days > 1 else 0.0,
        settle_days=settle,
        alpha=level,
        needs=tuple(needs),
        detectable=tuple(detectable),
    )


def _last_week(requests: Requests) -> Requests:
    return requests.where(requests.time_us > requests.time_us[-1] - WEEK_DAYS * DAY_US)


@dataclass(frozen=True, slots=True)
class _Spread:
    """How much a metric varies."""

    value: float
    known: float
    """Share of the requests of which it is known, those aside that are too young to have an outcome."""
    per_unit: float
    """Variance of (numerator - value x denominator) per unit over the mean denominator."""
    saved: float
    """Share of it that covariates take away."""


def _spread(week: Requests, metric: Metric, scope: Scope, settle: int) -> _Spread | None:
    """Found by splitting the units into two halves at random; None where too few know the metric."""
    numerator, denominator = sums(metric, week)
    settled = week.day < week.n_days - (settle if metric.needs_outcome else 0)
    denominator = np.where(settled, denominator, np.nan)
    used = ~np.isnan(denominator)
    if not used.any():
        return None
    n_units, rng = int(week.unit.max()) + 1, np.random.default_rng(0)
    covariates = covariates_of(week)
    own = covariates[np.unique(week.unit, return_index=True)[1]]
    units = Units(rng.integers(2, size=n_units), rng.integers(FOLDS, size=n_units), np.ones(n_units), own)
    per_request = covariates if scope is Scope.EVERY else None
    look = np.zeros(len(week), dtype=np.int64)
    halves = contrast(
        moments(units, week.unit, look, numerator, denominator, 1, 2, per_request), 0, 1, is_share=metric.is_share
    )
    if not halves.plain_variance[0] > 0:
        return None
    # Units that came too late to settle are not to be counted as if they had no outcome.
    n_settled = len(np.unique(week.unit[settled]))
    return _Spread(
        value=float(numerator[used].sum() / denominator[used].sum()),
        known=float(used[settled].mean()),
        per_unit=float(halves.plain_variance[0]) * n_settled / 4,
        saved=max(0.0, halves.variance_saved),
    )


def _first_day(enough: Bools, wait: int) -> int | None:
    found = np.flatnonzero(enough)
    return int(_DAYS[found[0]]) + wait if len(found) else None
