"""What each quality target takes: levels of both rules, fitted in training, stored in the bundle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from router_ml.types import Rule

DEFAULT_CONFIDENCE = 0.95
"""Of promised levels where no other is asked for."""


@dataclass(frozen=True, slots=True)
class OperatingPoints:
    """What each quality target costs in willingness to pay, fitted on data that nothing else saw."""

    quality_targets: tuple[float, ...]
    """Ascending shares in (0, 1] of the best single model's success."""
    willingness: tuple[float | None, ...]
    """Per target, the lambda of the `promise` rule in success probability per US dollar; None: not reached."""
    thresholds: tuple[float | None, ...]
    """Per target, the level of the `threshold` rule that keeps it; None: not reached."""
    default_target: float
    rule: Rule = Rule.PROMISE
    """The rule in force where a request does not give a level of its own."""
    confidence: float | None = None
    """Where given, the promised levels are in force, each of which keeps its target with this confidence; None:
    the levels in force reached their targets on the data that set them, and nothing is promised of other data."""
    promised_willingness: tuple[float | None, ...] = ()
    """Per target, the lambda that keeps it with `confidence` (`DEFAULT_CONFIDENCE` where that is None); None: cannot
    be promised. Empty: nothing was tested."""
    promised_thresholds: tuple[float | None, ...] = ()
    """Per target, the same for the level of the `threshold` rule."""

    def willingness_for(self, target: float) -> float | None:
        """Lambda in force of the smallest fitted target not below `target`; None when it was not reached."""
        return self._at(target, self.willingness if self.confidence is None else self.promised_willingness)

    def threshold_for(self, target: float) -> float | None:
        """Threshold in force of the smallest fitted target not below `target`; None when it was not reached."""
        return self._at(target, self.thresholds if self.confidence is None else self.promised_thresholds)

    def plug_in(self) -> OperatingPoints:
        """The same with the levels in force that reached their targets on the data that set them."""
        return replace(self, confidence=None)

    def promised(self) -> OperatingPoints:
        """The same with the promised levels in force."""
        return replace(self, confidence=DEFAULT_CONFIDENCE if self.confidence is None else self.confidence)

    def _at(self, target: float, values: tuple[float | None, ...]) -> float | None:
        for k, fitted in enumerate(self.quality_targets):
            if fitted >= target - 1e-9:
                return values[k] if values else None
        return None

    def to_dict(self) -> dict[str, Any]:
        return {
            "quality_targets": list(self.quality_targets),
            "willingness": list(self.willingness),
            "thresholds": list(self.thresholds),
            "default_target": self.default_target,
            "rule": str(self.rule),
            "confidence": self.confidence,
            "promised_willingness": list(self.promised_willingness),
            "promised_thresholds": list(self.promised_thresholds),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> OperatingPoints:
        """The inverse of `to_dict`; KeyError, TypeError or ValueError where a field is missing or no such thing."""
        return cls(
            tuple(data["quality_targets"]),
            tuple(data["willingness"]),
            tuple(data["thresholds"]),
            data["default_target"],
            Rule(data["rule"]),
            data["confidence"],
            tuple(data["promised_willingness"]),
            tuple(data["promised_thresholds"]),
        )
