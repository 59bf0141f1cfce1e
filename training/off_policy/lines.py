"""An off-policy report in words."""

from __future__ import annotations

from training.intervals import Interval
from training.off_policy.compare import Verdict
from training.off_policy.policy_report import OffPolicyFigure, OffPolicyReport
from training.text_table import table

_FIGURES = {
    "success": ("success", 1.0),
    "cost_usd": ("$ per 1,000 requests", 1000.0),
    "cost_per_success_usd": ("$ per 1,000 successes", 1000.0),
    "latency_ms": ("latency, ms", 1.0),
}
"""Name and scale of a figure."""


def off_policy_lines(report: OffPolicyReport) -> list[str]:
    """What the version would have been worth on the logged requests."""
    overlap = report.overlap
    head = f"off-policy, judged on {report.n_requests:,} logged requests in {overlap.n_clusters:,} independent groups"
    rows: list[tuple[str, ...]] = [
        ("", "this version [95 %]", f"{report.baseline} [95 %]", "difference [95 %]", "n eff.", "verdict")
    ]
    figures = {name: getattr(report, key) for key, (name, _) in _FIGURES.items()}
    for (name, scale), figure in zip(_FIGURES.values(), figures.values(), strict=True):
        if figure:
            own = Interval(figure.value, figure.low, figure.high)
            intervals = (_scaled(each, scale) for each in (own, figure.baseline, figure.difference))
            rows.append((name, *intervals, f"{figure.effective_sample_size:,.0f}", str(figure.verdict)))
    longest = max(len(row[-1]) for row in rows)
    lines = [f"{head}:", *table([(*row[:-1], row[-1].ljust(longest)) for row in rows])]
    lines += [
        f"  {name}: {figure.verdict}, since {_why(figure)}"
        for name, figure in figures.items()
        if figure and figure.verdict in (Verdict.CANNOT_TELL, Verdict.NO_DIFFERENT)
    ]
    worst = min(overlap.by_segment, key=lambda name: overlap.by_segment[name].effective_sample_size)
    thin = overlap.by_segment[worst]
    lines.append(
        f"  it decides otherwise than {report.baseline} on {report.decides_otherwise:.0%} of them; largest weight "
        f"{overlap.largest_weight:.3g}; {overlap.unsupported:.1%} of its decisions without support; least overlap in "
        f"segment {worst} (n eff. {thin.effective_sample_size:,.0f} of {thin.rows:,})"
    )
    return [*lines, f"  rests on: {'; '.join(report.rests_on)}"]


def _scaled(interval: Interval, scale: float) -> str:
    low, estimate, high = (f"{scale * each:.4g}" for each in (interval.low, interval.estimate, interval.high))
    return f"{estimate} [{low}, {high}]"


def _why(figure: OffPolicyFigure) -> str:
    if figure.more_requests is None:
        return figure.reason
    asked = (
        f"{figure.reason}; about {float(f'{figure.more_requests:.2g}'):,.0f} more requests like these would settle it"
    )
    if figure.needed_propensity is None or figure.propensity is None:
        return asked
    return (
        f"{asked}, or a propensity of {figure.needed_propensity:.2g} instead of {figure.propensity:.2g} "
        "for what it would do otherwise"
    )
