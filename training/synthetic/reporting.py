"""How much of the truth gets into a log: outcomes that are reported late, and outcomes that nobody reports."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router_ml.errors import InputError
from router_ml.types import Float64Array
from training.synthetic.prompts import IntArray

_HOUR_US = 3.6e9


@dataclass(frozen=True, slots=True)
class Reporting:
    """Which outcomes are reported, and how long it takes: exponential delays of these means."""

    success_share: float = 1.0
    """Of the successes that are ever reported, in [0, 1]; 0: only complaints come in."""
    failure_share: float = 1.0
    """Of the failures."""
    success_hours: float = 0.0
    """Mean time to the report of a success."""
    failure_hours: float = 0.0

    def __post_init__(self) -> None:
        shares, hours = (self.success_share, self.failure_share), (self.success_hours, self.failure_hours)
        if not (all(0 <= share <= 1 for share in shares) and all(0 <= mean < np.inf for mean in hours)):
            raise InputError(f"shares of reports must lie in [0, 1] and mean delays be hours, 0 or more; found {self}")

    def reported_us(
        self, success: Float64Array, time_us: IntArray, end_us: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """When each outcome of the requests made at `time_us` was reported; -1 where it was not before `end_us`.

        All arrays [n]; Unix microseconds.
        """
        good = success >= 0.5
        share = np.where(good, self.success_share, self.failure_share)
        mean = np.where(good, self.success_hours, self.failure_hours) * _HOUR_US
        silent = rng.random(len(success)) >= share
        reported = time_us + np.floor(rng.exponential(1.0, len(success)) * mean).astype(np.int64)
        return np.where(silent | (reported > end_us), -1, reported)


REPORTING: dict[str, Reporting | None] = {
    "at-once": None,
    "late": Reporting(success_hours=12.0, failure_hours=1.0),
    "complaints": Reporting(success_share=0.0, failure_share=0.5, failure_hours=6.0),
}
"""Kinds by the name that the command line takes."""
