"""`router-ml serve`: one process or several, one version or those that a folder names."""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path

from router_ml.bundle import Manifest, policy_of, read_manifest
from router_ml.catalog import Catalog
from router_ml.errors import InputError, RouterMlError
from router_ml.explore_options import exploration_of
from router_ml.journal_options import journal_options, needs_digests, open_journal
from router_ml.logs import set_up_logs
from router_ml.metrics import ServerMetrics, serve_metrics
from router_ml.policy import Policy
from router_ml.rollout import Rollout
from router_ml.server import ServerSettings
from router_ml.supervisor import Supervisor
from router_ml.tls import TlsFiles
from router_ml.tracing import TraceSettings
from router_ml.traffic import POINTER, Traffic, in_force, read_traffic
from router_ml.worker import Serving, ServingPlan

_AGAIN_SECONDS = 5.0


def run(args: argparse.Namespace, bundle_folder: Callable[[str], Path]) -> None:
    """Serve until told to stop."""
    set_up_logs(args.log_format, args.log_level)
    folder, named = _what_to_serve(args, bundle_folder)
    catalog = Catalog.load(args.catalog) if args.catalog else None
    plan = ServingPlan(
        ServerSettings(listen=args.listen, tls=_tls(args), tokens=args.tokens, insecure=args.insecure),
        catalog,
        partial(open_journal, journal_options(args)),
        needs_digests(args),
        exploration_of(args),
        TraceSettings(args.traces, args.trace_ratio) if args.traces else None,
        (args.log_format, args.log_level),
    )
    manifest, digest, policy = policy_of(folder / named.champion, catalog)
    line = _about(manifest, digest, policy, args)
    traffic, follow = _to_begin_with(plan, folder, named), not args.model
    metrics = ServerMetrics(args.workers) if args.metrics else None
    if metrics:
        manifests = {name: read_manifest(folder / name) for name in traffic.versions}
        metrics.in_force(in_force(traffic, {name: (each[0].version, each[1]) for name, each in manifests.items()}))
    if args.follow:
        threading.Thread(target=_keep_following, args=(args.follow, folder), daemon=True).start()
    if args.workers > 1:
        supervisor = Supervisor(plan, folder, traffic, args.workers, follow=follow, metrics=metrics)
        with _telling(args.metrics, metrics, lambda: supervisor.serving):
            supervisor.run(ready=lambda: print(line.format(address=supervisor.address), flush=True))
        return
    generation = ctypes.c_ulong(0)
    memory = metrics.memories[0] if metrics else None
    with closing(Serving.open(plan, folder, traffic, 0, generation, memory)) as serving:
        if follow:
            rollout = Rollout(folder, traffic, generation, lambda: [serving], metrics.switched if metrics else None)
            threading.Thread(target=rollout.keep_looking, args=(threading.Event(),), daemon=True).start()
        with _telling(args.metrics, metrics, lambda: serving.server.serving):
            serving.server.run(ready=lambda: print(line.format(address=serving.server.address), flush=True))


def _telling(address: str, metrics: ServerMetrics | None, ready: Callable[[], bool]) -> AbstractContextManager[object]:
    return closing(serve_metrics(address, metrics, ready)) if metrics else nullcontext()


def _tls(args: argparse.Namespace) -> TlsFiles | None:
    if args.tls_cert is None and args.tls_key is None and args.tls_client_ca is None:
        return None
    if args.tls_cert is None or args.tls_key is None:
        raise InputError("encryption needs both --tls-cert and --tls-key; --tls-client-ca comes on top of them")
    return TlsFiles(args.tls_cert, args.tls_key, args.tls_client_ca)


def _what_to_serve(args: argparse.Namespace, bundle_folder: Callable[[str], Path]) -> tuple[Path, Traffic]:
    """The folder of versions, which is looked at all the time unless `--model` names one, and what of it to serve."""
    if args.model:
        if args.bundles:
            raise InputError("--bundles goes with --follow or alone: it names the version itself; leave out --model")
        path = bundle_folder(args.model).resolve()
        return path.parent, Traffic(path.name)
    folder = args.bundles or (Path("bundles") if args.follow else None)
    if folder is None:
        raise InputError("name what to serve: --model BUNDLE, --bundles DIR, or --follow models:/router@champion")
    found = ""
    if args.follow and read_traffic(folder) is None:
        look = subprocess.run([*_follower(args.follow, folder), "--once"], stderr=subprocess.PIPE, text=True)
        found = f": {look.stderr.strip().splitlines()[-1]}" if look.returncode and look.stderr.strip() else ""
    traffic = read_traffic(folder)
    if traffic is None:
        raise InputError(
            f"{folder / POINTER}: no version to serve{found or '; write the name of a bundle folder into it'}"
        )
    return folder, traffic


def _to_begin_with(plan: ServingPlan, folder: Path, traffic: Traffic) -> Traffic:
    """The champion alone where a version on trial will not do: the first look at the pointer then says why."""
    champion, *others = traffic.versions
    try:
        for name in others:
            plan.open_version(folder / name)
    except (RouterMlError, OSError):
        return Traffic(champion)
    return traffic


def _about(manifest: Manifest, digest: str, policy: Policy, args: argparse.Namespace) -> str:
    """The line that says what is served, but for the address; warns of offers that are never chosen."""
    if policy.unjudged_offers:
        names = ", ".join(policy.unjudged_offers)
        print(f"router-ml: never chosen, since the bundle cannot judge their models: {names}", file=sys.stderr)
    workers = f"{args.workers} workers; " if args.workers > 1 else ""
    return (
        f"router-ml serves version {manifest.version} (bundle {digest[:12]}) on {{address}}; {workers}"
        f"{len(policy.offers)} offers of {len(manifest.models)} models; "
        f"journal: {args.journal or 'none, so outcomes are refused'}"
        + (f"; explores by {exploration}" if (exploration := exploration_of(args)) else "")
    )


def _keep_following(reference: str, folder: Path) -> None:
    """The follower is a process of its own, since MLflow is large and slow; it ends with this one."""
    pause = threading.Event()
    while True:
        subprocess.run([*_follower(reference, folder), "--parent", str(os.getpid())])
        pause.wait(_AGAIN_SECONDS)


def _follower(reference: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "training.follow", reference, str(folder)]
