"""What drift remembers: a few numbers per model and night, so that small changes add up to evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from router_ml.errors import InputError
from training.drift.clustered import Estimate

WINDOWS = (1, 3, 7, 14)
"""Nights that are taken together, up to tonight."""


@dataclass(frozen=True, slots=True)
class NightMean:
    """One night's mean of one figure, less that of the reference of that night."""

    night: str
    value: float
    variance: float
    """Of the night's own mean, as `df`."""
    df: float
    rows: float
    reference_variance: float
    """Of the reference's mean, as `reference_df`."""
    reference_df: float


@dataclass(frozen=True, slots=True)
class DriftState:
    """The nights so far, by figure; the newest last."""

    nights: Mapping[str, tuple[NightMean, ...]]
    """A figure is `KIND` or `KIND: SUBJECT`."""

    @classmethod
    def empty(cls) -> DriftState:
        """Before the first night."""
        return cls({})

    def of(self, figure: str, before: str) -> tuple[NightMean, ...]:
        """The nights of a figure, without the night `before`: a second look at a night must not count it twice."""
        return tuple(mean for mean in self.nights.get(figure, ()) if mean.night != before)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {figure: [asdict(mean) for mean in means] for figure, means in self.nights.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DriftState:
        """From what `to_dict` gave; InputError where it is something else."""
        names = {field.name for field in fields(NightMean)}
        nights: dict[str, tuple[NightMean, ...]] = {}
        for figure, means in values.items():
            if not isinstance(means, list) or any(not isinstance(row, dict) or set(row) != names for row in means):
                raise InputError(
                    f"the state of drift holds something else than nights under `{figure}`; expected a list of objects "
                    f"with {sorted(names)}; remove the state to begin anew, at the loss of the nights it remembers"
                )
            nights[figure] = tuple(NightMean(**row) for row in means)
        return cls(nights)


def figure_name(kind: str, subject: str) -> str:
    """The name of a figure in the state."""
    return f"{kind}: {subject}" if subject else kind


def pooled(means: tuple[NightMean, ...]) -> Estimate:
    """The mean over some nights, each with the weight of its rows.

    The nights have a reference in common, or references that overlap, so its error does not average out: it is
    taken as the same on each night, which is the worst case.
    """
    rows = np.array([mean.rows for mean in means])
    weight = rows / rows.sum()
    own = weight**2 * np.array([mean.variance for mean in means])
    spread = float((own**2 / np.array([mean.df for mean in means])).sum())
    variance = float(own.sum())
    nights = Estimate(
        float((weight * np.array([mean.value for mean in means])).sum()),
        variance,
        variance**2 / spread if spread > 0 else 1.0,
    )
    error = float((weight * np.sqrt([mean.reference_variance for mean in means])).sum())
    return nights.minus(Estimate(0.0, error**2, min(mean.reference_df for mean in means)))


def remember(state: DriftState, tonight: Mapping[str, NightMean], night: str, forget: frozenset[str]) -> DriftState:
    """The state with tonight's means; figures in `forget` begin anew, since what they showed has been told."""
    nights = {figure: state.of(figure, night) for figure in state.nights}
    for figure, mean in tonight.items():
        nights[figure] = (*nights.get(figure, ()), mean)[-max(WINDOWS) :]
    return replace(state, nights={figure: means for figure, means in nights.items() if figure not in forget})
