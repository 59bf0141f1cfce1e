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
from router_ml.types import Float64Array
from training.ab.contrast import contrast
from training.ab.metrics import COST, METRICS, SUCCESS, Metric, sums
from training.ab.moments import FOLDS, Units, moments
from training.ab.requests import DAY_US, Requests
from training.ab.sequence import TUNED_DAYS, half_width
from training.ab.trial import Scope, covariates_of, settled_after

POWER = 0.8
WEEK_DAYS = 7
_DAYS = np.arange(1, 366, dtype=np.float64)
_SHOWN_DAYS = (7, 14, 28)


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

    def seen(metric: Metric) -> tuple[Seen, Float64Array]:
        value, known, per_unit, saved = _spread(week, metric, scope, settle)
        n_units = len(first) / span * _DAYS
        variance = per_unit * (1 - saved) * (1 / (n_units * share) + 1 / (n_units * control))
        detect = half_width(variance, _DAYS / TUNED_DAYS, level) + norm.ppf(POWER) * np.sqrt(variance)
        shown = {day: float(detect[day - 1]) for day in _SHOWN_DAYS}
        return Seen(metric.name, value, known, saved, shown), variance

    needs = []
    for effect in effects:
        metric = METRICS[effect.metric]
        found, variance = seen(metric)
        size = effect.size if metric.is_share else effect.size * found.value
        wait = settle if metric.needs_outcome else 0
        spread = np.sqrt(variance)
        at_any = half_width(variance, _DAYS / TUNED_DAYS, level) + norm.ppf(POWER) * spread
        days = _first_day(at_any <= size, wait)
        fixed = _first_day((norm.ppf(1 - level / 2) + norm.ppf(POWER)) * spread <= size, wait)
        total = None if days is None else round(days * len(week) / span)
        needs.append(Need(metric.name, effect.size, size, days, total, fixed))
    known_metrics = [m for m in (SUCCESS, COST) if not np.isnan(sums(m, week)[1]).all()]
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
        detectable=tuple(seen(metric)[0] for metric in known_metrics),
    )


def _last_week(requests: Requests) -> Requests:
    return requests.where(requests.time_us > requests.time_us[-1] - WEEK_DAYS * DAY_US)


def _spread(week: Requests, metric: Metric, scope: Scope, settle: int) -> tuple[float, float, float, float]:
    """The metric's value, the share of requests that know it, its variance per unit, and what covariates save of it.

    The variance is that of (numerator - value x denominator) per unit over the mean denominator, over all units
    of the week, as the difference of two halves of them has it. Outcomes of requests too young to have any are not
    held against the label rate.
    """
    numerator, denominator = sums(metric, week)
    settled = week.day < week.n_days - (settle if metric.needs_outcome else 0)
    if not settled.any():
        settled = np.ones(len(week), dtype=np.bool_)
    denominator = np.where(settled, denominator, np.nan)
    known = float((~np.isnan(denominator[settled])).mean())
    if np.isnan(denominator).all():
        raise InputError(f"`{metric.name}` is not known of any request of the latest week; it cannot be planned for")
    n_units = int(week.unit.max()) + 1
    rng = np.random.default_rng(0)
    covariates = covariates_of(week)
    first = np.unique(week.unit, return_index=True)[1]
    units = Units(rng.integers(2, size=n_units), rng.integers(FOLDS, size=n_units), np.ones(n_units), covariates[first])
    per_request = covariates if scope is Scope.EVERY else None
    look = np.zeros(len(week), dtype=np.int64)
    halves = contrast(
        moments(units, week.unit, look, numerator, denominator, 1, 2, per_request), 0, 1, is_share=metric.is_share
    )
    if not halves.plain_variance[0] > 0:
        raise InputError(
            f"too few {week.unit_kind}s in the latest week to know how much `{metric.name}` varies; give more logs, or "
            "another --unit"
        )
    # The label rate is that of settled requests; the units are all of the week's, settled or not.
    share_settled = len(np.unique(week.unit[settled])) / n_units
    used = n_units * share_settled
    per_unit = float(halves.plain_variance[0]) * used / 4
    return (
        float(np.nansum(numerator[~np.isnan(denominator)]) / np.nansum(denominator)),
        known,
        per_unit,
        max(0.0, halves.variance_saved),
    )


def _first_day(enough: np.ndarray, wait: int) -> int | None:
    found = np.flatnonzero(enough)
    return int(_DAYS[found[0]]) + wait if len(found) else None
