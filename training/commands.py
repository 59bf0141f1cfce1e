"""What the commands of training do: plain arguments in, a report printed. `router_ml.cli` parses and hands over."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from router_ml import bundle
from router_ml.cli import bundle_folder, read_catalog, say, show
from router_ml.errors import GateError, InputError
from router_ml.operating_points import DEFAULT_CONFIDENCE
from router_ml.policy import Policy
from router_ml.router import Router
from router_ml.types import Rule
from training.appraise import EvaluateSettings, appraise, estimate_logs
from training.bandit_export import export_bandit
from training.encoder import DEFAULT_TEACHER, EncoderKind, EncoderSettings
from training.evaluate import EvaluationReport, Judgement
from training.fit import FitSettings
from training.ingest import ingest_journal
from training.labels import LabelSettings
from training.off_policy.policy_rows import NotJudged, policy_rows
from training.outcomes import read_outcomes, write_outcomes
from training.pipeline import Trained, TrainSettings
from training.pipeline import train as run_train
from training.plots import calibration_figure, cost_quality_figure, save_figure
from training.predict import predict as run_predict
from training.registry import CHALLENGER, CHAMPION, RegistrySettings, TrainingRecord, champion_number, log_training_run
from training.registry import register as register_version
from training.report import evaluation_lines, training_dict, training_lines
from training.sources import REJECTS_SUFFIX
from training.split import SplitBy, SplitSettings
from training.synthetic.reporting import REPORTING
from training.synthetic.simulate import SimulateSettings, run_simulate


def simulate(args: argparse.Namespace) -> None:
    """`router-ml simulate`"""
    settings = SimulateSettings(
        days=args.days,
        requests_per_day=args.requests_per_day,
        seed=args.seed,
        full_information=args.full_information,
        drift=args.drift,
        price_change=args.price_change,
        outage=args.outage,
        new_model=args.new_model,
        reporting=REPORTING[args.reporting],
        catalog=read_catalog(args.catalog),
    )
    report = run_simulate(args.out, settings, truth=args.truth, progress=lambda day, days: say(f"day {day} of {days}"))
    lines = [
        f"{report.rows:,} rows of {report.requests:,} simulated requests -> {report.out}",
        f"from {report.first:%Y-%m-%d} to {report.last:%Y-%m-%d}; " + ("; ".join(report.events) or "no events"),
        *(
            f"  {model.model}: {model.rows:,} rows, success {_percent(model.success)}, ${model.cost_usd:,.2f}"
            for model in report.models
        ),
    ]
    show(args, asdict(report), lines)


def ingest(args: argparse.Namespace) -> None:
    """`router-ml ingest`"""
    if args.format == "journal":
        report = ingest_journal(args.source, args.out)
        show(args, report.to_dict(), report.lines())
        return
    table = read_outcomes(args.source, prompt_column=args.prompt_column, rejects=args.out / f"outcomes{REJECTS_SUFFIX}")
    out = args.out / "outcomes.parquet"
    write_outcomes(out, table.batches())
    show(args, table.report.to_dict() | {"out": str(out)}, [*table.report.lines(), f"written to {out}"])


def train(args: argparse.Namespace) -> None:
    """`router-ml train`"""
    if args.no_register and args.out is None:
        raise InputError("--no-register without --out would throw the version away; give --out DIR")
    settings = train_settings(args, teacher=_teacher(args.encoder), split=args.split)
    rejects = (args.out.parent if args.out else Path()) / f"train{REJECTS_SUFFIX}"
    trained = run_train(args.logs, read_catalog(args.catalog), settings, rejects, say)
    lines, data = training_lines(trained), training_dict(trained)
    if args.out:
        data["bundle"] = str(args.out)
        data["bundle_sha256"] = trained.write(args.out)
        lines.append(f"bundle written to {args.out}")
    if not args.no_register:
        say("registering the version in MLflow")
        registered = register(trained, trained.judgement, RegistrySettings(model_name=args.name), args.alias)
        data["registered"] = asdict(registered)
        lines += registered.lines()
    show(args, finite(data), lines)


def train_settings(args: argparse.Namespace, *, teacher: str, split: SplitBy) -> TrainSettings:
    """What the options that `train` and `nightly` share ask for."""
    return TrainSettings(
        encoder=EncoderSettings(teacher=teacher, kind=EncoderKind(args.encoder_kind)),
        split=SplitSettings(by=split, seed=args.seed),
        fit=FitSettings(seed=args.seed),
        quality_target=args.quality_target,
        rule=Rule(args.rule),
        confidence=args.confidence,
        prompt_column=args.prompt_column,
        labels=LabelSettings.declared(args.unreported, args.label_delay),
    )


def _teacher(encoder: str | None) -> str:
    if encoder is None:
        return DEFAULT_TEACHER
    return str(bundle_folder(encoder)) if encoder.startswith("models:/") else encoder


def register(trained: Trained, judgement: Judgement, settings: RegistrySettings, alias: str | None) -> Registered:
    """Log a run with everything that a person wants to see of it, and register its bundle.

    `alias` None: champion for the first version, challenger for a later one; "none": no alias.
    """
    alias = alias or (CHAMPION if champion_number(settings) is None else CHALLENGER)
    chosen = None if alias == "none" else alias
    manifest = trained.manifest
    with tempfile.TemporaryDirectory(prefix="router-ml-") as scratch:
        folder = Path(scratch) / "bundle"
        digest = trained.write(folder)
        tags = {"router_version": manifest.version, "bundle_sha256": digest, "models": str(len(manifest.models))}
        tags["verdict"] = "deploy" if trained.verdict.deploy else f"do not deploy; serves {trained.verdict.serves}"
        run = log_training_run(
            TrainingRecord(
                bundle=folder,
                data_name="outcome table",
                data_sha256=manifest.data_fingerprint,
                parameters=parameters(trained),
                metrics=metrics_of(judgement.report),
                tags=tags,
                figures=figures(judgement),
                report=finite(training_dict(trained) | {"evaluation": judgement.report.to_dict()}),
            ),
            settings,
        )
        number = register_version(run, settings, tags=tags, alias=chosen)
    return Registered(settings.model_name, number, chosen)


@dataclass(frozen=True, slots=True)
class Registered:
    """Where a version can be found."""

    name: str
    number: int
    alias: str | None

    @property
    def reference(self) -> str:
        """What --model takes."""
        return f"models:/{self.name}@{self.alias}" if self.alias else f"models:/{self.name}/{self.number}"

    def lines(self) -> list[str]:
        """Where it is, and what to type next."""
        return [
            f"registered as version {self.number} of {self.name!r}{f', alias {self.alias}' if self.alias else ''}",
            f'next: router-ml route "..." --model {self.reference}',
        ]


def predict(args: argparse.Namespace) -> None:
    """`router-ml predict`"""
    router = Router.load(bundle_folder(args.model), catalog=read_catalog(args.catalog))
    report = run_predict(
        args.prompts, router, args.out, prompt_column=args.prompt_column, quality_target=args.quality_target
    )
    show(args, report.to_dict(), report.lines())


def evaluate(args: argparse.Namespace) -> None:
    """`router-ml evaluate`"""
    opened = bundle.load(bundle_folder(args.model))
    settings = EvaluateSettings(prompt_column=args.prompt_column, all_rows=args.all_rows)
    with tempfile.TemporaryDirectory(prefix="router-ml-") as scratch:
        rejects = Path(scratch) / f"evaluate{REJECTS_SUFFIX}"
        found = appraise(args.logs, opened, read_catalog(args.catalog), settings, rejects, say)
    if args.plots:
        args.plots.mkdir(parents=True, exist_ok=True)
        for name, figure in figures(found.judgement).items():
            save_figure(figure, args.plots / name)
    data = found.judgement.report.to_dict() | {"rows_used": found.rows_used, "read": found.read.to_dict()}
    lines = [*found.read.lines(), f"rows used: {found.rows_used}", *evaluation_lines(found.judgement.report)]
    show(args, finite(data), lines)


def export(args: argparse.Namespace) -> None:
    """`router-ml export`"""
    opened = bundle.load(bundle_folder(args.model))
    settings = EvaluateSettings(prompt_column=args.prompt_column, all_rows=args.all_rows)
    with tempfile.TemporaryDirectory(prefix="router-ml-") as scratch:
        found = estimate_logs(args.logs, opened, settings, Path(scratch) / f"export{REJECTS_SUFFIX}", say)
    policy = Policy(read_catalog(args.catalog) or opened.catalog, opened.manifest.models, opened.points)
    rows = policy_rows(found.data, found.index, policy, found.estimates)
    if isinstance(rows, NotJudged):
        raise InputError(f"nothing to export: {rows.reason}")
    n_rows = export_bandit(args.out, args.format, rows, args.reward, found.data, found.estimates)
    data = {"out": str(args.out), "format": args.format, "reward": args.reward, "rows": n_rows}
    lines = [*found.read.lines(), f"rows used: {found.rows_used}", f"{n_rows:,} requests -> {args.out}"]
    show(args, data | {"rows_used": found.rows_used}, lines)


def benchmark(args: argparse.Namespace) -> None:
    """`router-ml benchmark`"""
    from training.benchmark.pictures import benchmark_figures
    from training.benchmark.report import benchmark_lines
    from training.benchmark.suite import STUDIES, BenchmarkSettings, run_benchmark

    studies = tuple(name for name in STUDIES if name in (args.studies or STUDIES))
    settings = BenchmarkSettings(
        tables=tuple(args.tables),
        prompt_columns=tuple(args.prompt_column or ("prompt",)),
        simulated=not args.no_simulated,
        n_splits=args.splits,
        studies=() if args.no_studies else studies,
        jobs=args.jobs,
    )
    report = run_benchmark(settings, say)
    lines, data, pictures = benchmark_lines(report), finite(report.to_dict()), benchmark_figures(report)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "benchmark.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
    (args.out / "benchmark.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, figure in pictures.items():
        save_figure(figure, args.out / name)
    lines += ["", f"table, JSON and pictures in {args.out}"]
    if not args.no_register:
        record = TrainingRecord(
            bundle=None,
            data_name=", ".join(table.name for table in report.tables),
            data_sha256=hashlib.sha256("".join(table.fingerprint for table in report.tables).encode()).hexdigest(),
            parameters={"splits": args.splits, "tables": len(report.tables)},
            metrics=report.metrics(),
            tags={"kind": "benchmark"},
            figures=pictures,
            report=data,
        )
        run = log_training_run(record, RegistrySettings(experiment="router-ml benchmark"))
        lines.append(f"kept in MLflow as run {run.run_id} of the experiment 'router-ml benchmark'")
    show(args, data, lines)


def nightly(args: argparse.Namespace) -> None:
    """`router-ml nightly`"""
    from training.nightly.inputs import NightlySettings
    from training.nightly.report import night_lines
    from training.nightly.run import run_nightly

    settings = NightlySettings(
        work=args.work,
        journal=args.journal,
        logs=tuple(args.logs),
        catalog=read_catalog(args.catalog),
        days=args.days,
        left_out_days=tuple(args.leave_out_day or ()),
        confidence=args.confidence or DEFAULT_CONFIDENCE,
        latency_budget_us=args.latency_budget_us,
        # An encoder of a registered version is looked up when the night needs it: the alias may move.
        train=train_settings(args, teacher=args.encoder or DEFAULT_TEACHER, split="time"),
        registry=RegistrySettings(model_name=args.name),
    )
    night = run_nightly(settings, say)
    lines = ["these inputs were taken before; nothing was done again"] if night.is_repeat else []
    show(
        args,
        night.data | {"repeat": night.is_repeat},
        [*lines, *night_lines(night.data, str(night.folder / "report.html"))],
    )
    if not night.accepted:
        raise GateError(f"the night was refused by: {night.refused_by}; see {night.folder / 'report.html'}")


def demo(args: argparse.Namespace) -> None:
    """`router-ml demo`"""
    from training.demo import run_demo

    report = run_demo(requests_per_day=args.requests_per_day, seed=args.seed, say=say)
    show(args, finite(report.to_dict()), report.lines())


def figures(judgement: Judgement) -> dict[str, Figure]:
    """File name -> picture."""
    found, report, pictures = {}, judgement.report, judgement.pictures
    if pictures:
        subtitle = f"{report.n_prompts:,} held-out prompts, {len(pictures.models)} models"
        found["cost_quality.png"] = cost_quality_figure(
            pictures.points, pictures.models, pictures.baselines, "Quality against cost", subtitle
        )
    if report.calibration:
        found["calibration.png"] = calibration_figure(
            judgement.p_success, judgement.success, "Calibration on held-out outcomes"
        )
    return found


def metrics_of(report: EvaluationReport) -> dict[str, float]:
    """Figures that MLflow compares between versions; what is unknown is left out."""
    found: dict[str, float | None] = {"held_out_prompts": report.n_prompts}
    if report.calibration:
        found |= {name: getattr(report.calibration, name) for name in ("ece", "brier", "auc")}
    if report.comparison:
        for name, figures_of in report.comparison.figures.items():
            prefix = name.replace(" ", "_").replace("-", "_")
            found |= {f"{prefix}.{key}": value for key, value in asdict(figures_of).items()}
        for target in report.comparison.targets:
            key = f"target_{round(100 * target.quality_target)}"
            found[f"{key}.cost_usd_per_1000"] = target.cost_usd_per_1000
            found[f"{key}.quality_kept"] = target.quality_kept
            if target.promised:
                found[f"{key}.promised_cost_usd_per_1000"] = target.promised.cost_usd_per_1000
                found[f"{key}.promised_quality_kept"] = target.promised.quality_kept
    if report.off_policy:
        for name in ("success", "cost_usd", "cost_per_success_usd", "latency_ms"):
            if figure := getattr(report.off_policy, name):
                values = {key: getattr(figure, key) for key in ("value", "low", "high", "effective_sample_size")}
                found |= {f"off_policy.{name}.{key}": value for key, value in values.items()}
    for magnitude in report.magnitudes:
        found[f"{magnitude.quantity}.relative_error"] = magnitude.estimates.relative_error
        found[f"{magnitude.quantity}.deviance_saved"] = magnitude.deviance_saved.estimate
        found[f"{magnitude.quantity}.ratio"] = magnitude.ratio.estimate
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def parameters(trained: Trained) -> dict[str, str]:
    """What MLflow shows a version was made with."""
    manifest = trained.manifest
    return {
        "encoder": f"{manifest.encoder['kind']} {manifest.encoder['name']}",
        "models": ", ".join(manifest.models)[:500],
        "split": trained.split,
        "quality_target": str(manifest.operating_points["default_target"]),
        "rule": manifest.operating_points["rule"],
        "confidence": str(manifest.operating_points["confidence"]),
        "training_start": str(manifest.training_start),
        "training_end": str(manifest.training_end),
        **{f"rows_{name}": str(count) for name, count in trained.n_rows.items()},
    }


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: unknown is null."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"
