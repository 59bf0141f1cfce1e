"""A gate: one figure held against one limit, in words, with what to do where it says no."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate and what it found."""

    name: str
    passed: bool
    figure: float | None
    """What was found; None: could not be known."""
    limit: float | None
    """What it was held against; None: no single number."""
    words: str
    """The figure in words."""
    advice: str = ""
    """What to do where it failed."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def line(self) -> str:
        """For a person."""
        said = f"{'passed' if self.passed else 'FAILED'}  {self.name}: {self.words}"
        return said if self.passed else f"{said}. {self.advice}"


def refusal(gates: Sequence[Gate]) -> str:
    """Which gates said no; empty where none did."""
    return ", ".join(gate.name for gate in gates if not gate.passed)
