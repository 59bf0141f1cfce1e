"""A decision in words and as plain data."""

from __future__ import annotations

import math
from typing import Any

from router_ml.types import Candidate, Decision, Reason

_WORDS = {
    Reason.BEST_VALUE: "the best success for its cost at the quality target",
    Reason.CHEAPEST_CLEARING: "the cheapest offer whose success probability clears the level",
    Reason.NONE_CLEARS: "no offer clears the level; this one is most likely to succeed",
    Reason.ONLY_ELIGIBLE: "the constraints leave no other offer",
    Reason.TARGET_UNREACHABLE: "no operating point reached the quality target; highest quality instead",
    Reason.EXPLORED: "left to chance, to learn from its outcome what the policy does not see",
    Reason.ROUTER_UNAVAILABLE: "the client's default, since the router did not decide",
}


def decision_dict(decision: Decision) -> dict[str, Any]:
    """Plain JSON types."""
    return decision._asdict() | {"candidates": [candidate._asdict() for candidate in decision.candidates]}


def decision_lines(decision: Decision) -> list[str]:
    """The chosen offer, why, and how each candidate was weighed."""
    why = "; ".join(_WORDS[reason] for reason in decision.reasons)
    target = "" if decision.quality_target is None else f" (quality target {100 * decision.quality_target:g}%)"
    if not decision.candidates:  # a default decision: nothing was weighed
        return [f"{decision.offer}: {why}"]
    width = max(len(candidate.offer) for candidate in decision.candidates)
    head = f"  {'offer':<{width}}  success  cost per 1,000  output tokens"
    rank = {offer: place for place, offer in enumerate((decision.offer, *decision.fallbacks))}
    rows = sorted(decision.candidates, key=lambda candidate: rank.get(candidate.offer, len(rank)))
    version = f"version {decision.version}" + (f" (arm {decision.arm})" if decision.arm else "")
    return [
        f"{decision.offer}: {why}{target}",
        head,
        *(_row(candidate, width, decision.offer) for candidate in rows),
        f"{version}, decision {decision.decision_id}, propensity {decision.propensity:g}",
    ]


def _row(candidate: Candidate, width: int, chosen: str) -> str:
    success = "unknown" if math.isnan(candidate.p_success) else f"{candidate.p_success:.1%}"
    cost = "unknown" if candidate.cost_usd is None else f"${1000 * candidate.cost_usd:.3f}"
    tokens = "unknown" if candidate.output_tokens is None else f"{candidate.output_tokens:.0f}"
    mark = ">" if candidate.offer == chosen else " "
    note = f"  {candidate.rejected}" if candidate.rejected else ""
    return f"{mark} {candidate.offer:<{width}}  {success:>7}  {cost:>14}  {tokens:>13}{note}"
