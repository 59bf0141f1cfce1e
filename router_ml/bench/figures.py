"""What was measured: latencies, figures, the targets they are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PER_MILLE = (500, 900, 990, 999)


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles, microseconds."""

    p50: float
    p90: float
    p99: float
    p99_9: float

    @classmethod
    def of(cls, microseconds: Sequence[float] | NDArray[np.float64]) -> Latency:
        """Of one round: the least latency that so many of its calls, one at least, did not exceed."""
        ordered = np.sort(np.asarray(microseconds, dtype=np.float64))
        return cls(*(float(ordered[-(-ordered.size * share // 1000) - 1]) for share in _PER_MILLE))

    @classmethod
    def median(cls, rounds: Sequence[Latency]) -> Latency:
        """Each percentile's median over rounds."""
        return cls(*(median(getattr(each, name) for each in rounds) for name in cls.__slots__))


@dataclass(frozen=True, slots=True)
class Target:
    """A limit, and what was found."""

    what: str
    limit: float
    found: float
    unit: str = ""
    at_least: bool = False
    """Whether the limit is the least that will do, otherwise the most."""

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.found >= self.limit if self.at_least else self.found <= self.limit


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report; what does not apply is None."""

    name: str
    """Key for programs; stays the same between versions."""
    what: str
    """For a person."""
    latency: Latency | None = None
    per_second: float | None = None
    """Decisions answered a second."""
    cpu_us: float | None = None
    """User and system time of the process that decides, microseconds a decision."""
    beside: dict[str, float] = field(default_factory=dict)
    """Floors and other numbers that belong to it; the unit stands in the key."""
    targets: tuple[Target, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"targets": [asdict(target) | {"met": target.met} for target in self.targets]}
