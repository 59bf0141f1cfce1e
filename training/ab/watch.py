"""A look at the tests that run: reads the logs, leaves the report in the tests' runs, lets guardrails act."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from router_ml.errors import InputError
from router_ml.segments import is_segment
from training import registry
from training.ab.control import halt
from training.ab.daily import arm_points, difference_points
from training.ab.page import reading_page
from training.ab.pictures import reading_figures
from training.ab.reading import Reading, read_test
from training.ab.recorded import arm_in_table, settings_of
from training.ab.report import basis_line, reading_lines, verdict_lines
from training.ab.requests import Predictor, Requests, UnitKind, read_requests
from training.ab.shadow_report import ShadowReport, report_shadow, shadow_lines
from training.ingest import ingest_journal
from training.live_tests import LiveTest, ReadVerdict
from training.registry import LookReport, RegistrySettings
from training.sources import REJECTS_SUFFIX


@dataclass(frozen=True, slots=True)
class Logs:
    """What is looked at."""

    tables: tuple[Path, ...]
    """Outcome tables; that of a journal is the first."""
    journal: tuple[Path, ...]
    """Empty where no journal was given: then shadows cannot be told of."""
    scratch: Path
    predictor: Predictor | None = None
    prompt_column: str = "prompt"


@dataclass(frozen=True, slots=True)
class Look:
    """What was found of one test."""

    test: LiveTest
    """After the look."""
    reading: Reading | None = None
    shadow: ShadowReport | None = None
    trouble: str | None = None
    """Why there is nothing to read yet."""
    halted: str | None = None
    """What the guardrail saw in this look."""


def open_logs(
    paths: Sequence[Path], scratch: Path, predictor: Predictor | None = None, prompt_column: str = "prompt"
) -> Logs:
    """Outcome tables as they are, and journals joined into one below `scratch`."""
    journal = tuple(path for path in paths if is_journal(path))
    tables = [path for path in paths if path not in journal]
    if journal:
        tables.insert(0, ingest_journal(journal, scratch / "joined").table)
    return Logs(tuple(tables), journal, scratch, predictor, prompt_column)


def is_journal(path: Path) -> bool:
    """Whether a file or folder was written by `serve --journal`, by the names of its segments."""
    names = (entry.name for entry in path.iterdir()) if path.is_dir() else (path.name,)
    return any(map(is_segment, names))


def tests_to_watch(
    names: Sequence[str] | None, settings: RegistrySettings, say: Callable[[str], None]
) -> tuple[LiveTest, ...]:
    """Those named, also ended ones, whose outcomes may still come; else all that run. InputError where none does."""
    if names:
        return tuple(registry.live_test(name, settings, ended=True) for name in names)
    unreadable: list[str] = []
    running = registry.live_tests(settings, unreadable=unreadable)
    for trouble in unreadable:  # whose guardrails nobody can hold; servers give it no traffic either
        say(trouble)
    if not running:
        raise InputError(f"no test of model `{settings.model_name}` runs; start one: router-ml ab start")
    return running


def watch(tests: Sequence[LiveTest], logs: Logs, settings: RegistrySettings, say: Callable[[str], None]) -> list[Look]:
    """Look once at each test; InputError where the logs or MLflow cannot be read."""
    by_unit: dict[UnitKind, Requests] = {}
    looks = []
    for test in tests:
        say(f"reading test {test.name}")
        if test.is_shadow:
            looks.append(_shadow(test, logs, settings))
            continue
        unit = UnitKind(test.unit)
        if unit not in by_unit:
            by_unit[unit] = read_requests(
                logs.tables,
                unit=unit,
                prompt_column=logs.prompt_column,
                predictor=logs.predictor,
                rejects=logs.scratch / f"watch{REJECTS_SUFFIX}",
            )
        looks.append(_test(test, by_unit[unit], settings))
    return looks


def _test(test: LiveTest, everything: Requests, settings: RegistrySettings) -> Look:
    try:
        requests = everything.of_arms([arm_in_table(test, arm.name) for arm in test.arms])
        missing = [arm.name for i, arm in enumerate(test.arms) if not (requests.arm == i).any()]
        if missing:
            raise InputError(f"no request of {', '.join(missing)} yet")
        reading = read_test(requests, settings_of(test))
    except InputError as error:
        return Look(test, trouble=f"nothing to read yet: {error}")
    now = datetime.now(UTC)
    name_of = {arm_in_table(test, arm.name): arm.name for arm in test.arms}
    verdicts = {
        name_of[each.arm]: ReadVerdict(str(each.verdict.action), each.verdict.is_harm, each.verdict.reason, now)
        for each in reading.challengers
    }
    points = [
        point for each in reading.challengers for point in difference_points(each, reading, requests, name_of[each.arm])
    ]
    by_arm = arm_points(requests, reading.settle_days)
    report = LookReport(
        points=points,
        arms={name_of[arm]: found for arm, found in by_arm.items()},
        figures={f"{name}.png": figure for name, figure in reading_figures(reading).items()},
        texts={
            "report.html": reading_page(reading, f"A/B test {test.name}"),
            "report.txt": "\n".join(reading_lines(reading)) + "\n",
            "reading.json": json.dumps(reading.to_dict(), indent=1, default=str),
        },
        verdicts=verdicts,
        note=_note(reading),
    )
    harm = "; ".join(f"{arm}: {verdict.reason}" for arm, verdict in verdicts.items() if verdict.is_harm)
    # The guardrail first: a report that cannot be written must not keep it from acting.
    halted = bool(harm) and test.ended is None and test.share > 0
    if halted:
        test = halt(test, f"guardrail, {harm}", settings)
    registry.log_report(test, report, settings)
    return Look(replace(test, verdicts=verdicts), reading=reading, halted=harm if halted else None)


def _note(reading: Reading) -> str:
    """Markdown."""
    lines = [f"- {line.strip()}" for each in reading.challengers for line in verdict_lines(each)]
    lines += [f"- {finding.weight}: {finding.kind}: {finding.words}" for finding in reading.findings]
    return "\n".join([*lines, "", basis_line(reading), "", "The whole report: `report.html` among the artifacts."])


def _shadow(test: LiveTest, logs: Logs, settings: RegistrySettings) -> Look:
    if not logs.journal:
        return Look(test, trouble="what a shadow decides stands in the journal alone; give its folder")
    try:
        found = report_shadow(test.name, logs.journal, logs.tables[0])
    except InputError as error:
        return Look(test, trouble=f"nothing to read yet: {error}")
    lines = shadow_lines(found)
    report = LookReport(
        points=found.points(),
        note="\n".join(f"- {line.strip()}" for line in lines[:3]),
        texts={
            "report.txt": "\n".join(lines) + "\n",
            "reading.json": json.dumps(found.to_dict(), indent=1, default=str),
        },
    )
    registry.log_report(test, report, settings)
    return Look(test, shadow=found)
