"""The options of `router-ml serve`, apart from what runs it, so that the command line starts fast."""

from __future__ import annotations

import argparse
from pathlib import Path

from router_ml.explore_options import add_explore_options
from router_ml.journal_options import add_journal_options
from router_ml.logs import FORMATS, LEVELS
from router_ml.option_types import ratio, workers


def add_serve_options(parser: argparse.ArgumentParser, bundle_help: str) -> None:
    """The options of `serve`."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", metavar="BUNDLE", help=bundle_help)
    source.add_argument(
        "--follow",
        metavar="REFERENCE",
        help="keep --bundles in step with an alias in MLflow, such as models:/router@champion, and serve it",
    )
    parser.add_argument(
        "--bundles",
        type=Path,
        metavar="DIR",
        help="folder of versions: its file `current` names the one to serve, and is looked at all the time; "
        "default with --follow: bundles",
    )
    parser.add_argument("--workers", type=workers, default=1, metavar="N", help="processes; auto: one per core")
    parser.add_argument("--listen", default="127.0.0.1:50051", metavar="ADDRESS", help="default 127.0.0.1:50051")
    parser.add_argument("--catalog", help="prices to use instead of the bundle's")
    add_journal_options(parser)
    add_explore_options(parser)
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="encrypt with this certificate (chain), PEM")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key, PEM")
    parser.add_argument(
        "--tls-client-ca", type=Path, metavar="FILE", help="ask clients for a certificate signed by one of these, PEM"
    )
    parser.add_argument(
        "--tokens",
        type=Path,
        metavar="FILE",
        help="ask calls for a bearer token; lines of: name, scopes (route,report,admin), SHA-256 of the token",
    )
    parser.add_argument(
        "--metrics", metavar="ADDRESS", help="tell Prometheus there, by HTTP: /metrics, also /healthz and /readyz"
    )
    parser.add_argument(
        "--traces", metavar="URL", help="send OpenTelemetry traces to this collector, e.g. http://collector:4318"
    )
    parser.add_argument(
        "--trace-ratio",
        type=ratio,
        default=1.0,
        metavar="R",
        help="share of calls to trace, unless the caller's `traceparent` decides; default 1",
    )
    parser.add_argument("--log-format", choices=FORMATS, default="text", help="of standard error; default text")
    parser.add_argument("--log-level", choices=LEVELS, default="warning", help="default warning")
    parser.add_argument(
        "--insecure", action="store_true", help="listen beyond this machine without encryption, on a trusted network"
    )
