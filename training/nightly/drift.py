"""What has changed since the last night and since the champion was judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router_ml.errors import InputError
from router_ml.router import Router
from training.drift import DriftState, Observed, find_drift, observe
from training.nightly.choices import labels_of
from training.nightly.rows import rows_between

_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Earlier:
    """What earlier nights left for tonight."""

    night: str
    """Name of tonight."""
    before_us: int | None = None
    """The rows of the last night came after this one; None: unknown, a day is taken."""
    judged_until_us: int | None = None
    """Newest row by which the champion was judged; None: unknown, up to the last night."""
    state: dict[str, Any] | None = None
    """What the tests of drift remember."""


def look_for_drift(outcomes: Path, gathered: dict[str, Any], champion: Router, earlier: Earlier) -> dict[str, Any]:
    """The drift report, with the state for the next night as `state`; estimates are the champion's."""
    since = gathered["since_us"] or gathered["newest_us"] - _DAY_US
    before = earlier.before_us or since - _DAY_US
    split = champion.bundle.manifest.split
    unseen = split["test_from_us"]
    until = min(earlier.judged_until_us or before, since)
    current = _observed(outcomes, since, gathered["newest_us"], champion)
    if current is None:
        return {"findings": [], "alarms": 0, "n_tests": {}, "notes": ["no new row to look at"], "state": earlier.state}
    report = find_drift(
        current,
        last_night=_observed(outcomes, before, since, champion),
        training=None if unseen is None else _observed(outcomes, unseen - 1, until, champion),
        night=earlier.night,
        state=DriftState.from_dict(earlier.state) if earlier.state else DriftState.empty(),
    )
    return report.to_dict() | {"state": report.state.to_dict()}


def _observed(outcomes: Path, after_us: int, until_us: int, champion: Router) -> Observed | None:
    """The rows later than one moment and not later than another; None where there are none that can be read."""
    table = rows_between(outcomes, after_us + 1, until_us, labels_of(champion.bundle))
    try:
        return observe(table, champion) if len(table) else None
    except InputError:
        return None
