"""What `router-ml ab` does: plain arguments in, a report printed."""

from __future__ import annotations

import argparse
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from router_ml.cli import bundle_folder, read_catalog, say, show
from router_ml.errors import InputError
from router_ml.router import Router
from training.ab.metrics import METRICS
from training.ab.page import reading_page
from training.ab.pictures import reading_figures
from training.ab.planning import Effect, plan_test
from training.ab.predictor import predictor_of
from training.ab.reading import read_test
from training.ab.report import plan_lines, reading_lines
from training.ab.requests import Requests, UnitKind, read_requests
from training.ab.trial import ReadSettings, Scope, Share
from training.atomic import fresh_file
from training.plots import save_figure
from training.sources import REJECTS_SUFFIX


def read(args: argparse.Namespace) -> None:
    """`router-ml ab read`"""
    defaults = ReadSettings()
    settings = ReadSettings(
        control=args.control,
        shares=tuple(map(share_of, args.share or ())),
        goals=tuple(args.goal or defaults.goals),
        guardrails=tuple(dict.fromkeys((*defaults.guardrails, *(args.guardrail or ())))),
        margins=dict(map(margin_of, args.margin or ())),
        horizon=None if args.horizon is None else time_of(args.horizon),
        settle_days=args.settle_days,
        scope=Scope(args.covariates),
        quality_target=args.quality_target,
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
