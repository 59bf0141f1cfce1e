"""Options of `router-ml ab`; what they do is in `training.ab`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from router_ml.option_types import part, positive_int, seconds, share

METRICS = ("success", "cost_per_request", "cost_per_success", "latency_ms", "error_rate", "fallback_rate")

Run = Callable[[argparse.Namespace], None]


def add_ab_options(commands: Any, command: Callable[[str], Run], bundle_words: str) -> None:
    """The sub-commands; `command` gives what runs one."""
    read = _add(commands, "read", command("read"), "what a test says so far: verdict, differences, health")
    _add_logs(read, "outcome tables with an `arm` column, whoever ran the test", bundle_words)
    read.add_argument("--control", metavar="ARM", help="default: champion or control, whichever is there")
    read.add_argument(
        "--share",
        action="append",
        metavar="ARM=SHARE[@TIME]",
        help="share of the units that an arm should get, such as challenger=10%%, from TIME on where it was changed; "
        "may be repeated; the control gets the rest; not given: only that the split stays the same can be checked",
    )
    _add_judging(read)
    read.add_argument("--reference", metavar="ARM", help="arm that the promise is about; default: the control")
    read.add_argument("--html", "--out", type=Path, metavar="FILE", help="write the report as one HTML page")
    read.add_argument("--plots", type=Path, metavar="DIR", help="save the pictures there, as PNG")

    _add_plan(commands, command, bundle_words)
    _add_start(commands, command)
    _add_watch(commands, command, bundle_words)
    _add_changes(commands, command)
    _add_replay(commands, command, bundle_words)


def _add_plan(commands: Any, command: Callable[[str], Run], bundle_words: str) -> None:
    plan = _add(commands, "plan", command("plan"), "how long a test would take, from logs of last week's traffic")
    _add_logs(plan, "outcome tables; no `arm` is needed", bundle_words)
    plan.add_argument(
        "--effect",
        action="append",
        metavar="METRIC=SIZE",
        help="to be seen, such as success=1pt or cost_per_request=10%%; may be repeated",
    )
    plan.add_argument("--share", default="50%", metavar="S", help="of each challenger, 0.1 or 10%%; default 50%%")
    plan.add_argument("--arms", type=positive_int, default=2, metavar="N", help="with the control; default 2")


def _add_start(commands: Any, command: Callable[[str], Run]) -> None:
    start = _add(commands, "start", command("start"), "put one version or more beside the champion")
    start.add_argument(
        "--challenger",
        action="append",
        required=True,
        metavar="V",
        help="registered version: 12, its alias, or models:/router/12; repeated for more arms",
    )
    start.add_argument(
        "--share", type=part, required=True, metavar="S", help="of the units to each challenger, such as 10%%"
    )
    start.add_argument(
        "--unit", choices=("session", "tenant", "request"), default="session", help="what stays on its side; session"
    )
    start.add_argument(
        "--ceiling", type=part, metavar="S", help="largest share it may be ramped to; default: as much as is free"
    )
    start.add_argument("--segment", action="append", metavar="NAME", help="only these; may be repeated; default all")
    start.add_argument("--name", metavar="NAME", help="of the test; default: made of the versions, such as v12")
    start.add_argument("--shadow", action="store_true", help="the challenger decides beside the others, without effect")
    _add_judging(start)
    _add_covariates(start)
    _add_registered(start)


def _add_watch(commands: Any, command: Callable[[str], Run], bundle_words: str) -> None:
    watch = _add(commands, "watch", command("watch"), "look at the tests that run: verdicts, reports, guardrails")
    watch.add_argument("logs", nargs="+", type=Path, help="journals written by `serve`, or outcome tables")
    watch.add_argument("--test", action="append", metavar="NAME", help="may be repeated; default: all that run")
    watch.add_argument("--every", type=seconds, metavar="SECONDS", help="look again and again; default: once")
    watch.add_argument(
        "--model", metavar="BUNDLE", help=f"predict success and cost with it, to shrink the variance: {bundle_words}"
    )
    watch.add_argument("--prompt-column", default="prompt", metavar="NAME", help="column that holds the text")
    _add_registered(watch)


def _add_changes(commands: Any, command: Callable[[str], Run]) -> None:
    status = _add(commands, "status", command("status"), "which tests run, and what was last read of them")
    status.add_argument("--all", action="store_true", help="also those that have ended")
    ramp = _add(commands, "ramp", command("ramp"), "another share: takes units in, moves none between arms")
    ramp.add_argument("test", metavar="NAME")
    ramp.add_argument("--share", type=part, metavar="S", help="of the units to each challenger, such as 20%%")
    ramp.add_argument("--ceiling", type=part, metavar="S", help="another limit of later ramps")
    stop = _add(commands, "stop", command("stop"), "end a test; the champion decides again")
    stop.add_argument("test", metavar="NAME")
    promote = _add(commands, "promote", command("promote"), "make a challenger the champion, and end its test")
    promote.add_argument("test", metavar="NAME")
    promote.add_argument("--arm", metavar="ARM", help="which, where there are several")
    promote.add_argument("--force", action="store_true", help="also where the latest reading does not advise it")
    back = _add(commands, "rollback", command("rollback"), "make the champion before the champion again")
    for parser in (stop, back):
        parser.add_argument("--reason", default="by hand", metavar="WORDS", help="to be recorded")
    for parser in (status, ramp, stop, promote, back):
        _add_registered(parser)


def _add_replay(commands: Any, command: Callable[[str], Run], bundle_words: str) -> None:
    does = "the latest requests through two versions, on the desk: agreement, predicted saving, off-policy estimate"
    replay = _add(commands, "replay", command("replay"), does)
    replay.add_argument("logs", nargs="+", type=Path, help="journals written by `serve`, or outcome tables")
    replay.add_argument("--challenger", required=True, metavar="V", help=f"12, an alias, or {bundle_words}")
    replay.add_argument("--champion", default="champion", metavar="V", help="the same; default: the champion")
    replay.add_argument("--days", type=positive_int, default=7, metavar="N", help="default 7")
    replay.add_argument("--catalog", help="prices to use instead of the bundles'")
    replay.add_argument("--prompt-column", default="prompt", metavar="NAME", help="column that holds the text")
    replay.add_argument("--all-rows", action="store_true", help="judge also by rows that training may have seen")
    _add_registered(replay)


def _add_registered(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--router", default="router", metavar="NAME", help="registered model; default router")


def _add_judging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--goal",
        action="append",
        choices=METRICS,
        help="to be better in; may be repeated; default success and cost_per_request",
    )
    parser.add_argument(
        "--guardrail",
        action="append",
        choices=METRICS,
        help="not to be worse in, besides goals and error_rate; may be repeated; each makes the others a little wider",
    )
    parser.add_argument(
        "--margin",
        action="append",
        metavar="METRIC=SIZE",
        help="how much worse is still as good; default 1pt for shares, 5%% of the control's for cost and latency",
    )
    parser.add_argument(
        "--horizon", metavar="TIME", help="declared before the test: conclude once, then, with z-intervals"
    )
    parser.add_argument(
        "--settle-days", type=int, metavar="N", help="days until outcomes are in; default: from the logs"
    )
    parser.add_argument("--quality-target", type=share, metavar="Q", help="promised share of the reference's success")


def _add(commands: Any, name: str, run: Run, does: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=does, description=does[0].upper() + does[1:] + ".")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)
    return parser


def _add_logs(parser: argparse.ArgumentParser, words: str, bundle_words: str) -> None:
    parser.add_argument("logs", nargs="+", type=Path, help=words)
    parser.add_argument(
        "--since", metavar="TIME", help="leave out what came before, e.g. 2026-11-20 or 2026-11-20T08:00"
    )
    parser.add_argument("--until", metavar="TIME", help="leave out what came then or later")
    parser.add_argument(
        "--unit",
        choices=("session", "tenant", "request"),
        help="what was assigned to an arm; default: sessions where the logs have them",
    )
    parser.add_argument(
        "--model",
        metavar="BUNDLE",
        help=f"predict success and cost of every request with it, to shrink the variance: {bundle_words}",
    )
    parser.add_argument("--catalog", help="prices to use instead of the bundle's (with --model)")
    parser.add_argument("--prompt-column", default="prompt", metavar="NAME", help="column that holds the text")
    _add_covariates(parser)


def _add_covariates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--covariates",
        choices=("first-request", "every-request"),
        default="first-request",
        help="predictions of a unit's first request: always unbiased (default); or of all its requests: shrinks more, "
        "unbiased only where answers do not influence what is asked next, as in batch work",
    )
