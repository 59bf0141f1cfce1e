"""Which side of an A/B test a request falls on: a salted hash of its unit, the same on every server, in any language.

Pure, no I/O. docs/ab.md gives the algorithm for backends in other languages, tests/contract/assignment.json what must
come out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from router_ml.types import Request


class Unit(StrEnum):
    """What is put on one side of a test as a whole."""

    SESSION = "session"
    TENANT = "tenant"
    REQUEST = "request"


def position(salt: str, unit_id: str) -> float:
    """Where a unit lies in [0, 1): the first 53 bits of the SHA-256 of salt, U+001F and id in UTF-8, as a fraction.

    Uniform over units, and independent between salts.
    """
    digest = hashlib.sha256(f"{salt}\x1f{unit_id}".encode(errors="replace")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


@dataclass(frozen=True, slots=True)
class Population:
    """The requests that a test may take."""

    name: str
    salt: str
    unit: Unit
    segments: tuple[str, ...] | None
    """None: all, those of no segment included."""
    share: float
    """Of the units of these requests, in [0, 1]; of a test with arms what each arm gets."""

    def unit_id(self, request: Request, decision_id: str) -> str | None:
        """The unit of a request; None where it has none, or is of another segment."""
        if self.segments is not None and request.segment not in self.segments:
            return None
        if self.unit is Unit.SESSION:
            return request.session_id or None
        return (request.tenant if self.unit is Unit.TENANT else decision_id) or None


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a test."""

    name: str
    version: str
    """Name of its bundle's folder."""


@dataclass(frozen=True, slots=True)
class Experiment(Population):
    """An A/B test of versions."""

    start: float
    """Where its stretch of the layer begins, in [0, 1)."""
    arms: tuple[Arm, ...]
    """Two or more; the order counts."""

    @property
    def end(self) -> float:
        """Where the stretch ends; a ramp moves this alone, so it only takes units in."""
        return self.start + len(self.arms) * self.share

    def arm_of(self, layer_salt: str, unit_id: str) -> int | None:
        """Number of the arm of a unit; None: it is not in the test."""
        if not self.start <= position(layer_salt, unit_id) < self.end:
            return None
        return int(position(self.salt, unit_id) * len(self.arms))


@dataclass(frozen=True, slots=True)
class Shadow(Population):
    """A version that decides beside the others on a share of traffic, without effect."""

    version: str
    """Name of its bundle's folder."""

    def takes(self, request: Request, decision_id: str) -> bool:
        """Whether it decides on this request too."""
        unit_id = self.unit_id(request, decision_id)
        return unit_id is not None and position(self.salt, unit_id) < self.share
