"""What each quality target takes: levels of both rules, fitted in training, stored in the bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from router_ml.types import Rule


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

    def willingness_for(self, target: float) -> float | None:
        """Lambda of the smallest fitted target not below `target`; None when none was reached."""
        return self._at(target, self.willingness)

    def threshold_for(self, target: float) -> float | None:
        """Threshold of the smallest fitted target not below `target`; None when none was reached."""
        return self._at(target, self.thresholds)

    def _at(self, target: float, values: tuple[float | None, ...]) -> float | None:
        for fitted, value in zip(self.quality_targets, values, strict=True):
            if fitted >= target - 1e-9:
                return value
        return None

    def to_dict(self) -> dict[str, Any]:
        return {
            "quality_targets": list(self.quality_targets),
            "willingness": list(self.willingness),
            "thresholds": list(self.thresholds),
            "default_target": self.default_target,
            "rule": str(self.rule),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> OperatingPoints:
        return cls(
            tuple(data["quality_targets"]),
            tuple(data["willingness"]),
            tuple(data["thresholds"]),
            data["default_target"],
            Rule(data["rule"]),
        )
