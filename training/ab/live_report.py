"""Tests under way in words, and for a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from training.ab.control import Promotion, Rollback, Standing
from training.ab.report import reading_lines
from training.ab.shadow_report import shadow_lines
from training.ab.watch import Look
from training.live_tests import LiveTest, percent
from training.text_table import table

_WITHIN = "servers that follow the champion take it up within seconds"


def started_lines(test: LiveTest, model: str) -> list[str]:
    """What runs from now on."""
    if test.is_shadow:
        looks = f"version {test.arms[0].version} looks on at {percent(test.share)} of the {test.unit}s, without effect"
        return [f"shadow {test.name}: {looks}; {_WITHIN}", f"see: router-ml ab watch JOURNAL --test {test.name}"]
    arms = ", ".join(f"{arm.name} (version {arm.version})" for arm in test.arms)
    return [
        f"test {test.name} of model {model}: {arms}, each with {percent(test.share)} of the {test.unit}s; "
        f"may be ramped to {percent(test.ceiling)}; {_WITHIN}",
        f"look at it: router-ml ab watch JOURNAL --test {test.name}",
    ]


def changed_lines(test: LiveTest) -> list[str]:
    """After a ramp."""
    if test.is_shadow:
        return [f"shadow {test.name}: {percent(test.share)} of the {test.unit}s; {_WITHIN}"]
    share, most = percent(test.share), percent(test.ceiling)
    return [f"test {test.name}: {share} of the {test.unit}s to each arm, up to {most}; {_WITHIN}"]


def stopped_lines(test: LiveTest) -> list[str]:
    """After a stop."""
    return [f"{test.name} has ended; the champion decides what it took. {_WITHIN.capitalize()}"]


def promoted_lines(done: Promotion) -> list[str]:
    """After a promotion."""
    return [
        f"version {done.version} is the champion, {done.instead_of} is kept as previous; test {done.test.name} has "
        f"ended; {_WITHIN}",
        "back again: router-ml ab rollback",
    ]


def rolled_back_lines(done: Rollback) -> list[str]:
    """After a rollback."""
    lines = [f"version {done.champion} is the champion again, {done.withdrawn} is withdrawn; {_WITHIN}"]
    if done.stopped:
        lines.append(f"stopped, since version {done.withdrawn} had a part in them: {', '.join(done.stopped)}")
    return [*lines, *_unreadable_lines(done.unreadable)]


def standing_lines(standing: Standing) -> list[str]:
    """What `ab status` prints."""
    champion = "no champion" if standing.champion is None else f"champion: version {standing.champion}"
    previous = "" if standing.previous is None else f", previous: {standing.previous}"
    lines = [f"model {standing.model}; {champion}{previous}"]
    lines += _unreadable_lines(standing.unreadable)
    if not standing.tests:
        return [*lines, "no other test runs" if standing.unreadable else "no test runs"]
    rows: list[tuple[str, ...]] = [("", "state", "share", "up to", "unit", "segments", "arms", "since (UTC)")]
    for test in standing.tests:
        rows.append(
            (
                f"{test.name} (shadow)" if test.is_shadow else test.name,
                test.state,
                percent(test.share),
                "" if test.is_shadow else percent(test.ceiling),
                str(test.unit),
                "all" if test.segments is None else ", ".join(test.segments),
                ", ".join(f"{arm.name}={arm.version}" for arm in test.arms),
                f"{test.changes[0].at:%Y-%m-%d %H:%M}",
            )
        )
    lines += table(rows)
    for test in standing.tests:
        if test.ended is not None:
            lines.append(f"{test.name}: {test.ended.how} on {test.ended.at:%Y-%m-%d %H:%M}: {test.ended.reason}")
        elif test.share == 0:
            lines.append(f"{test.name}: halted: {test.changes[-1].reason}")
        lines += [
            f"{test.name}: {arm}: {verdict.action.upper()}; {verdict.reason} (read {verdict.at:%Y-%m-%d %H:%M})"
            for arm, verdict in test.verdicts.items()
        ]
    return lines


def _unreadable_lines(unreadable: Sequence[str]) -> list[str]:
    return [f"NOT READABLE, takes no traffic: {each}" for each in unreadable]


def look_lines(look: Look) -> list[str]:
    """What `ab watch` prints of one test."""
    if look.shadow is not None:
        return shadow_lines(look.shadow)
    lines = [f"test {look.test.name}, {look.test.state}"]
    if look.halted is not None:
        lines.append(f"GUARDRAIL: share set to 0, no alias was moved: {look.halted}")
    if look.trouble is not None or look.reading is None:
        return [*lines, f"  {look.trouble}"]
    return [*lines, *reading_lines(look.reading)]


def test_dict(test: LiveTest) -> dict[str, Any]:
    """Plain but for times."""
    return asdict(test) | {"state": test.state, "share": test.share, "ceiling": test.ceiling}


def look_dict(look: Look) -> dict[str, Any]:
    """Plain but for times."""
    return {
        "test": test_dict(look.test),
        "reading": None if look.reading is None else look.reading.to_dict(),
        "shadow": None if look.shadow is None else look.shadow.to_dict(),
        "trouble": look.trouble,
        "halted": look.halted,
    }
