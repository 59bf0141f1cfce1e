"""Evaluations and trainings in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training.evaluate import Comparison, CurveFigures, EvaluationReport, TargetFigures
from training.pipeline import Trained

_SHOWN_MODELS = 4
_SHOWN_TARGETS = (0.9, 0.95, 0.97, 0.98, 0.99, 1.0)


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Rows of text as aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append((indent + "  ".join([row[0].ljust(widths[0]), *cells[1:]])).rstrip())
    return lines


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
    return lines + [f"note: {note}" for note in report.notes]


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
    return [*lines, "by quality target:", *target_lines(c)] if c.targets else lines


def target_lines(c: Comparison) -> list[str]:
    """A row per quality target, against always calling the best single model."""
    rows: list[tuple[str, ...]] = [("target", "$ per 1,000", "saved", "quality kept", "traffic")]
    for t in c.targets:
        if t.quality_target in _SHOWN_TARGETS:
            rows.append(_target(t))
    rows.append(("always the best", f"{c.best_cost_usd_per_1000:.3f}", "0 %", "100.0 %", f"{c.best_model} 100 %"))
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
    return [
        *trained.read.lines(),
        f"split {trained.split}: rows {rows}",
        f"{len(manifest.models)} models, {len(manifest.segments)} segments; encoder {manifest.encoder['kind']} "
        f"{manifest.encoder['name']}; operating points rest on {trained.tuning_basis}",
        f"parity of graph and native models: {trained.parity.p_success:.1g} over {trained.parity.n_prompts:,} prompts",
        *(f"note: {note}" for note in trained.notes),
        *evaluation_lines(trained.judgement.report),
    ]


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
        "parity": {"p_success": trained.parity.p_success, "relative": trained.parity.relative},
        "notes": list(trained.notes),
        "evaluation": trained.judgement.report.to_dict(),
    }
