"""The `--explore...` options of `router-ml serve`, and the exploration that they ask for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from router_ml.errors import InputError
from router_ml.option_types import multiple, proportion, ratio

if TYPE_CHECKING:
    from router_ml.exploration import Exploration

_DETAILS = ("rule", "cost_multiple", "floor", "salt")


def add_explore_options(parser: argparse.ArgumentParser) -> None:
    """How much is left to chance, and where."""
    parser.add_argument(
        "--explore",
        type=proportion,
        metavar="SHARE",
        help="leave this share of decisions, such as 5%%, to chance among safe offers, to learn from; default none",
    )
    parser.add_argument(
        "--explore-rule",
        choices=("epsilon", "thompson"),
        help="epsilon: evenly (default); thompson: where the version is least sure which model is best",
    )
    parser.add_argument(
        "--explore-cost-multiple",
        type=multiple,
        metavar="X",
        help="never try what costs more than X times the choice of the policy; default 2",
    )
    parser.add_argument(
        "--explore-floor",
        type=ratio,
        metavar="P",
        help="never try what is less likely to succeed than this; default 0.5",
    )
    parser.add_argument("--explore-salt", metavar="TEXT", help="of the draws; default: the hash of the bundle")


def exploration_of(args: argparse.Namespace) -> Exploration | None:
    """What the options ask for; None: nothing is left to chance."""
    given = {name: getattr(args, f"explore_{name}") for name in _DETAILS}
    details = {name: value for name, value in given.items() if value is not None}
    if args.explore is None:
        if details:
            option = f"--explore-{next(iter(details)).replace('_', '-')}"
            raise InputError(f"{option} says how to explore; say how much as well, such as --explore 5%")
        return None
    from router_ml.exploration import Exploration, ExplorationRule

    if "rule" in details:
        details["rule"] = ExplorationRule(details["rule"])
    return Exploration(args.explore, **details)
