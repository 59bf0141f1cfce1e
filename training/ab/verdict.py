"""What to do with a challenger: promote, stop, keep running, or that nobody can tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from training.ab.health import Finding, Weight

FARTHEST_DAYS = 90.0
"""What would take longer to see is called not to be told."""


class Action(StrEnum):
    """What the figures advise."""

    PROMOTE = "promote"
    STOP = "stop"
    KEEP_RUNNING = "keep running"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True, slots=True)
class Judged:
    """A deciding metric: the challenger's gain over the control, positive is better, in the metric's unit."""

    words: str
    low: float | None
    """Of the interval; None where too little is known."""
    high: float | None
    margin: float
    """How much worse is still as good; 0 or more."""
    is_goal: bool
    days_to_margin: float | None
    """Until a difference of the margin could be told; None: unknown."""

    @property
    def is_better(self) -> bool:
        return self.low is not None and self.low > 0

    @property
    def is_harm(self) -> bool:
        """Worse by more than the margin."""
        return self.high is not None and self.high < -self.margin

    @property
    def is_safe(self) -> bool:
        """Not worse by more than the margin."""
        return self.low is not None and self.low > -self.margin

    @property
    def is_hopeless(self) -> bool:
        """Not better by more than the margin."""
        return self.high is not None and self.high < self.margin


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one challenger."""

    action: Action
    is_harm: bool
    """Whether figures show harm, what a guardrail acts on: also where the verdict is withheld."""
    reason: str


def judge(
    metrics: Sequence[Judged], findings: Sequence[Finding], *, never_seen: Mapping[str, str], is_due: bool = True
) -> Verdict:
    """The verdict by the deciding metrics.

    Promote: better in a goal, not worse in any metric by more than its margin. Stop: worse in one by more than its
    margin, or not better in any goal by more than its margin. Every statement is read off intervals that hold together,
    so a wrong one has at most their joint chance, at any look. `never_seen`: metric without figures and why.
    `is_due`: False before the horizon of a fixed-horizon test, when only harm is acted upon.
    """
    withheld = [finding.kind for finding in findings if finding.weight is Weight.WITHHOLDS]
    harm = [m.words for m in metrics if m.is_harm]
    if withheld:
        words = f"the test cannot be trusted: {', '.join(dict.fromkeys(withheld))}"
        if harm:
            words += f"; as they stand its figures show harm in {_and(harm)}, so stopping is on the safe side"
        return Verdict(Action.CANNOT_TELL, bool(harm), words)
    if harm:
        return Verdict(Action.STOP, True, f"worse in {_and(harm)} by more than the margin")
    if not is_due:
        return Verdict(Action.KEEP_RUNNING, False, "the horizon that was declared has not come")
    goals = [m for m in metrics if m.is_goal]
    better = [m.words for m in goals if m.is_better]
    unsafe = [m for m in metrics if not m.is_safe]
    if better and not unsafe:
        others = [m.words for m in metrics if not m.is_better]
        kept = f", and no worse in {_and(others)} beyond the margin" if others else ""
        return Verdict(Action.PROMOTE, False, f"better in {_and(better)}{kept}")
    if goals and all(m.is_hopeless for m in goals):
        return Verdict(
            Action.STOP, False, f"no gain worth having: {_and([m.words for m in goals])} differ by less than the margin"
        )
    if never_seen:
        return Verdict(Action.CANNOT_TELL, False, "; ".join(f"{name}: {why}" for name, why in never_seen.items()))
    so_far = f"better in {_and(better)} so far" if better else "nothing shown so far"
    waiting = unsafe or goals
    names = _and([m.words for m in waiting])
    days = [m.days_to_margin for m in waiting if m.days_to_margin is not None]
    if len(days) < len(waiting):
        return Verdict(Action.KEEP_RUNNING, False, f"{so_far}; too few units yet to say anything of {names}")
    if max(days) > FARTHEST_DAYS:
        remedy = "give the challenger a larger share, widen the margin, or stop"
        wait = "years" if max(days) > 1000 else f"{max(days):,.0f} more days"
        return Verdict(
            Action.CANNOT_TELL, False, f"{so_far}; to tell {names} to the margin would take {wait}: {remedy}"
        )
    wait = "within a day" if max(days) < 1 else f"in about {max(days):,.0f} more days"
    return Verdict(Action.KEEP_RUNNING, False, f"{so_far}; {names} can be told to the margin {wait}")


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
