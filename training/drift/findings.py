"""What was found, in numbers and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from training.drift.nights import DriftState


class Kind(StrEnum):
    """What may have changed."""

    PROMPTS = "prompts"
    SEGMENTS = "segments"
    SUCCESS = "success"
    """Success less the champion's probability of it, by model."""
    PRICE = "price"
    """Logged cost over cost at catalog prices, by model."""
    OUTPUT_LENGTH = "output length"
    """Output tokens over those that the champion expects, by model."""
    ERRORS = "error rate"
    """By model."""
    LABELS = "label rate"
    """Share of answered calls whose success is known."""
    MISSING = "missing values"
    """Share of answered calls without a value, by column."""
    MODEL_PRESENCE = "model new or gone"
    SEGMENT_PRESENCE = "segment new or gone"


FACTORS = (Kind.PRICE, Kind.OUTPUT_LENGTH)
"""Kinds whose size is a factor; of the others it is a difference, and of prompts a probability."""

LAST_NIGHT, TRAINING = "last night", "training"


@dataclass(frozen=True, slots=True)
class DriftSettings:
    """How many false alarms are borne, and what is too small to matter. A change below its floor never alarms."""

    false_alarms: float = 0.01
    """Probability, on a night on which nothing has changed, of any alarm at all."""
    prompts: float = 0.55
    """How often the one of two sessions that is from tonight is told by its prompts; .5 is a guess."""
    segments: float = 0.03
    """Change of a segment's share of sessions."""
    success: float = 0.03
    """Change of a model's success where the champion expects none."""
    price: float = 1.05
    """Factor, up or down."""
    output_length: float = 1.10
    """Factor, up or down."""
    errors: float = 0.02
    """Change of a share of calls."""
    labels: float = 0.05
    """Change of a share of calls."""
    missing: float = 0.02
    """Change of a share of calls."""
    presence: float = 0.01
    """Share of the requests that a new model or segment has, or a gone one had."""
    seed: int = 0
    """Of what is drawn in the test of prompts and segments."""

    def floor(self, kind: Kind) -> float:
        """Of that kind."""
        names = {
            Kind.OUTPUT_LENGTH: "output_length",
            Kind.ERRORS: "errors",
            Kind.LABELS: "labels",
            Kind.MISSING: "missing",
            Kind.MODEL_PRESENCE: "presence",
            Kind.SEGMENT_PRESENCE: "presence",
        }
        return float(getattr(self, names.get(kind, kind.value)))


@dataclass(frozen=True, slots=True)
class Finding:
    """One test of one change."""

    kind: Kind
    subject: str
    """Model, segment or column; empty where all requests are meant."""
    since: str
    """`last night` or `training`."""
    size: float
    """How much has changed: a factor of price and output length, of prompts the probability to tell tonight's, else
    a difference of shares."""
    low: float | None
    """95 % interval of `size`; None where there is none."""
    high: float | None
    before: float | None
    """The figure of the reference, e.g. its mean success less what the champion expects; None for prompts."""
    now: float | None
    floor: float
    """Below it a change does not matter."""
    p_value: float
    """Of no change, before any correction for the number of tests."""
    n_rows: int
    """Rows of tonight that it rests on."""
    nights: int = 1
    """Nights up to tonight that it rests on."""
    beyond_noise: bool = False
    """Whether it is significant among all tests of the night."""
    alarm: bool = False
    """Beyond noise, and large enough to matter."""
    words: str = ""
    """One sentence: what has changed, and what to do."""

    @property
    def matters(self) -> bool:
        """Whether the size reaches the floor."""
        if self.kind in FACTORS:
            return max(self.size, 1 / self.size) >= self.floor
        return abs(self.size) >= self.floor


@dataclass(frozen=True, slots=True)
class DriftReport:
    """All tests of one night."""

    night: str
    false_alarms: float
    """Bound of the probability of any alarm on a night without change."""
    findings: tuple[Finding, ...]
    """One per kind, subject and reference."""
    n_tests: dict[str, int]
    """By reference, `last night` and `training`."""
    notes: tuple[str, ...]
    """What could not be tested, and why."""
    state: DriftState
    """For the next night."""

    @property
    def alarms(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.alarm)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the state."""
        return {
            "night": self.night,
            "false_alarms": self.false_alarms,
            "n_tests": self.n_tests,
            "alarms": len(self.alarms),
            "findings": [asdict(finding) for finding in self.findings],
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """For a person: alarms, then what is beyond noise and too small to matter, then what this rests on."""
        small = [finding for finding in self.findings if finding.beyond_noise and not finding.alarm]
        lines = [f"drift: {finding.words}" for finding in self.alarms]
        lines += [f"no drift that matters: {finding.words}" for finding in small]
        if not lines:
            lines = ["no drift beyond noise"]
        tests = " and ".join(f"{count} since {since}" for since, count in self.n_tests.items())
        lines.append(
            f"{tests or 'no'} tests; on a night without change any of them alarms with probability "
            f"{self.false_alarms:.2g} at most"
        )
        return lines + list(self.notes)
