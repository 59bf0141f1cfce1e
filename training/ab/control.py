"""Starts, ramps, ends tests of versions: state in MLflow, which followers bring to the servers within seconds."""

from __future__ import annotations

import secrets
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from router_ml.bundle import verify
from router_ml.errors import GateError, InputError
from router_ml.experiment import Unit
from training import registry
from training.ab.recorded import recorded
from training.ab.trial import ReadSettings
from training.ab.verdict import Action
from training.live_tests import (
    CONTROL,
    Ending,
    LiveTest,
    ShareChange,
    VersionArm,
    check_ramp,
    name_for,
    place,
    version_reference,
)
from training.registry import CHAMPION, PREVIOUS, RegistrySettings

STOPPED, PROMOTED, ROLLED_BACK = "stopped", "promoted", "rolled back"


@dataclass(frozen=True, slots=True)
class StartSettings:
    """A test to be started."""

    challengers: tuple[str, ...]
    """References: `12`, `v12`, `challenger`, `models:/router/12`."""
    share: float
    """Of the units, to each challenger; the control gets as many."""
    ceiling: float | None = None
    """None: as much as there is room for."""
    unit: Unit = Unit.SESSION
    segments: tuple[str, ...] | None = None
    name: str | None = None
    """None: made of the versions."""
    is_shadow: bool = False
    reading: ReadSettings = field(default_factory=ReadSettings)


def start(wanted: StartSettings, settings: RegistrySettings) -> LiveTest:
    """Start a test or a shadow; InputError where a version, the name or the room is missing."""
    champion = registry.champion_number(settings)
    if champion is None:
        raise InputError(
            f"model `{settings.model_name}` has no champion to test against; "
            "train one, or name it: router-ml train LOGS --alias champion"
        )
    numbers = [_challenger(text, champion, settings) for text in wanted.challengers]
    if len(set(numbers)) < len(numbers):
        raise InputError("--challenger names the same version twice")
    if wanted.is_shadow and len(numbers) != 1:
        raise InputError("--shadow takes one --challenger; start a shadow for each")
    if wanted.is_shadow and wanted.ceiling is not None:
        raise InputError("--ceiling is for tests that take traffic; a shadow may be ramped to all of it")
    before = registry.live_tests(settings, ended=True)
    running = [test for test in before if test.ended is None]
    challengers = [VersionArm(f"v{number}", number) for number in numbers]
    name = name_for(wanted.name, numbers, [test.name for test in before])
    begin, ceiling, arms = 0.0, 1.0, (*challengers,)
    if not wanted.is_shadow:
        arms = (VersionArm(CONTROL, champion), *challengers)
        begin, ceiling = place(len(arms), wanted.share, wanted.ceiling, wanted.unit, wanted.segments, running)
    salts = [test.layer_salt for test in running if not test.is_shadow]
    test = LiveTest(
        name=name,
        is_shadow=wanted.is_shadow,
        unit=wanted.unit,
        segments=wanted.segments,
        salt=secrets.token_hex(8),
        # A new layer where none is in use, so that not always the same units are experimented on.
        layer_salt=salts[0] if salts else secrets.token_hex(8),
        start=begin,
        arms=arms,
        changes=(ShareChange(wanted.share, ceiling, _now(), "started"),),
        reading=recorded(wanted.reading),
    )
    return _alone(registry.begin_test(test, settings), settings)


def ramp(name: str, share: float | None, ceiling: float | None, settings: RegistrySettings) -> LiveTest:
    """Another share, or other room to grow; units only come in, or leave, and never change arms."""
    test = registry.live_test(name, settings)
    if share is None and ceiling is None:
        raise InputError("give --share, --ceiling or both")
    if test.is_shadow and ceiling is not None:
        raise InputError(f"`{name}` is a shadow, which needs no room: leave out --ceiling")
    to = test.share if share is None else share
    keeps = test.ceiling if ceiling is None else ceiling
    check_ramp(test, to, keeps, registry.live_tests(settings))
    return registry.change_share(test, ShareChange(to, keeps, _now(), "ramped"), settings)


def halt(test: LiveTest, reason: str, settings: RegistrySettings) -> LiveTest:
    """What a guardrail does: share 0; no alias moves, and outcomes that come later can still be read."""
    return registry.change_share(test, ShareChange(0.0, test.ceiling, _now(), reason), settings)


def stop(name: str, reason: str, settings: RegistrySettings) -> LiveTest:
    """End a test; the champion gets its traffic back."""
    test = registry.live_test(name, settings)
    return registry.end_test(test, Ending(STOPPED, reason, _now()), settings)


@dataclass(frozen=True, slots=True)
class Promotion:
    """A version became the champion."""

    test: LiveTest
    version: int
    instead_of: int


def promote(name: str, arm: str | None, settings: RegistrySettings, *, force: bool = False) -> Promotion:
    """Make a challenger the champion, keep the one before as `previous`, and end its test.

    GateError where the latest reading does not advise it, unless `force`, or where the champion is not the control any
    more. Doing it again after a kill completes it.
    """
    test = registry.live_test(name, settings)
    if test.is_shadow:
        raise InputError(f"`{name}` is a shadow: it shows what a version would do, not what comes of it; start a test")
    chosen = _chosen(test, arm)
    verdict = test.verdicts.get(chosen.name)
    if not force and (verdict is None or verdict.action != Action.PROMOTE):
        found = "it has not been read: router-ml ab watch" if verdict is None else f"{verdict.action}: {verdict.reason}"
        raise GateError(
            f"test `{name}` does not advise to promote {chosen.name} ({found}); --force does it all the same"
        )
    control = test.arms[0].version
    registry.promote(chosen.version, control, settings)
    now = _now()
    told = "by hand, against or before the verdict" if force else verdict.reason if verdict else ""
    tags = {"promoted_by_test": name, "promoted_at": now.isoformat(), "promoted_instead_of": str(control)}
    registry.tag_version(chosen.version, tags | {"promoted_because": told}, settings)
    ended = registry.end_test(test, Ending(PROMOTED, f"{chosen.name}, {told}", now), settings)
    return Promotion(ended, chosen.version, control)


@dataclass(frozen=True, slots=True)
class Rollback:
    """The champion before is the champion again."""

    withdrawn: int
    champion: int
    stopped: tuple[str, ...]
    """Tests in which the withdrawn version had a part."""
    unreadable: tuple[str, ...] = ()
    """Tests that run and may have a part of it too: why nobody can tell. Servers give them no traffic."""


def roll_back(reason: str, settings: RegistrySettings) -> Rollback:
    """Back to `previous`. Tests with the withdrawn version are stopped, or it would go on deciding in them."""
    withdrawn, champion = registry.roll_back(settings)
    now = _now()
    stopped, unreadable = [], list[str]()
    for test in registry.live_tests(settings, unreadable=unreadable):
        if any(arm.version == withdrawn for arm in test.arms):
            why = f"version {withdrawn} was rolled back: {reason}"
            registry.end_test(test, Ending(ROLLED_BACK, why, now), settings)
            stopped.append(test.name)
    registry.tag_version(withdrawn, {"rolled_back_at": now.isoformat(), "rolled_back_because": reason}, settings)
    return Rollback(withdrawn, champion, tuple(stopped), tuple(unreadable))


@dataclass(frozen=True, slots=True)
class Standing:
    """All that `ab status` tells."""

    model: str
    champion: int | None
    previous: int | None
    tests: tuple[LiveTest, ...]
    unreadable: tuple[str, ...] = ()
    """Tests whose state was changed by hand, each with what is wrong; servers give them no traffic."""


def status(settings: RegistrySettings, *, ended: bool = False) -> Standing:
    """As MLflow has it."""
    named = registry.aliases(settings)
    unreadable: list[str] = []
    tests = registry.live_tests(settings, ended=ended, unreadable=unreadable)
    return Standing(settings.model_name, named.get(CHAMPION), named.get(PREVIOUS), tests, tuple(unreadable))


def _challenger(text: str, champion: int, settings: RegistrySettings) -> int:
    """Its number; looked at whole, so that a test does not start with a version that no server could open."""
    reference = version_reference(text, settings.model_name)
    version = registry.look_up(reference, settings)
    if version.name != settings.model_name:
        raise InputError(f"--challenger {text}: the test is of model `{settings.model_name}`; give --router too")
    if version.version == champion:
        raise InputError(f"--challenger {text}: version {champion} is the champion itself")
    with tempfile.TemporaryDirectory(prefix="router-ml-") as scratch:
        verify(registry.resolve(f"models:/{version.name}/{version.version}", settings, Path(scratch)))
    return version.version


def _alone(test: LiveTest, settings: RegistrySettings) -> LiveTest:
    """The test, unless someone else has started one meanwhile that it collides with; then it is withdrawn."""
    others = [other for other in registry.live_tests(settings) if other.run_id != test.run_id]
    try:
        if any(other.name == test.name for other in others):
            raise InputError(f"test `{test.name}` was started by someone else at the same time")
        if not test.is_shadow:
            tests = [other for other in others if not other.is_shadow]
            if any(other.layer_salt != test.layer_salt for other in tests):
                raise InputError("another test was started at the same time")
            check_ramp(test, test.share, test.ceiling, tests)
    except InputError as error:
        registry.end_test(test, Ending(STOPPED, f"withdrawn, {error}", _now()), settings)
        raise InputError(f"{error}; start it again, under another name") from None
    return test


def _chosen(test: LiveTest, arm: str | None) -> VersionArm:
    """The challenger to promote."""
    by_name = {each.name: each for each in test.challengers}
    if arm is None and len(by_name) == 1:
        return test.challengers[0]
    if arm is None or arm not in by_name:
        raise InputError(f"--arm must name the challenger to promote, one of {', '.join(by_name)}")
    return by_name[arm]


def _now() -> datetime:
    return datetime.now(UTC)
