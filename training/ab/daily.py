"""A reading by days, for charts: each arm's figures so far, and its differences to the control with their sequences."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from router_ml.types import Float64Array
from training.ab.metrics import METRICS, Metric, sums
from training.ab.reading import Challenger, Reading
from training.ab.requests import DAY_US, Ints, Requests
from training.registry import Point


def arm_points(requests: Requests, settle_days: int) -> dict[str, list[Point]]:
    """Arm -> its metrics after each day, of all requests so far whose outcomes are in; unknown ones are left out."""
    return {
        name: [point for metric in METRICS.values() for point in _so_far(requests, arm, metric, settle_days)]
        for arm, name in enumerate(requests.arms)
    }


def difference_points(challenger: Challenger, reading: Reading, requests: Requests, arm: str) -> list[Point]:
    """Of the deciding metrics; `low` and `high` hold at every look."""
    found = []
    ends = _ends(requests)
    for one in challenger.differences:
        if one.metric not in reading.deciding:
            continue
        for day, figure in enumerate(one.path):
            for name, value in (("difference", figure.estimate), ("low", figure.low), ("high", figure.high)):
                if value is not None:
                    found.append(Point(f"{one.metric}/{arm}.{name}", value, day + 1, ends[day]))
    return found


def _so_far(requests: Requests, arm: int, metric: Metric, settle_days: int) -> list[Point]:
    numerator, denominator = sums(metric, requests)
    look = requests.day + (settle_days if metric.needs_outcome else 0)
    keep = (requests.arm == arm) & ~np.isnan(denominator) & (look < requests.n_days)
    above, below = (_cumulated(look[keep], values[keep], requests.n_days) for values in (numerator, denominator))
    ends = _ends(requests)
    return [
        Point(metric.name, float(above[day] / below[day]), day + 1, ends[day])
        for day in range(requests.n_days)
        if below[day] > 0
    ]


def _cumulated(look: Ints, values: Float64Array, n_days: int) -> Float64Array:
    return np.asarray(np.cumsum(np.bincount(look, values, n_days)))


def _ends(requests: Requests) -> list[datetime]:
    """When each day ended, the last with its last request."""
    first = int(requests.time_us[0]) // DAY_US
    ends = [(first + day + 1) * DAY_US for day in range(requests.n_days - 1)]
    return [datetime.fromtimestamp(us / 1e6, UTC) for us in (*ends, int(requests.time_us[-1]))]
