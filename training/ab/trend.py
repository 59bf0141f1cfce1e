"""Whether the effect is the same for units that come early and late: novelty, learning, or a world that moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from router_ml.types import Float64Array
from training.ab.contrast import contrast
from training.ab.metrics import Metric
from training.ab.moments import Moments
from training.ab.sequence import log_e_value
from training.ab.trial import Trial

_TUNED_STEPS = 14


@dataclass(frozen=True, slots=True)
class Steps:
    """Effects of groups of units in order of their coming; independent of each other."""

    estimate: Float64Array
    variance: Float64Array


def effect_by_arrival(trial: Trial, metric: Metric, arm: int) -> Steps:
    """The difference among the units of each day, days joined until each holds enough."""
    each = trial.moments_by_arrival(metric, arm)
    estimates, variances = [], []
    waiting: Moments | None = None
    for day in range(len(each.n_units)):
        waiting = each.of_look(day) if waiting is None else waiting + each.of_look(day)
        found = contrast(waiting, 0, 1, is_share=metric.is_share)
        if found.variance[0] > 0:
            estimates.append(found.estimate[0])
            variances.append(found.variance[0])
            waiting = None
    return Steps(np.array(estimates), np.array(variances))


def trend_evidence(steps: Steps) -> float:
    """Largest log e-value, over all looks, against one effect throughout; 0 for fewer than two steps.

    Each effect minus the mean of those before it, in its standard deviations: while the effect stays the same these
    recursive residuals are independent and standard normal (Brown, Durbin & Evans 1975, JRSS B 37(2)), and
    their sums a random walk, held against its mixture boundary. Effects that drift one way pull all of them that way.
    """
    weight = 1 / steps.variance
    before = (np.cumsum(weight) - weight)[1:]
    mean_before = (np.cumsum(weight * steps.estimate) - weight * steps.estimate)[1:] / before
    residual = (steps.estimate[1:] - mean_before) / np.sqrt(steps.variance[1:] + 1 / before)
    n = np.arange(1, len(residual) + 1, dtype=np.float64)
    evidence = log_e_value(np.cumsum(residual) / n, 1 / n, n / _TUNED_STEPS)
    return float(evidence.max(initial=0.0))


def halves(steps: Steps) -> tuple[float, float]:
    """Mean effect of the earlier and of the later steps."""
    middle = len(steps.estimate) // 2
    parts = slice(middle), slice(middle, None)
    early, late = (float(np.average(steps.estimate[part], weights=1 / steps.variance[part])) for part in parts)
    return early, late
