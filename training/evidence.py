"""What a promise may rest on: outcomes that are complete, or weighted by logged propensities, never guessed.

Array letters: n prompts, m models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Float64Array
from training.dataset import Dataset
from training.operating import doubly_robust

_MOST_HOLES = 0.1
"""Unknown outcomes count against every setting; with more of them nothing would be left to promise."""
_LEAST_FLOOR = 0.01
_FAR = 3.0
"""Standard errors."""
_BELOW_SEEN = 0.8
"""The floor asked of tested rows, as a share of the smallest propensity among the rows fitted on."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Outcomes of n prompts on m models, each cell right on average or wrong in a known direction."""

    low: Float64Array
    """[n, m], the outcome, or an estimate of it that is unbiased or too low."""
    high: Float64Array
    """[n, m], the same, unbiased or too high."""
    known: NDArray[np.bool_]
    """[n], prompts with any known outcome of an offered model; others say nothing and are left out."""
    floor: float
    """No propensity lies below it, seen or not; 1 where outcomes are complete."""
    basis: str
    """In words, for the report."""
    reason: str | None = None
    """Why no promise can rest on it; None where one can. Then `low` and `high` are estimates, to plan by."""

    def __len__(self) -> int:
        return len(self.low)

    def take(self, rows: NDArray[Any] | slice) -> Evidence:
        """Only these prompts: a mask [n], or indices in the order wanted."""
        return replace(self, low=self.low[rows], high=self.high[rows], known=self.known[rows])

    def reach(self, target: float) -> float:
        """How far below zero Y_s - q Y_j can lie for one prompt.

        For a doubly robust outcome p + 1{a}/propensity (y - p) with p in [0, 1] the worst case is a
        failure of the setting's model at the least propensity: p (1 - 1/floor) - q p_j.
        """
        return 1 / self.floor - 1 + target

    def differences(self, chosen: NDArray[np.intp], rivals: NDArray[np.intp], target: float) -> Float64Array:
        """D = Y_s - q Y_j of k settings that choose `chosen` [k, n] against each of the `rivals`, [k, rivals, n].

        What is unknown counts against the setting, except against the model that it chose itself.
        """
        own, same = self.low[np.arange(len(self)), chosen], chosen[:, None] == rivals[:, None]
        others = target * self.high[:, rivals].T
        return np.where(same, (1 - target) * own[:, None], own[:, None] - others)

    def moments(
        self, chosen: NDArray[np.intp], rivals: NDArray[np.intp], target: float
    ) -> tuple[Float64Array, Float64Array]:
        """Mean and mean square of D for one setting, [rivals]; of D as estimated where nothing can be tested."""
        value = self.differences(chosen[None], rivals, target)[0]
        square = value**2
        if self.reason is not None:
            # The outcomes behind the estimates vary too; taken as independent, they vary more than they do.
            own, others = self.low[np.arange(len(self)), chosen], self.high[:, rivals].T
            apart = own * (1 - others) + target**2 * (1 - own) * others + (1 - target) ** 2 * own * others
            square = np.where(chosen == rivals[:, None], (1 - target) ** 2 * own, apart)
        return value.mean(axis=1), square.mean(axis=1)


def propensity_floor(propensity: Float64Array) -> float:
    """A floor for propensities of rows to come, from those of rows to fit on (NaN: unknown)."""
    known = propensity[~np.isnan(propensity)]
    return max(_LEAST_FLOOR, _BELOW_SEEN * float(known.min())) if known.size else _LEAST_FLOOR


def gather_evidence(
    data: Dataset, index: NDArray[np.int64], p_success: Float64Array, offered: NDArray[np.intp], floor: float
) -> Evidence:
    """Evidence of the prompts `index`, given estimates [len(index), m] that did not see them.

    A prompt with logged propensities gets the doubly robust pseudo-outcome without any clipping,
    which is unbiased where every offered model had a chance of at least `floor`; another prompt
    keeps what was seen, and what was not seen counts against the setting that is tested.
    """
    success, count = data.cells(data.rows.success)
    success, known = success[index], (count[index] > 0)
    weighted = ~np.isnan(data.rows.propensity) & ~np.isnan(data.rows.success)
    corrected, n_rows = doubly_robust(data, index, p_success, weighted, floor=0.0)
    by_weight = n_rows > 0
    low = np.where(by_weight[:, None], corrected, np.where(known, success, 0.0))
    high = np.where(by_weight[:, None], corrected, np.where(known, success, 1.0))
    usable = by_weight | known[:, offered].any(axis=1)
    whole = known[:, offered][usable & ~by_weight]
    holes = 1 - float(whole.mean()) if whole.size else 0.0
    reason, basis = None, "outcomes of every model on each prompt"
    if not usable.any():
        reason = "no prompt to tune on has a known outcome"
    elif by_weight.any():
        reason = _no_overlap(data, index, weighted, offered, floor)
        share = by_weight[usable].mean()
        basis = f"doubly robust outcomes by logged propensities of at least {floor:.3g}"
        basis += f" ({share:.0%} of the prompts)" if share < 1 else ""
    elif holes:
        basis = f"outcomes of {1 - holes:.1%} of the pairs of prompt and model, the rest counted against the router"
    if reason is None and holes > _MOST_HOLES:
        reason = (
            f"only {1 - holes:.0%} of the outcomes are known on prompts without logged propensities; log the "
            "propensity of each decision, or send a sample of prompts to every model"
        )
    if reason is not None:
        low = high = p_success
    return Evidence(low, high, usable, floor if by_weight.any() else 1.0, basis, reason)


def _no_overlap(
    data: Dataset,
    index: NDArray[np.int64],
    weighted: NDArray[np.bool_],
    offered: NDArray[np.intp],
    floor: float,
) -> str | None:
    """Why the propensities cannot carry a promise: some model had too small a chance, or none; None where they can."""
    inside = weighted & np.isin(data.rows.prompt, index)
    propensity, model = data.rows.propensity[inside], data.rows.model[inside]
    sure = 1 - floor * (len(offered) - 1)
    if propensity.max() > sure:
        return (
            f"some requests went to one model with propensity {propensity.max():.3g}, which leaves the others less "
            f"than {floor:.3g} each; let every model have a share of the traffic"
        )
    if propensity.min() < floor:
        return (
            f"logged propensities go down to {propensity.min():.3g}, below the {floor:.3g} that rows to fit on "
            "suggest; a promise rests on a floor"
        )
    least = floor * len(model) - 4 * np.sqrt(floor * len(model))
    seen = np.bincount(model, minlength=len(data.models))[offered]
    if seen.min() < max(1.0, least):
        name = data.models[offered[seen.argmin()]]
        return f"`{name}` answered {seen.min()} of the {len(model):,} requests to tune on, too few for propensities"
    # 1 on average where a model has a chance on every prompt, else the share of the prompts where it has one: what
    # exploration leaves out as too dear or too unlikely shows in no single propensity.
    for j in offered:
        weight = np.where(model == j, 1 / propensity, 0.0)
        support, error = float(weight.mean()), float(weight.std() / np.sqrt(len(weight)))
        if support < 1 - _FAR * error:
            return (
                f"`{data.models[j]}` had a chance on about {support:.0%} of the requests to tune on alone; a promise "
                "takes a chance of every offered model on each"
            )
    return None
