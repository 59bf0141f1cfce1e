"""The options of `router-ml bench`, and the measurement that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from router_ml.errors import InputError
from router_ml.option_types import positive_int, seconds

if TYPE_CHECKING:
    from router_ml.bench.run import Report, Say


def add_bench_options(parser: argparse.ArgumentParser, bundle_help: str) -> None:
    """What to measure, how long."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model", metavar="BUNDLE", help=f"measure servers started for it, with {bundle_help}")
    where.add_argument(
        "--server", metavar="ADDRESS", help="measure a running server; it is loaded beyond what it can answer"
    )
    parser.add_argument("--tokens", type=positive_int, default=128, metavar="N", help="of a prompt; default 128")
    parser.add_argument("--clients", type=positive_int, default=8, metavar="N", help="default 8")
    parser.add_argument(
        "--rate", type=positive_int, default=1000, metavar="N", help="calls a second in the open loop; default 1000"
    )
    parser.add_argument("--rounds", type=positive_int, metavar="N", help="default 5")
    parser.add_argument("--seconds", type=seconds, metavar="S", help="length of a round over gRPC; default 2")
    parser.add_argument("--quick", action="store_true", help="one short round of everything: shows that it works")
    parser.add_argument(
        "--serve-option",
        action="append",
        metavar="OPTION",
        help="further option for `serve`, e.g. --serve-option=--catalog=today.yaml; may be repeated",
    )


def run_bench(args: argparse.Namespace, bundle_folder: Callable[[str], Path], say: Say) -> Report:
    """Measure; InputError where the options contradict each other."""
    from router_ml.bench.run import BenchSettings, bench_bundle, bench_server

    if args.serve_option and args.server:
        raise InputError("--serve-option goes with --model; a running server has options of its own")
    length = {"rounds": 1, "seconds": 0.1, "calls": 40} if args.quick else {}
    asked = {name: getattr(args, name) for name in ("rounds", "seconds") if getattr(args, name) is not None}
    settings = BenchSettings(
        tokens=args.tokens,
        clients=args.clients,
        per_second=args.rate,
        serve_options=tuple(args.serve_option or ()),
        **(length | asked),
    )
    if args.server:
        return bench_server(args.server, settings, say)
    return bench_bundle(bundle_folder(args.model), settings, say)
