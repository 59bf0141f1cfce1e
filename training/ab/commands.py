"""What `router-ml ab` does: plain arguments in, a report printed."""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from router_ml.cli import bundle_folder, read_catalog, say, show
from router_ml.errors import InputError, RouterMlError
from router_ml.experiment import Unit
from router_ml.router import Router
from training.ab import control
from training.ab.control import StartSettings
from training.ab.desk_replay import replay_lines, replay_on_desk
from training.ab.live_report import (
    changed_lines,
    look_dict,
    look_lines,
    promoted_lines,
    rolled_back_lines,
    standing_lines,
    started_lines,
    stopped_lines,
    test_dict,
)
from training.ab.metrics import METRICS
from training.ab.page import reading_page
from training.ab.pictures import reading_figures
from training.ab.planning import Effect, plan_test
from training.ab.predictor import predictor_of
from training.ab.reading import read_test
from training.ab.report import plan_lines, reading_lines
from training.ab.requests import Requests, UnitKind, read_requests
from training.ab.trial import ReadSettings, Scope, Share
from training.ab.watch import open_logs, tests_to_watch
from training.ab.watch import watch as look_at
from training.appraise import EvaluateSettings
from training.atomic import fresh_file
from training.live_tests import version_reference
from training.plots import save_figure
from training.registry import RegistrySettings
from training.sources import REJECTS_SUFFIX

_LOG = logging.getLogger(__name__)


def read(args: argparse.Namespace) -> None:
    """`router-ml ab read`"""
    settings = replace(
        _judging(args),
        control=args.control,
        shares=tuple(map(share_of, args.share or ())),
        reference=args.reference,
    )
    requests = _requests(args)
    say("reading the test")
    reading = read_test(requests, settings)
    lines = reading_lines(reading)
    if args.html:
        with fresh_file(args.html) as scratch:
            Path(scratch).write_text(reading_page(reading, "A/B test"), encoding="utf-8")
        lines.append(f"page: {args.html}")
    if args.plots:
        args.plots.mkdir(parents=True, exist_ok=True)
        for name, figure in reading_figures(reading).items():
            save_figure(figure, args.plots / f"{name}.png")
        lines.append(f"pictures: {args.plots}")
    show(args, reading.to_dict(), lines)


def plan(args: argparse.Namespace) -> None:
    """`router-ml ab plan`"""
    effects = [effect_of(text) for text in args.effect or ()]
    share = number_of("--share", args.share, args.share)
    requests = _requests(args)
    say("planning")
    found = plan_test(requests, effects, share=share, arms=args.arms, scope=Scope(args.covariates))
    show(args, found.to_dict(), plan_lines(found))


def start(args: argparse.Namespace) -> None:
    """`router-ml ab start`"""
    wanted = StartSettings(
        challengers=tuple(args.challenger),
        share=args.share,
        ceiling=args.ceiling,
        unit=Unit(args.unit),
        segments=tuple(dict.fromkeys(args.segment)) if args.segment else None,
        name=args.name,
        is_shadow=args.shadow,
        reading=_judging(args),
    )
    test = control.start(wanted, _registered(args))
    show(args, test_dict(test), started_lines(test, args.router))


def status(args: argparse.Namespace) -> None:
    """`router-ml ab status`"""
    standing = control.status(_registered(args), ended=args.all)
    data = asdict(standing) | {"tests": [test_dict(test) for test in standing.tests]}
    show(args, data, standing_lines(standing))


def ramp(args: argparse.Namespace) -> None:
    """`router-ml ab ramp`"""
    test = control.ramp(args.test, args.share, args.ceiling, _registered(args))
    show(args, test_dict(test), changed_lines(test))


def stop(args: argparse.Namespace) -> None:
    """`router-ml ab stop`"""
    test = control.stop(args.test, args.reason, _registered(args))
    show(args, test_dict(test), stopped_lines(test))


def promote(args: argparse.Namespace) -> None:
    """`router-ml ab promote`"""
    done = control.promote(args.test, args.arm, _registered(args), force=args.force)
    show(args, asdict(done), promoted_lines(done))


def rollback(args: argparse.Namespace) -> None:
    """`router-ml ab rollback`"""
    done = control.roll_back(args.reason, _registered(args))
    show(args, asdict(done), rolled_back_lines(done))


def watch(args: argparse.Namespace) -> None:
    """`router-ml ab watch`"""
    while True:
        try:
            _watch_once(args)
        except RouterMlError as error:
            if args.every is None:
                raise
            # Tomorrow's look must not fail for what is away today.
            _LOG.warning("router-ml: %s; looking again in %g s", error, args.every)
        if args.every is None:
            return
        time.sleep(args.every)


def _watch_once(args: argparse.Namespace) -> None:
    settings = _registered(args)
    tests = tests_to_watch(args.test, settings, say)
    predictor = None if args.model is None else predictor_of(Router.load(bundle_folder(args.model)))
    with tempfile.TemporaryDirectory(prefix="router-ml-") as scratch:
        say("reading the logs")
        logs = open_logs(args.logs, Path(scratch), predictor, args.prompt_column)
        looks = look_at(tests, logs, settings, say)
    lines = [line for look in looks for line in ("", *look_lines(look))][1:]
    show(args, {"tests": [look_dict(look) for look in looks]}, lines)


def replay(args: argparse.Namespace) -> None:
    """`router-ml ab replay`"""
    catalog = read_catalog(args.catalog)
    champion, challenger = (
        Router.load(_version(reference, args.router), catalog=catalog) for reference in (args.champion, args.challenger)
    )
    settings = EvaluateSettings(prompt_column=args.prompt_column, all_rows=args.all_rows)
    with tempfile.TemporaryDirectory(prefix="router-ml-") as scratch:
        logs = open_logs(args.logs, Path(scratch))
        done = replay_on_desk(
            logs.tables, champion, challenger, days=args.days, settings=settings, scratch=Path(scratch), say=say
        )
    show(args, done.to_dict(), replay_lines(done))


def _version(text: str, model: str) -> Path:
    """A bundle folder, or whatever else names a version."""
    return Path(text) if Path(text).is_dir() else bundle_folder(version_reference(text, model))


def _registered(args: argparse.Namespace) -> RegistrySettings:
    return RegistrySettings(model_name=args.router)


def _judging(args: argparse.Namespace) -> ReadSettings:
    """What is to be fixed before a test begins."""
    defaults = ReadSettings()
    return ReadSettings(
        goals=tuple(args.goal or defaults.goals),
        guardrails=tuple(dict.fromkeys((*defaults.guardrails, *(args.guardrail or ())))),
        margins=dict(map(margin_of, args.margin or ())),
        horizon=None if args.horizon is None else time_of(args.horizon),
        settle_days=args.settle_days,
        scope=Scope(args.covariates),
        quality_target=args.quality_target,
    )


def _requests(args: argparse.Namespace) -> Requests:
    predictor = None
    if args.model is not None:
        predictor = predictor_of(Router.load(bundle_folder(args.model), catalog=read_catalog(args.catalog)))
    elif args.catalog is not None:
        raise InputError("--catalog goes with --model, whose costs it prices")
    say("reading the logs")
    with tempfile.TemporaryDirectory(prefix="router-ml-") as scratch:
        return read_requests(
            args.logs,
            unit=None if args.unit is None else UnitKind(args.unit),
            prompt_column=args.prompt_column,
            since=None if args.since is None else time_of(args.since),
            until=None if args.until is None else time_of(args.until),
            predictor=predictor,
            rejects=Path(scratch) / f"ab{REJECTS_SUFFIX}",
        )


def share_of(text: str) -> Share:
    """`challenger=10%` or `challenger=0.1@2026-11-20`; InputError says what was expected."""
    named, _, since = text.partition("@")
    arm, equals, share = named.rpartition("=")
    if not equals or not arm:
        raise InputError(f"--share must be ARM=SHARE or ARM=SHARE@TIME, such as challenger=10%; found {text!r}")
    value = number_of("--share", share, text)
    if not 0 < value < 1:
        raise InputError(f"--share must lie between 0 and 1 (or 0 % and 100 %), found {text!r}")
    return Share(arm, value, time_of(since) if since else None)


def margin_of(text: str) -> tuple[str, float]:
    """`success=1pt`, `cost_per_request=5%`."""
    name, value = _named("--margin", text)
    return name, value


def effect_of(text: str) -> Effect:
    """`success=1pt`, `cost_per_request=10%`."""
    name, value = _named("--effect", text)
    if value == 0:
        raise InputError(f"--effect must be above 0, found {text!r}")
    return Effect(name, value)


def _named(flag: str, text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    if not equals or name not in METRICS:
        raise InputError(
            f"{flag} must be METRIC=SIZE, such as success=1pt or cost_per_request=5%, found {text!r}; METRIC is one of "
            f"{', '.join(METRICS)}"
        )
    size = number_of(flag, value, text)
    if not 0 <= size < 1:
        raise InputError(f"{flag} must be at least 0 and below 1 (100 % or 100 points), found {text!r}")
    return name, size


def number_of(flag: str, value: str, text: str) -> float:
    """0.1, 10% and 10pt are the same."""
    value = value.strip()
    for ending in ("%", "pt"):
        if value.endswith(ending):
            return number_of(flag, value.removesuffix(ending), text) / 100
    try:
        return float(value)
    except ValueError:
        raise InputError(f"{flag} must end in a number, such as 0.1, 10% or 1pt; found {text!r}") from None


def time_of(text: str) -> datetime:
    """ISO 8601; without a zone it is UTC."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"a time must look like 2026-11-20 or 2026-11-20T08:00, found {text!r}") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
