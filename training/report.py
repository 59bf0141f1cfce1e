"""Evaluations and trainings in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from router_ml.operating_points import OperatingPoints
from router_ml.types import Rule
from training.evaluate import Comparison, CurveFigures, EvaluationReport
from training.magnitude_report import MagnitudeReport
from training.off_policy.lines import off_policy_lines
from training.pipeline import Trained
from training.promise import Promise
from training.targets import TargetFigures
from training.text_table import table
from training.verdict import Layer, Verdict

_SHOWN_MODELS = 4
_SHOWN_TARGETS = (0.9, 0.95, 0.97, 0.98, 0.99, 1.0)


def evaluation_lines(report: EvaluationReport) -> list[str]:
    """What `evaluate` prints."""
    lines = [f"judged on {report.n_prompts:,} held-out prompts, {report.n_outcomes:,} outcomes"]
    if report.comparison:
        lines += _comparison(report.comparison)
    if report.calibration:
        c = report.calibration
        lines += [
            f"calibration: ECE {c.ece:.3f} pooled, {max(c.ece_by_model.values()):.3f} for the worst model; "
            f"Brier {c.brier:.4f} (segment means {c.brier_segment_means:.4f}); AUC {c.auc:.3f}"
        ]
    lines += [_magnitude(magnitude) for magnitude in report.magnitudes]
    if report.off_policy:
        lines += off_policy_lines(report.off_policy)
    elif report.off_policy_reason and not report.comparison:
        lines.append(f"no off-policy estimate: {report.off_policy_reason}")
    return lines + [f"note: {note}" for note in report.notes]


def _magnitude(m: MagnitudeReport) -> str:
    gain, name = m.deviance_saved, {"output_tokens": "output tokens", "cost_usd": "cost", "latency_ms": "latency"}
    verdict = "no different beyond noise"
    if gain.excludes_zero:
        verdict = "better" if gain.low > 0 else "worse"
    return (
        f"expected {name[m.quantity]}: {m.ratio.estimate:.3f} [{m.ratio.low:.3f}, {m.ratio.high:.3f}] of what came; "
        f"relative error {m.estimates.relative_error:.0%} (the mean of each model {m.model_means.relative_error:.0%}), "
        f"deviance {-gain.estimate:+.0%} [{-gain.high:+.0%}, {-gain.low:+.0%}] {verdict}"
    )


def _comparison(c: Comparison) -> list[str]:
    best = f"{c.best_model}: success {c.best_quality:.3f} at ${c.best_cost_usd_per_1000:.3f} per 1,000 requests"
    head = ("", "AIQ", "cost at 97 %", "at 99 %", "at 100 %", "quality at 20 % cost", "at 50 %")
    rows = [head, *((name, *_figures(figures)) for name, figures in c.figures.items())]
    lines = [
        f"best single model of {len(c.models)}: {best}",
        "cost-quality, costs as share of the best single model's at that share of its quality:",
        *table(rows),
    ]
    for name, gain in c.aiq_gain.items():
        verdict = "no different beyond noise"
        if gain.excludes_zero:
            verdict = "better" if gain.low > 0 else "worse"
        lines.append(f"  AIQ over {name}: {gain.estimate:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] {verdict}")
    if c.two_models:
        t = c.two_models
        lines.append(f"of two models: APGR {t.apgr:.3f}, CPT(50) {t.cpt_50:.1%}, CPT(80) {t.cpt_80:.1%}")
    if not c.targets:
        return lines
    sure = f"with {_percent(c.confidence)} confidence"
    in_force = f"promised {sure}" if c.promise_in_force else "as reached in tuning"
    return [*lines, f"by quality target; in force: {in_force}; {sure}: saved, quality kept", *target_lines(c)]


def target_lines(c: Comparison) -> list[str]:
    """A row per quality target, against always calling the best single model; with confidence: saved, quality kept."""
    promised = f"with {_percent(c.confidence)} confidence"
    rows: list[tuple[str, ...]] = [("target", "$ per 1,000", "saved", "quality kept", promised, "traffic")]
    for t in c.targets:
        if t.quality_target in _SHOWN_TARGETS:
            rows.append(_target(t))
    best_cost = f"{c.best_cost_usd_per_1000:.3f}"
    rows.append(("always the best", best_cost, "0 %", "100.0 %", "0 %, 100.0 %", f"{c.best_model} 100 %"))
    last = max(len(row[-1]) for row in rows)
    return table([(*row[:-1], row[-1].ljust(last)) for row in rows])


def _target(t: TargetFigures) -> tuple[str, ...]:
    shown = [f"{name} {share:.0%}" for name, share in list(t.traffic.items())[:_SHOWN_MODELS] if share >= 0.005]
    rest = 1 - sum(list(t.traffic.values())[: len(shown)])
    traffic = ", ".join(shown) + (f", others {rest:.0%}" if rest >= 0.005 else "")
    mark = "" if t.reached_in_tuning else " (not reached)"
    return (
        f"{t.quality_target:.0%}{mark}",
        f"{t.cost_usd_per_1000:.3f}",
        f"{1 - t.cost_share:.0%}",
        f"{t.quality_kept:.1%}",
        f"{1 - t.promised.cost_share:.0%}, {t.promised.quality_kept:.1%}" if t.promised else "no promise",
        traffic,
    )


def _figures(f: CurveFigures) -> tuple[str, ...]:
    shares = (_or_never(value, "{:.0%}") for value in (f.cost_share_97, f.cost_share_99, f.cost_share_100))
    return (f"{f.aiq:.4f}", *shares, *(_or_never(value, "{:.3f}") for value in (f.quality_at_20, f.quality_at_50)))


def _or_never(value: float | None, form: str) -> str:
    return "never" if value is None else form.format(value)


def training_lines(trained: Trained) -> list[str]:
    """What `train` prints before where it went."""
    rows = ", ".join(f"{count:,} to {name}" for name, count in trained.n_rows.items())
    manifest = trained.manifest
    points = OperatingPoints.from_dict(manifest.operating_points)
    return [
        *trained.read.lines(),
        f"split {trained.split}: rows {rows}",
        f"{len(manifest.models)} models, {len(manifest.segments)} segments; encoder {manifest.encoder['kind']} "
        f"{manifest.encoder['name']}; operating points rest on {trained.tuning_basis}",
        f"parity of graph and native models: {trained.parity.p_success:.1g} over {trained.parity.n_prompts:,} prompts",
        *(f"note: {note}" for note in trained.notes),
        *verdict_lines(trained.verdict),
        *promise_lines(trained.promise, points.quality_targets, points.rule),
        *evaluation_lines(trained.judgement.report),
    ]


def verdict_lines(verdict: Verdict) -> list[str]:
    """Whether to deploy, and why."""
    if verdict.deploy:
        return [f"verdict: deploy; {verdict.reason}"]
    instead = "the mean success per segment" if verdict.serves is Layer.SEGMENT_MEANS else "each model's mean success"
    return [f"verdict: DO NOT DEPLOY a router; {verdict.reason}", f"  this version decides by {instead} instead"]


def promise_lines(promise: Promise, targets: Sequence[float], rule: Rule) -> list[str]:
    """What cannot be promised, and the data that it would take."""
    if not promise.n_prompts:
        return [f"nothing can be promised with {_percent(promise.confidence)} confidence, since {promise.reason}"]
    levels = promise.thresholds if rule is Rule.THRESHOLD else promise.willingness
    rows = [(t, n) for t, n, level in zip(targets, promise.needed_prompts, levels, strict=True) if level is None]
    rows = [row for row in rows if row[0] in _SHOWN_TARGETS]
    if not rows:
        return []
    tested = 0 if promise.reason else promise.n_prompts
    words = [f"{target:.0%} ({_needed(needed, tested)})" for target, needed in rows]
    what = "prompts with outcomes of every model" if promise.reason else "prompts like these"
    lines = [
        f"not promised with {_percent(promise.confidence)} confidence by {promise.n_prompts:,} prompts to tune on; "
        f"{what} that it would take, about: {', '.join(words)}"
    ]
    return [*lines, f"  since {promise.reason}"] if promise.reason else lines


def _needed(prompts: int | None, tested: int) -> str:
    if prompts is None:
        return "no number would do, the safest setting itself falls short"
    if prompts <= tested:
        return "somewhat more"
    return f"{float(f'{prompts:.2g}'):,.0f}"  # two digits: it is a forecast


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def training_dict(trained: Trained) -> dict[str, Any]:
    """The same for a program; also the report kept in MLflow."""
    return {
        "version": trained.manifest.version,
        "models": list(trained.manifest.models),
        "read": trained.read.to_dict(),
        "split": trained.split,
        "rows": trained.n_rows,
        "operating_points": trained.manifest.operating_points,
        "tuning_basis": trained.tuning_basis,
        "verdict": trained.verdict.to_dict(),
        "promise": asdict(trained.promise),
        "parity": {"p_success": trained.parity.p_success, "relative": trained.parity.relative},
        "notes": list(trained.notes),
        "evaluation": trained.judgement.report.to_dict(),
    }
