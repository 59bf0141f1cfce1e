"""How much of a policy the logs can speak of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Float64Array
from training.off_policy.logged import LoggedRows
from training.off_policy.uncertainty import standard_error

_FAR = 0.05
_SURE = 3.0
"""Standard errors."""


@dataclass(frozen=True, slots=True)
class SegmentOverlap:
    """Overlap in one segment."""

    rows: int
    effective_sample_size: float
    unsupported: float
    """Share of the policy's decisions for a model that the logs of this segment never show."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Whether the logging policy could have made the choices of the policy that is judged."""

    n_rows: int
    n_clusters: int
    """Groups of rows that depend on each other; of two ways to group, the fewer."""
    largest_weight: float
    mean_weight: float
    """1 in expectation where propensities are right; below it by the share of decisions that had no chance."""
    mean_weight_error: float
    """Its standard error."""
    unsupported: float
    """Share of the policy's decisions for a model that the logs never show in that segment."""
    by_segment: dict[str, SegmentOverlap]

    @property
    def problem(self) -> str | None:
        """Why no weight can make up for what was not logged; None where nothing tells so."""
        off = self.mean_weight - 1
        if self.unsupported > _FAR:
            return f"{self.unsupported:.0%} of its decisions are for models that the logs never show in that segment"
        if abs(off) < _FAR or abs(off) < _SURE * self.mean_weight_error:
            return None
        if off < 0:
            return (
                f"about {-off:.0%} of its decisions had no chance in the logs (the mean weight is "
                f"{self.mean_weight:.2f} instead of 1), or the logged propensities are too high"
            )
        return f"the mean weight is {self.mean_weight:.2f} instead of 1, so the logged propensities are too low"


def effective_sample_size(weight: Float64Array) -> float:
    """Kish's ``(sum w)^2 / sum w^2`` of weights [n]: rows of equal weight that would vary as little."""
    square = float((weight**2).sum())
    return float(weight.sum() ** 2 / square) if square > 0 else 0.0


def overlap_of(rows: LoggedRows, segment: NDArray[np.int64], segments: Sequence[str]) -> Overlap:
    """Overlap in all rows and by segment; `segment` [n] indexes `segments` plus one, 0 is unknown."""
    weight = rows.weight
    names = ["unknown", *segments]
    by_segment, unsupported = {}, np.zeros(len(rows))
    for s in np.unique(segment).tolist():
        inside = segment == s
        never = np.bincount(rows.action[inside], minlength=rows.target.shape[1]) == 0
        unsupported[inside] = rows.target[inside][:, never].sum(axis=1)
        seen = weight[inside & rows.known]
        by_segment[names[s]] = SegmentOverlap(
            int(inside.sum()), effective_sample_size(seen), float(unsupported[inside].mean())
        )
    mean = float(weight.mean())
    ways = rows.cluster[:, None] if rows.cluster.ndim == 1 else rows.cluster
    return Overlap(
        n_rows=len(rows),
        n_clusters=min(len(np.unique(way)) for way in ways.T),
        largest_weight=float(weight.max()),
        mean_weight=mean,
        mean_weight_error=float(standard_error((weight - mean) / len(rows), rows.cluster)),
        unsupported=float(unsupported.mean()),
        by_segment=by_segment,
    )
