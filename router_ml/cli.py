"""The command line: parses, hands over, prints. Training is imported only by the commands that need it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from router_ml.catalog import Catalog
from router_ml.errors import InputError, RouterMlError
from router_ml.option_types import confidence, day, dollars, hours, positive, positive_int, share

_DESCRIPTION = """\
Learns from your own logs which model is likely to succeed on which prompt, and tells any backend
the cheapest one that is.

  see it work:      router-ml demo
  with your logs:   router-ml train logs/ --catalog catalog.yaml --out bundle
                    router-ml evaluate logs/ --model bundle
                    router-ml serve --model bundle
"""

_BUNDLE = "a bundle folder, or a registered version such as models:/router@champion or models:/router/3"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 done, 1 the work failed or a gate said no, 2 wrong use."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except InputError as error:
        return _fail(error, 2)
    except RouterMlError as error:
        return _fail(error, 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    return 0


def _fail(error: Exception, status: int) -> int:
    print(f"router-ml: {error}", file=sys.stderr)
    return status


# -- what a command prints -----------------------------------------------------------------------


def say(line: str) -> None:
    """Progress, on a terminal only."""
    if sys.stderr.isatty():
        print(f"… {line}", file=sys.stderr, flush=True)


def show(args: argparse.Namespace, data: dict[str, Any], lines: Sequence[str]) -> None:
    """A report: for a program with --json, otherwise for a person."""
    print(json.dumps(data, indent=1, default=str) if args.json else "\n".join(lines), flush=True)


# -- serving -------------------------------------------------------------------------------------


def _serve(args: argparse.Namespace) -> None:
    # By default gRPC also logs words of its clients, such as the reason that one gives for going away.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before gRPC is loaded
    from router_ml import serve_command

    serve_command.run(args, bundle_folder)


def _route(args: argparse.Namespace) -> None:
    fields = {
        "segment": args.segment,
        "quality_target": args.quality_target,
        "max_cost_usd": args.max_cost_usd,
        "max_output_tokens": args.max_output_tokens,
        "allowed_models": args.allow or (),
        "denied_models": args.deny or (),
        "allowed_regions": args.region or (),
        "required_capabilities": args.capability or (),
    }
    # What is not UTF-8 becomes U+FFFD, as it would in a model's own tokenizer.
    text = sys.stdin.buffer.read().decode(errors="replace") if args.text == "-" else args.text
    access = {name: getattr(args, name) for name in ("tls_ca", "tls_cert", "tls_key", "token_file")}
    if args.server:
        if args.catalog:
            raise InputError("--catalog goes with --model; a server has a catalog of its own")
        from router_ml.client import RouterClient

        with RouterClient(args.server, timeout_s=5.0, **access) as client:
            decision = client.route(text, **fields)
    else:
        if any(access.values()):
            raise InputError("--tls-ca, --tls-cert, --tls-key and --token-file go with --server")
        from router_ml.router import Router

        router = Router.load(bundle_folder(args.model), catalog=read_catalog(args.catalog))
        _warn_of_unjudged(router.policy.unjudged_offers)
        decision = router.route(text, **fields)
    from router_ml.explain import decision_dict, decision_lines

    show(args, decision_dict(decision), decision_lines(decision))


def _bench(args: argparse.Namespace) -> None:
    from router_ml.bench.options import run_bench
    from router_ml.bench.report import report_dict, report_lines

    report = run_bench(args, bundle_folder, say)
    show(args, report_dict(report), report_lines(report))


def _warn_of_unjudged(offers: Sequence[str]) -> None:
    if offers:
        print(
            f"router-ml: never chosen, since the bundle cannot judge their models: {', '.join(offers)}", file=sys.stderr
        )


def bundle_folder(reference: str) -> Path:
    """The folder behind a bundle reference; a registered version is looked up in MLflow."""
    if not reference.startswith("models:/"):
        return Path(reference)
    registry = _training("registry")
    return Path(registry.resolve(reference, registry.RegistrySettings()))


def read_catalog(path: str | None) -> Catalog | None:
    return Catalog.load(path) if path else None


def _training(module: str) -> Any:
    """A module of the training package, which the serving install does without."""
    import importlib

    try:
        return importlib.import_module(f"training.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("router_ml", "training"):
            raise
        raise InputError(
            f"this command needs the training packages, and `{error.name}` is not installed: "
            "pip install 'router-ml[training]'"
        ) from None


def _command(name: str, module: str = "commands") -> Callable[[argparse.Namespace], None]:
    """A command of `training.commands` or another module, imported when it runs."""
    return lambda args: getattr(_training(module), name)(args)


# -- options -------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="router-ml", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"router-ml {metadata.version('router-ml')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_simulate(commands)
    _add_ingest(commands)
    _add_train(commands)
    _add_predict(commands)
    _add_evaluate(commands)
    _add_export(commands)
    _add_benchmark(commands)
    _add_nightly(commands)
    _add_serve(commands)
    _add_route(commands)
    _add_ab(commands)
    _add_bench(commands)
    return parser


def _add(commands: Any, name: str, run: Callable[[argparse.Namespace], None], does: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=does, description=does[0].upper() + does[1:] + ".")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)
    return parser


def _add_demo(commands: Any) -> None:
    parser = _add(commands, "demo", _command("demo"), "the whole loop on simulated logs: train, register, serve, route")
    parser.add_argument("--requests-per-day", type=positive_int, default=3000, metavar="N", help="default 3000")
    parser.add_argument("--seed", type=int, default=7, help="of the simulated world; default 7")


def _add_simulate(commands: Any) -> None:
    parser = _add(
        commands, "simulate", _command("simulate"), "write production-like logs of a world whose truth is known"
    )
    parser.add_argument("--out", type=Path, required=True, help="file ending in .parquet")
    parser.add_argument("--days", type=positive_int, default=21, help="default 21")
    parser.add_argument("--requests-per-day", type=positive_int, default=1000, metavar="N", help="default 1000")
    parser.add_argument("--seed", type=int, default=7, help="default 7")
    parser.add_argument("--catalog", help="models and prices; default: eight real models at list prices")
    parser.add_argument("--full-information", action="store_true", help="every model answers every prompt")
    parser.add_argument("--drift", action="store_true", help="half-way a model gets worse and prompts get harder")
    parser.add_argument(
        "--price-change", action="store_true", help="after two thirds the dearest model halves its price"
    )
    parser.add_argument("--outage", action="store_true", help="after a third the ablest model fails for six hours")
    parser.add_argument("--new-model", action="store_true", help="one model appears after two thirds of the days")
    parser.add_argument(
        "--reporting",
        choices=("at-once", "late", "complaints"),
        default="at-once",
        help="late: failures are reported after an hour, successes after half a day on average; complaints: one "
        "failure in two is reported, and nothing else; default at-once: all",
    )
    parser.add_argument("--truth", type=Path, metavar="FILE", help="also write true success and cost, as Parquet")


def _add_ingest(commands: Any) -> None:
    parser = _add(commands, "ingest", _command("ingest"), "turn logs of a known format into outcome tables")
    parser.add_argument("source", nargs="+", type=Path, help="files or folders")
    parser.add_argument("--format", choices=("journal", "outcomes"), required=True, help="journal: written by `serve`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the outcome tables")
    parser.add_argument("--prompt-column", default="prompt", metavar="NAME", help="column that holds the text")


def _add_train(commands: Any) -> None:
    parser = _add(commands, "train", _command("train"), "outcome tables to a registered version with its evaluation")
    parser.add_argument("logs", nargs="+", type=Path, help="Parquet, JSONL (also .gz) or CSV, files or folders")
    parser.add_argument(
        "--catalog", help="models, offers and prices (YAML or JSON); default: derived from logged costs"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the bundle there too")
    _add_version_options(parser)
    parser.add_argument(
        "--confidence",
        type=confidence,
        metavar="C",
        help="keep quality targets with this confidence, such as 0.95, at some cost; default: targets are reached on "
        "the rows that set them, nothing is promised of others",
    )
    parser.add_argument(
        "--split",
        choices=("auto", "own", "time", "random"),
        default="auto",
        help="held out: what the logs' own `split` column says, the newest rows, or random prompts; "
        "auto: the first that applies",
    )
    parser.add_argument(
        "--alias",
        choices=("champion", "challenger", "none"),
        help="alias of the new version; default: champion if there is none yet, otherwise challenger",
    )
    parser.add_argument("--no-register", action="store_true", help="only write --out, leave MLflow alone")


def _add_version_options(parser: argparse.ArgumentParser) -> None:
    """What `train` and `nightly` can both be told of a version."""
    parser.add_argument(
        "--prompt-column", default="prompt", metavar="NAME", help="column that holds the text to route on"
    )
    parser.add_argument("--quality-target", type=share, default=0.97, metavar="Q", help="default of the version; 0.97")
    parser.add_argument("--rule", choices=("promise", "threshold"), default="promise", help="how offers are chosen")
    parser.add_argument(
        "--encoder",
        metavar="NAME",
        help="sentence-transformers model or folder, default all-MiniLM-L6-v2; or a bundle whose encoder is used "
        "again, as logs of a journal without text need",
    )
    parser.add_argument(
        "--encoder-kind",
        choices=("static", "transformer"),
        default="static",
        help="static: distilled, microseconds (default); transformer: the model itself, milliseconds",
    )
    parser.add_argument(
        "--unreported",
        action="append",
        default=[],
        metavar="[SEGMENT=]MEANING",
        help="what a row without a reported outcome stands for: success, failure, or unknown (default); with SEGMENT= "
        "for one segment alone; may be repeated",
    )
    parser.add_argument(
        "--label-delay",
        type=hours,
        metavar="HOURS",
        help="how long outcomes take to be reported: younger rows are left out; default: as `reported_at` tells",
    )
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--name", default="router", help="registered model; default router")


def _add_nightly(commands: Any) -> None:
    parser = _add(
        commands, "nightly", _command("nightly"), "journal and logs to a promoted or refused version, unattended"
    )
    parser.add_argument("--journal", type=Path, metavar="DIR", help="written by `serve`; its closed segments are taken")
    parser.add_argument("--logs", nargs="+", type=Path, default=[], metavar="FILE", help="outcome tables beside it")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="state and reports of the job")
    parser.add_argument("--catalog", help="models, offers and prices; default: derived from logged costs")
    parser.add_argument(
        "--days", type=positive_int, default=28, metavar="N", help="of history to learn from; default 28"
    )
    parser.add_argument(
        "--leave-out-day",
        action="append",
        type=day,
        metavar="DATE",
        help="rows of this day (UTC) are not used; may be repeated",
    )
    _add_version_options(parser)
    parser.add_argument(
        "--confidence",
        type=confidence,
        metavar="C",
        help="of the gates, default 0.95; where given, quality targets are kept with it too, as in `train`",
    )
    parser.add_argument(
        "--latency-budget-us", type=positive, default=1000.0, metavar="N", help="median of a decision; default 1000"
    )


def _add_predict(commands: Any) -> None:
    parser = _add(commands, "predict", _command("predict"), "estimates of every model for a file of prompts")
    parser.add_argument("prompts", nargs="+", type=Path, help="files or folders with a column of prompts")
    parser.add_argument("--model", required=True, metavar="BUNDLE", help=_BUNDLE)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="Parquet file to write")
    parser.add_argument("--quality-target", type=share, metavar="Q", help="default: the version's own")
    parser.add_argument("--catalog", help="prices to use instead of the bundle's")
    parser.add_argument("--prompt-column", default="prompt", metavar="NAME", help="column that holds the text")


def _add_evaluate(commands: Any) -> None:
    parser = _add(
        commands, "evaluate", _command("evaluate"), "a version on outcome tables: curves, baselines, calibration"
    )
    parser.add_argument("logs", nargs="+", type=Path, help="outcome tables, files or folders")
    parser.add_argument("--model", required=True, metavar="BUNDLE", help=_BUNDLE)
    parser.add_argument("--catalog", help="prices to use instead of the bundle's")
    parser.add_argument("--prompt-column", default="prompt", metavar="NAME", help="column that holds the text")
    parser.add_argument(
        "--all-rows", action="store_true", help="also rows that training may have seen: too good to be true"
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="save the curve and calibration pictures there")


def _add_export(commands: Any) -> None:
    parser = _add(
        commands, "export", _command("export"), "logged requests and a version's choices, for other tools to judge"
    )
    parser.add_argument("logs", nargs="+", type=Path, help="outcome tables with propensities, files or folders")
    parser.add_argument("--model", required=True, metavar="BUNDLE", help=_BUNDLE)
    parser.add_argument(
        "--format",
        choices=("obp", "dsjson"),
        required=True,
        help="obp: dictionary of Open Bandit Pipeline, as .npz; dsjson: lines for Vowpal Wabbit",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    parser.add_argument(
        "--reward", choices=("success", "cost_usd", "latency_ms"), default="success", help="default success"
    )
    parser.add_argument("--catalog", help="prices to use instead of the bundle's")
    parser.add_argument("--prompt-column", default="prompt", metavar="NAME", help="column that holds the text")
    parser.add_argument("--all-rows", action="store_true", help="also rows that training may have seen")


def _add_benchmark(commands: Any) -> None:
    parser = _add(commands, "benchmark", _command("benchmark"), "our router and the baselines, with intervals")
    parser.add_argument(
        "tables", nargs="*", type=Path, help="outcome tables with several models' answers to each prompt"
    )
    parser.add_argument(
        "--prompt-column",
        action="append",
        metavar="NAME",
        help="column that holds the text; may be repeated: the first that a table has is taken; default prompt",
    )
    parser.add_argument("--splits", type=positive_int, default=5, metavar="N", help="random splits; default 5")
    parser.add_argument("--no-simulated", action="store_true", help="leave out the simulated table")
    parser.add_argument(
        "--studies",
        action="append",
        choices=("little-data", "promise", "stability", "speed"),
        help="beside the contest; may be repeated; default all",
    )
    parser.add_argument("--no-studies", action="store_true", help="the contest alone")
    parser.add_argument("--jobs", type=positive_int, default=os.cpu_count() or 1, metavar="N", help="default: cores")
    parser.add_argument(
        "--out", type=Path, default=Path("mlruns/benchmark"), metavar="DIR", help="default mlruns/benchmark"
    )
    parser.add_argument("--no-register", action="store_true", help="leave MLflow alone")


def _add_serve(commands: Any) -> None:
    parser = _add(commands, "serve", _serve, "the gRPC service")
    from router_ml.serve_options import add_serve_options

    add_serve_options(parser, _BUNDLE)


def _add_route(commands: Any) -> None:
    parser = _add(commands, "route", _route, "one decision, explained")
    parser.add_argument("text", help="the prompt; - reads it from standard input")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model", metavar="BUNDLE", help=f"decide in process, with {_BUNDLE}")
    where.add_argument("--server", metavar="ADDRESS", help="ask a running server")
    parser.add_argument("--catalog", help="prices to use instead of the bundle's (with --model)")
    for flag, words in (
        ("--tls-ca", "authorities that the server's certificate is checked by: given, the call is encrypted"),
        ("--tls-cert", "certificate to show to the server"),
        ("--tls-key", "its key"),
        ("--token-file", "bearer token to send"),
    ):
        parser.add_argument(flag, metavar="FILE", help=f"{words} (with --server)")
    parser.add_argument("--segment", help="application, route or task that sends the prompt")
    parser.add_argument("--quality-target", type=share, metavar="Q", help="share of the best model's success to keep")
    parser.add_argument("--max-cost-usd", type=dollars, metavar="USD", help="highest expected cost of the call")
    parser.add_argument("--max-output-tokens", type=positive_int, metavar="N", help="limit you will set on the answer")
    for flag, words in (
        ("--allow", "only this model"),
        ("--deny", "not this model"),
        ("--region", "only this region"),
        ("--capability", "required capability"),
    ):
        parser.add_argument(flag, action="append", metavar="NAME", help=f"{words}; may be repeated")


def _add_ab(commands: Any) -> None:
    from router_ml.ab_options import add_ab_options

    does = "A/B tests of router versions"
    parser = commands.add_parser("ab", help=does, description=f"{does}.")
    groups = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_ab_options(groups, lambda name: _command(name, "ab.commands"), _BUNDLE)


def _add_bench(commands: Any) -> None:
    from router_ml.bench.options import add_bench_options

    parser = _add(commands, "bench", _bench, "speed of decisions, in process and over gRPC, beside floors and targets")
    add_bench_options(parser, _BUNDLE)


if __name__ == "__main__":
    sys.exit(main())
