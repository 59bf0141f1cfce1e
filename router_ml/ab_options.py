"""Options of `router-ml ab`; what they do is in `training.ab`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from router_ml.option_types import positive_int, share

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
    read.add_argument(
        "--goal",
        action="append",
        choices=METRICS,
        help="to be better in; may be repeated; default success and cost_per_request",
    )
    read.add_argument(
        "--guardrail",
        action="append",
        choices=METRICS,
        help="not to be worse in, besides goals and error_rate; may be repeated; each makes the others a little wider",
    )
    read.add_argument(
        "--margin",
        action="append",
        metavar="METRIC=SIZE",
        help="how much worse is still as good; default 1pt for shares, 5%% of the control's for cost and latency",
    )
    read.add_argument(
        "--horizon", metavar="TIME", help="declared before the test: conclude once, then, with z-intervals"
    )
    read.add_argument("--settle-days", type=int, metavar="N", help="days until outcomes are in; default: from the logs")
    read.add_argument("--quality-target", type=share, metavar="Q", help="promised share of the reference's success")
    read.add_argument("--reference", metavar="ARM", help="arm that the promise is about; default: the control")
    read.add_argument("--html", "--out", type=Path, metavar="FILE", help="write the report as one HTML page")
    read.add_argument("--plots", type=Path, metavar="DIR", help="save the pictures there, as PNG")

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
    parser.add_argument(
        "--covariates",
        choices=("first-request", "every-request"),
        default="first-request",
        help="predictions of a unit's first request: always unbiased (default); or of all its requests: shrinks more, "
        "unbiased only where answers do not influence what is asked next, as in batch work",
    )
