"""A/B tests and shadows under way: what is fixed when one starts, what changes, where it lies in the layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from router_ml.errors import InputError
from router_ml.experiment import Unit
from router_ml.traffic import is_name

CONTROL = "control"
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class VersionArm:
    """One side of a test."""

    name: str
    version: int
    """Number in the registry."""


@dataclass(frozen=True, slots=True)
class ShareChange:
    """From a time on, the share of the units that each challenger gets, and so does the control."""

    share: float
    ceiling: float
    """What it may be ramped to: so much of the layer is kept free for it."""
    at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Ending:
    """How a test ended."""

    how: str
    """`stopped`, `promoted` or `rolled back`."""
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class ReadVerdict:
    """What the latest reading advised for a challenger."""

    action: str
    is_harm: bool
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class LiveTest:
    """A test of versions, or a shadow: one version that looks on."""

    name: str
    is_shadow: bool
    unit: Unit
    segments: tuple[str, ...] | None
    """None: all."""
    salt: str
    layer_salt: str
    """Shared by all tests that run at once."""
    start: float
    """Where its stretch of the layer begins, in [0, 1); 0 for a shadow, which is in none."""
    arms: tuple[VersionArm, ...]
    """The control first; of a shadow its one version."""
    changes: tuple[ShareChange, ...]
    """Of the share, oldest first; at least one."""
    reading: Mapping[str, Any] = field(default_factory=dict)
    """How it is to be read, fixed at the start: plain JSON types."""
    verdicts: Mapping[str, ReadVerdict] = field(default_factory=dict)
    """Challenger -> verdict of the latest reading."""
    ended: Ending | None = None
    run_id: str = ""

    @property
    def share(self) -> float:
        return self.changes[-1].share

    @property
    def ceiling(self) -> float:
        return self.changes[-1].ceiling

    @property
    def end(self) -> float:
        """Where the stretch that is kept free for it ends."""
        return self.start + len(self.arms) * self.ceiling

    @property
    def challengers(self) -> tuple[VersionArm, ...]:
        return self.arms if self.is_shadow else self.arms[1:]

    @property
    def state(self) -> str:
        """`running`, `halted` (share 0), or how it ended."""
        if self.ended is not None:
            return self.ended.how
        return "running" if self.share > 0 else "halted"


def percent(share: float) -> str:
    """A share as people write it."""
    return f"{100 * share:.4g}%"


def name_for(given: str | None, challengers: Sequence[int], taken: Sequence[str]) -> str:
    """The name given, checked, or one made of the versions; InputError where it is wrong or was used before.

    Names are never used twice: rows of the journal are told apart by them.
    """
    if given is not None:
        if not is_name(given):
            raise InputError(f"--name must be up to 30 letters, digits, `.`, `_` and `-`, found {given!r}")
        if given in taken:
            raise InputError(f"--name: there is or was a test `{given}`, whose rows the journal holds; take another")
        return given
    made = "-".join(f"v{number}" for number in challengers)[:24]
    names = [made, *(f"{made}-{k}" for k in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


def place(
    n_arms: int,
    share: float,
    ceiling: float | None,
    unit: Unit,
    segments: tuple[str, ...] | None,
    running: Sequence[LiveTest],
) -> tuple[float, float]:
    """Start and ceiling in the layer beside the tests that run; InputError where there is no room."""
    most = 1 / n_arms
    if share > most + _EPSILON:
        arms = f"{n_arms} arms, the control among them"
        raise InputError(f"--share {percent(share)}: {arms}, get at most {percent(most)} each")
    if ceiling is not None and not share - _EPSILON <= ceiling <= most + _EPSILON:
        limits = f"between the share, {percent(share)}, and {percent(most)}"
        raise InputError(f"--ceiling must lie {limits}, found {percent(ceiling)}")
    beside = [test for test in running if not test.is_shadow and _meet(segments, test.segments)]
    for test in beside:
        if test.unit is not unit:
            raise InputError(
                f"--unit {unit}: test `{test.name}` takes the same segments by {test.unit}, so the two cannot be kept "
                f"apart; use --unit {test.unit}, or --segment"
            )
    free = _gaps(beside)
    need = n_arms * (share if ceiling is None else ceiling)
    fitting = [gap for gap in free if gap[1] - gap[0] >= need - _EPSILON]
    if not fitting:
        largest = max((end - start for start, end in free), default=0.0)
        asked = f"{n_arms} arms of up to {percent(need / n_arms)} need {percent(need)} of the {unit}s in one stretch"
        raise InputError(
            f"no room in the layer: {asked}, {percent(largest)} are free beside {_taken(beside)}; stop one of them, "
            "lower what one keeps free (`ab ramp NAME --ceiling`), lower --ceiling or --share here, or give segments "
            "of their own (--segment)"
        )
    if ceiling is not None:
        return fitting[0][0], ceiling
    start, end = max(fitting, key=lambda gap: gap[1] - gap[0])
    return start, min(most, (end - start) / n_arms)


def check_ramp(test: LiveTest, share: float, ceiling: float, running: Sequence[LiveTest]) -> None:
    """InputError where the test cannot have so much."""
    if test.is_shadow:
        return
    most = 1 / len(test.arms)
    if ceiling > most + _EPSILON:
        raise InputError(f"--ceiling: {len(test.arms)} arms get at most {percent(most)} each, found {percent(ceiling)}")
    if share > ceiling + _EPSILON:
        raise InputError(
            f"--share {percent(share)} is above what test `{test.name}` keeps free, {percent(ceiling)}; raise it with "
            "--ceiling, where there is room"
        )
    end = test.start + len(test.arms) * ceiling
    for other in running:
        if other.name == test.name or other.is_shadow or not _meet(test.segments, other.segments):
            continue
        if max(test.start, other.start) < min(end, other.end) - _EPSILON:
            raise InputError(f"--ceiling {percent(ceiling)}: no room in the layer beside {_taken([other])}")
    if end > 1 + _EPSILON:
        raise InputError(
            f"--ceiling {percent(ceiling)}: no room in the layer, the test begins at {test.start:.4g} of it; at most "
            f"{percent((1 - test.start) / len(test.arms))}"
        )


_NUMBERED = re.compile(r"v?(\d+)")


def version_reference(text: str, model: str) -> str:
    """`12`, `v12`, `challenger` and `models:/router/12` as a reference of the registry."""
    if text.startswith("models:/"):
        return text
    numbered = _NUMBERED.fullmatch(text)
    return f"models:/{model}/{numbered[1]}" if numbered else f"models:/{model}@{text.removeprefix('@')}"


def _meet(one: tuple[str, ...] | None, other: tuple[str, ...] | None) -> bool:
    return one is None or other is None or bool(set(one) & set(other))


def _gaps(tests: Sequence[LiveTest]) -> list[tuple[float, float]]:
    """What of [0, 1) no test keeps."""
    gaps, reached = [], 0.0
    for start, end in sorted((test.start, test.end) for test in tests):
        if start > reached + _EPSILON:
            gaps.append((reached, start))
        reached = max(reached, end)
    if reached < 1 - _EPSILON:
        gaps.append((reached, 1.0))
    return gaps


def _taken(tests: Sequence[LiveTest]) -> str:
    return " and ".join(f"`{test.name}` (which keeps {percent(len(test.arms) * test.ceiling)})" for test in tests)
