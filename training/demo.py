"""The whole loop on simulated logs, in one command: train, evaluate, register, serve, route."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from router_ml import bundle
from router_ml.client import RouterClient
from router_ml.errors import RouterUnavailable
from router_ml.journal import OutcomeReport
from router_ml.router import Router
from router_ml.types import Decision
from training.appraise import EvaluateSettings, appraise
from training.commands import Registered, figures, register
from training.evaluate import Judgement
from training.outcomes import write_outcomes
from training.pipeline import Trained, TrainSettings, train
from training.plots import save_figure
from training.registry import CHAMPION, RegistrySettings, resolve
from training.report import target_lines
from training.sources import REJECTS_SUFFIX
from training.synthetic.prices import default_catalog
from training.synthetic.table import outcome_batch
from training.synthetic.traffic import TrafficSettings, draw_traffic
from training.synthetic.world import World, WorldSettings

FOLDER = Path("mlruns") / "demo"
_DAYS = 21
_JUDGED_DAYS = 5
_SERVED = 1000
_WARM_UP = 200


@dataclass(frozen=True, slots=True)
class Latency:
    """Of one decision, in microseconds."""

    p50_us: float
    p99_us: float

    def __str__(self) -> str:
        return f"p50 {self.p50_us:.0f} µs, p99 {self.p99_us:.0f} µs"


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What `demo` prints."""

    n_requests: int
    trained: Trained
    judgement: Judgement
    registered: Registered
    over_grpc: Latency
    in_process: Latency
    same_decisions: int
    """Of the prompts served, how many got the same offer in process and over gRPC."""
    picture: Path
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "simulated": True,
            "requests": self.n_requests,
            "version": self.trained.manifest.version,
            "registered": {"name": self.registered.name, "number": self.registered.number},
            "evaluation": self.judgement.report.to_dict(),
            "decision_latency_us": {
                "grpc": {"p50": self.over_grpc.p50_us, "p99": self.over_grpc.p99_us},
                "in_process": {"p50": self.in_process.p50_us, "p99": self.in_process.p99_us},
            },
            "served": _SERVED,
            "same_decisions": self.same_decisions,
            "picture": str(self.picture),
            "seconds": round(self.seconds, 1),
        }

    def lines(self) -> list[str]:
        """For a person."""
        report, comparison = self.judgement.report, self.judgement.report.comparison
        assert comparison is not None  # the simulator let every model answer
        calibration = report.calibration
        return [
            f"These logs are simulated: {self.n_requests:,} requests over three weeks, one model called per request,",
            f"list prices of {default_catalog().as_of}.",
            f"Judged on {comparison.n_prompts:,} prompts of the last days, where the simulator let every model answer:",
            "",
            *target_lines(comparison),
            "",
            *([f"calibration error {calibration.ece:.3f} (ECE)"] if calibration else []),
            f"{_SERVED:,} held-out prompts through the gRPC server: {self.over_grpc} a decision, for the client;",
            f"in process: {self.in_process}; same offer both ways: {self.same_decisions:,}",
            f"cost-quality curve: {self.picture}",
            f"registered as version {self.registered.number} of {self.registered.name!r}, alias {CHAMPION}; "
            f"whole loop in {self.seconds:.0f} s",
            "",
            "Next:",
            f'  router-ml route "Which clause limits liability?" --model {self.registered.reference}',
            "  mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db",
            "With your own logs (one row per request: prompt, model, success; see README):",
            f"  router-ml train {FOLDER / 'logs.parquet'} --catalog {FOLDER / 'catalog.yaml'} --out bundle",
        ]


def run_demo(*, requests_per_day: int, seed: int, say: Callable[[str], None]) -> DemoReport:
    """Run the loop; leaves logs, picture and journal in `mlruns/demo` and the version in the MLflow store."""
    began = time.monotonic()
    FOLDER.mkdir(parents=True, exist_ok=True)
    say(f"simulating {_DAYS} days of logs")
    logs, truth = FOLDER / "logs.parquet", FOLDER / "last_days_full_information.parquet"
    n_requests = _simulate(seed, requests_per_day, logs, truth)
    catalog_file = Path(__file__).parent / "synthetic" / "catalog.yaml"
    shutil.copyfile(catalog_file, FOLDER / "catalog.yaml")

    rejects = FOLDER / f"logs{REJECTS_SUFFIX}"
    trained = train([logs], default_catalog(), TrainSettings(), rejects, say)
    folder = FOLDER / "bundle"
    trained.write(folder)
    judgement = appraise([truth], bundle.load(folder), None, EvaluateSettings(), rejects, say).judgement
    say("registering the version in MLflow")
    settings = RegistrySettings()
    registered = register(trained, judgement, settings, CHAMPION)
    picture = FOLDER / "cost_quality.png"
    save_figure(figures(judgement)["cost_quality.png"], picture)

    say(f"serving {_SERVED} held-out prompts over gRPC")
    prompts, outcomes = _held_out(truth)
    registered_folder = resolve(registered.reference, settings)
    served, over_grpc = _through_server(registered_folder, prompts, outcomes)
    router = Router.load(registered_folder)
    direct, in_process = _timed(lambda text, segment: router.route(text, segment=segment), prompts)
    same = sum(a.offer == b.offer for a, b in zip(served, direct, strict=True))
    seconds = time.monotonic() - began
    return DemoReport(n_requests, trained, judgement, registered, over_grpc, in_process, same, picture, seconds)


def _simulate(seed: int, requests_per_day: int, logs: Path, truth: Path) -> int:
    """Logs of all days with one model per request, and the last days with every model's answer."""
    world = World.create(seed, WorldSettings())
    settings = TrafficSettings(days=_DAYS, requests_per_day=requests_per_day)
    partial, full, n = [], [], 0
    for part in draw_traffic(world, settings):
        n += len(part.request_ids)
        partial.append(outcome_batch(part, full_information=False))
        if part.day >= _DAYS - _JUDGED_DAYS:
            full.append(outcome_batch(part, full_information=True))
    write_outcomes(logs, partial)
    write_outcomes(truth, full)
    return n


Prompt = tuple[str, str]
"""Text and segment."""


def _held_out(truth: Path) -> tuple[list[Prompt], dict[tuple[Prompt, str], float | None]]:
    """The newest prompts, and what each model's answer to each was worth."""
    columns = ("prompt", "segment", "model", "success")
    table = pq.read_table(truth, columns=list(columns))
    outcomes = {
        ((prompt, segment), model): success
        for prompt, segment, model, success in zip(*(table[name].to_pylist() for name in columns), strict=True)
    }
    prompts = list(dict.fromkeys(prompt for prompt, _ in outcomes))
    return prompts[-(_SERVED + _WARM_UP) :], outcomes


def _through_server(
    folder: Path, prompts: Sequence[Prompt], outcomes: dict[tuple[Prompt, str], float | None]
) -> tuple[list[Decision], Latency]:
    """Route through a real server, then report what came of each decision, as a backend would."""
    with _server(folder) as address, RouterClient(address, timeout_s=5.0) as client:
        decisions, latency = _timed(lambda text, segment: client.route(text, segment=segment), prompts)
        served = zip(prompts[_WARM_UP:], decisions, strict=True)
        client.report(
            [OutcomeReport(made.decision_id, success=outcomes[prompt, made.model]) for prompt, made in served]
        )
        return decisions, latency


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    """`router-ml serve` in a process of its own, on any free port; yields its address."""
    options = ("--model", str(folder), "--listen", "127.0.0.1:0", "--journal", str(FOLDER / "journal"))
    command = [sys.executable, "-m", "router_ml.cli", "serve", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            found = re.search(r" on (\S+:\d+);", line)
            if found is None:
                raise RouterUnavailable("the server did not start; its own message stands above")
            yield found[1]
        finally:
            process.terminate()


def _timed(route: Callable[[str, str], Decision], prompts: Sequence[Prompt]) -> tuple[list[Decision], Latency]:
    for text, segment in prompts[:_WARM_UP]:
        route(text, segment)
    decisions, taken = [], []
    for text, segment in prompts[_WARM_UP:]:
        start = time.perf_counter_ns()
        decisions.append(route(text, segment))
        taken.append(time.perf_counter_ns() - start)
    p50, p99 = np.percentile(np.array(taken) / 1000, [50, 99])
    return decisions, Latency(float(p50), float(p99))
