"""How a test is to be read, as it was fixed when the test began."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from training.ab.trial import ReadSettings, Scope, Share
from training.live_tests import CONTROL, LiveTest


def recorded(settings: ReadSettings) -> dict[str, Any]:
    """Plain JSON types; arms and their shares follow from the test itself."""
    return {
        "goals": list(settings.goals),
        "guardrails": list(settings.guardrails),
        "margins": settings.margins,
        "alpha": settings.alpha,
        "horizon": None if settings.horizon is None else settings.horizon.isoformat(),
        "settle_days": settings.settle_days,
        "scope": str(settings.scope),
        "quality_target": settings.quality_target,
    }


def settings_of(test: LiveTest) -> ReadSettings:
    """For the table, whose arms are `<test>/<arm>`.

    Each arm gets the same share of the units that are in the test, and a ramp does not change that: it takes units
    into all arms alike. So the split to be expected is one and the same over the whole test.
    """
    given = dict(test.reading)
    horizon = given.pop("horizon")
    each = 1 / len(test.arms)
    return ReadSettings(
        control=arm_in_table(test, CONTROL),
        shares=tuple(Share(arm_in_table(test, arm.name), each) for arm in test.challengers),
        goals=tuple(given.pop("goals")),
        guardrails=tuple(given.pop("guardrails")),
        horizon=None if horizon is None else datetime.fromisoformat(horizon),
        scope=Scope(given.pop("scope")),
        **given,
    )


def arm_in_table(test: LiveTest, arm: str) -> str:
    """What journal and outcome table call it."""
    return f"{test.name}/{arm}"
