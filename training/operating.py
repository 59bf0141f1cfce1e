"""Operating points: what each quality target costs in willingness to pay, on data that nothing else saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router_ml.operating_points import OperatingPoints
from router_ml.policy import Policy
from router_ml.types import Estimates, Float64Array, Rule
from training.dataset import Dataset

QUALITY_TARGETS = (0.80, 0.85, 0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 1.0)
_SWEEP = 240
_FLOOR_PROPENSITY = 0.1
"""Smaller ones are raised to it, at the price of some bias: a few rows of great weight would decide alone."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What is known of n prompts and m models, with every gap filled so that policies can be compared."""

    success: Float64Array
    """[n, m]: the outcome where it was seen, its doubly robust or plain estimate elsewhere."""
    cost_usd: Float64Array
    """[n, m]: logged cost where it was seen, expected price elsewhere."""
    basis: str
    """Where the success came from, in words for the report."""

    def where(self, rows: NDArray[np.bool_]) -> Outcomes:
        """Only the marked prompts [n]."""
        return Outcomes(self.success[rows], self.cost_usd[rows], self.basis)


def fill_outcomes(
    data: Dataset,
    index: NDArray[np.int64],
    p_success: Float64Array,
    expected_cost: Float64Array,
    *,
    propensities: str = "logged",
) -> Outcomes:
    """Outcomes of the prompts `index`, given estimates [len(index), m] that did not see them.

    A prompt with propensities gets the doubly robust pseudo-outcome
    ``p + 1{observed} / propensity * (y - p)`` (Dudik, Langford & Li 2011), unbiased
    whatever the estimates are; other prompts keep what was seen and the estimate for the rest,
    which is as good as the estimates are. `propensities` says in the basis where they came from.
    """
    success, count = data.cells(data.rows.success)
    cost, _ = data.cells(data.rows.cost_usd)
    success, count, cost = success[index], count[index], cost[index]
    seen = count > 0
    filled = np.where(seen, success, p_success)
    basis = f"outcomes of {seen.mean():.1%} of the pairs of prompt and model, the version's own estimates of the rest"
    weighted = ~np.isnan(data.rows.propensity) & ~np.isnan(data.rows.success)
    if weighted.any():
        corrected, n_rows = doubly_robust(data, index, p_success, weighted, floor=_FLOOR_PROPENSITY)
        filled = np.where(n_rows[:, None] > 0, corrected, filled)
        sure, share = weighted & (data.rows.propensity == 1.0), (n_rows > 0).mean()
        if sure.sum() < 0.5 * weighted.sum():
            rest = f" on {share:.1%} of the prompts; on the others {basis}" if share < 1 else ""
            basis = f"doubly robust by {propensities} propensities{rest}"
    return Outcomes(filled, np.where(np.isnan(cost), expected_cost, cost), basis)


def doubly_robust(
    data: Dataset, index: NDArray[np.int64], p: Float64Array, weighted: NDArray[np.bool_], *, floor: float
) -> tuple[Float64Array, NDArray[np.int64]]:
    """Pseudo-outcomes [len(index), m] of the prompts `index`, and how many of the `weighted` rows each rests on.

    Propensities below `floor` are raised to it, at the price of some bias; 0 raises none.
    A prompt without such a row keeps its estimate `p`.
    """
    place = np.full(len(data.prompts), -1)
    place[index] = np.arange(len(index))
    rows = data.where(weighted).rows
    rows_of = place[rows.prompt]
    inside = rows_of >= 0
    at, model = rows_of[inside], rows.model[inside]
    residual = (rows.success[inside] - p[at, model]) / np.maximum(rows.propensity[inside], floor)
    n_rows = np.bincount(at, minlength=len(index))
    correction = np.bincount(at * p.shape[1] + model, residual, p.size).reshape(p.shape)
    return p + correction / np.maximum(n_rows, 1)[:, None], n_rows


def fit_operating_points(
    policy: Policy,
    estimates: Estimates,
    outcomes: Outcomes,
    *,
    default_target: float,
    rule: Rule,
    targets: Sequence[float] = QUALITY_TARGETS,
) -> OperatingPoints:
    """For each target the cheapest setting of each rule that reaches it; None where none does."""
    best = float(outcomes.success.mean(axis=0)[np.unique(policy.column)].max())
    expected = policy.price(estimates)
    rows = np.arange(len(expected))

    def measure(level: float, of: Rule) -> tuple[float, float]:
        chosen = policy.choose_at(estimates, of, level, expected).chosen
        model = policy.column[chosen]
        return float(outcomes.cost_usd[rows, model].mean()), float(outcomes.success[rows, model].mean())

    promise = _cheapest(measure, Rule.PROMISE, willingness_grid(expected), best, targets)
    threshold = _cheapest(measure, Rule.THRESHOLD, np.linspace(0, 1, 201), best, targets)
    return OperatingPoints(tuple(targets), promise, threshold, default_target, rule)


def willingness_grid(expected_cost: Float64Array) -> Float64Array:
    """Sweep of lambda, from whatever it costs to nothing but cost, on the scale of these prices."""
    known = expected_cost[np.isfinite(expected_cost) & (expected_cost > 0)]
    scale = 1 / float(known.mean()) if known.size else 1.0
    return np.concatenate([[0.0], np.logspace(-4, 5, _SWEEP) * scale])


def _cheapest(
    measure: Callable[[float, Rule], tuple[float, float]],
    rule: Rule,
    levels: Float64Array,
    best: float,
    targets: Sequence[float],
) -> tuple[float | None, ...]:
    measured = np.array([measure(level, rule) for level in levels])
    found: list[float | None] = []
    for target in targets:
        # Means of the same outcomes, taken in another order, differ in their last bits.
        reaching = np.flatnonzero(measured[:, 1] >= target * best - 1e-9)
        if not reaching.size:
            found.append(None)
            continue
        cheapest = reaching[np.argmin(measured[reaching, 0])]
        found.append(float(levels[cheapest]))
    return tuple(found)
