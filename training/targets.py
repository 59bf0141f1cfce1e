"""What a quality target gave on held-out prompts, as reached in tuning and as promised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router_ml.operating_points import OperatingPoints
from router_ml.policy import Policy
from router_ml.types import Estimates, Float64Array, Rule
from training.metrics import SweepPoints


@dataclass(frozen=True, slots=True)
class PromisedFigures:
    """What the operating point that is promised with confidence gave on held-out prompts."""

    cost_usd_per_1000: float
    cost_share: float
    quality_kept: float


@dataclass(frozen=True, slots=True)
class TargetFigures:
    """What a quality target gave on held-out prompts, at the level that reached it in tuning."""

    quality_target: float
    reached_in_tuning: bool
    cost_usd_per_1000: float
    cost_share: float
    """Of the best single model's cost."""
    quality: float
    quality_kept: float
    """Of the best single model's quality."""
    traffic: dict[str, float]
    """Share of requests by model; models without any left out."""
    promised: PromisedFigures | None
    """None: the target cannot be promised on the data that set the operating points."""


def target_figures(
    policy: Policy,
    promising: Policy,
    estimates: Estimates,
    to_column: NDArray[np.intp],
    success: Float64Array,
    cost: Float64Array,
    sweep: SweepPoints,
    names: tuple[str, ...],
    target: float,
) -> TargetFigures:
    """Judge one target on complete outcomes [n, m] of the models `names`, under plug-in and promised levels.

    `policy` has the plug-in levels in force, `promising` the promised ones; `to_column` [o] is the
    column of each offer's model; costs are in US dollars.
    """
    rows = np.arange(len(success))
    best_cost, best_quality = float(sweep.model_cost[sweep.best]), float(sweep.model_quality[sweep.best])

    def measure(of: Policy) -> tuple[NDArray[np.intp], float, float]:
        column = to_column[of.choose(estimates, quality_target=target).chosen]
        return column, float(cost[rows, column].mean()), float(success[rows, column].mean())

    column, spent, quality = measure(policy)
    share = np.bincount(column, minlength=len(names)) / len(column)
    promised = None
    if _level(promising.points, target) is not None:
        _, promised_spent, promised_quality = measure(promising)
        promised = PromisedFigures(
            1000 * promised_spent, _share(promised_spent, best_cost), _share(promised_quality, best_quality)
        )
    return TargetFigures(
        quality_target=target,
        reached_in_tuning=_level(policy.points, target) is not None,
        cost_usd_per_1000=1000 * spent,
        cost_share=_share(spent, best_cost),
        quality=quality,
        quality_kept=_share(quality, best_quality),
        traffic={names[j]: float(share[j]) for j in np.argsort(-share) if share[j] > 0},
        promised=promised,
    )


def _level(points: OperatingPoints, target: float) -> float | None:
    return points.threshold_for(target) if points.rule is Rule.THRESHOLD else points.willingness_for(target)


def _share(value: float, of_best: float) -> float:
    return value / of_best if of_best > 0 else 1.0
