"""What a version is worth on outcomes that it never saw: curves, baselines, calibration, quality targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.catalog import Catalog
from router_ml.operating_points import DEFAULT_CONFIDENCE, OperatingPoints
from router_ml.policy import Policy
from router_ml.types import Estimates, Float64Array, Rule
from training import metrics
from training.dataset import Dataset
from training.intervals import Interval, Weights, bootstrap
from training.magnitude_report import MagnitudeReport, report_magnitude
from training.metrics import SweepPoints
from training.off_policy.policy_report import OffPolicyReport
from training.off_policy.policy_rows import NotJudged
from training.operating import willingness_grid
from training.targets import TargetFigures, target_figures

_REPEATS = 500
_FEWEST_PROMPTS = 30
_LEAST_SHARE = 0.05
"""Of the prompts: in partial logs a few texts repeat by chance, and they are no sample of the traffic."""
_SHARES = (0.97, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Held:
    """Outcomes of n held-out prompts on m models; NaN where unknown."""

    success: Float64Array
    cost_usd: Float64Array
    segment: NDArray[np.int64]
    """[n], index into the bundle's segments plus one; 0 unknown."""
    output_tokens: Float64Array | None = None
    """[n, m]; None: not logged."""
    latency_ms: Float64Array | None = None
    cached_input_tokens: Float64Array | None = None


def held_of(data: Dataset, index: NDArray[np.int64]) -> Held:
    """Outcomes of the prompts `index`."""
    rows, segment = data.rows, data.prompts.segment[index]
    columns = (rows.success, rows.cost_usd, rows.output_tokens, rows.latency_ms, rows.cached_input_tokens)
    success, cost_usd, *others = (data.cells(values)[0][index] for values in columns)
    return Held(success, cost_usd, segment, *others)


@dataclass(frozen=True, slots=True)
class SegmentMeans:
    """The baseline to beat: mean success per segment and mean cost per model, of the training rows."""

    success: Float64Array
    """[s + 1, m], shrunk towards the model's mean; row 0 is the mean over all, for an unknown segment."""
    cost_usd: Float64Array
    """[m]"""
    output_tokens: Float64Array | None = None
    """[m]; None: not logged."""
    latency_ms: Float64Array | None = None

    @property
    def model_means(self) -> dict[str, Float64Array]:
        """By column of the outcome table, [m]; what was not logged is left out."""
        found = {name: getattr(self, name) for name in ("cost_usd", "output_tokens", "latency_ms")}
        return {name: means for name, means in found.items() if means is not None}


@dataclass(frozen=True, slots=True)
class CurveFigures:
    """One router or baseline; None where its curve never gets there."""

    aiq: float
    quality_at_20: float | None
    """Quality at 20 % of the best single model's cost."""
    quality_at_50: float | None
    cost_share_97: float | None
    """Least share of the best single model's cost that keeps 97 % of its quality."""
    cost_share_99: float | None
    cost_share_100: float | None


@dataclass(frozen=True, slots=True)
class TwoModelFigures:
    """What RouteLLM reports of a router between two models."""

    apgr: float
    """Average performance gap recovered; 0.5 is random."""
    cpt_50: float
    """Least share of strong-model calls that recovers half of the gap."""
    cpt_80: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Figures that need every model's outcome on every prompt."""

    n_prompts: int
    models: tuple[str, ...]
    best_model: str
    best_quality: float
    best_cost_usd_per_1000: float
    cheapest_model: str
    figures: dict[str, CurveFigures]
    """By name: `router`, the baselines, `oracle`."""
    aiq_gain: dict[str, Interval]
    """Router minus baseline, 95 % paired bootstrap over prompts."""
    targets: tuple[TargetFigures, ...]
    """Empty where some offered models are left out: targets are set for all together."""
    two_models: TwoModelFigures | None
    """None unless exactly two models are compared."""
    confidence: float
    """Of the promised figures."""
    promise_in_force: bool
    """Whether serving uses the promised levels."""


@dataclass(frozen=True, slots=True)
class CalibrationFigures:
    """Of all held-out outcomes."""

    n_outcomes: int
    ece: float
    ece_by_model: dict[str, float]
    brier: float
    brier_segment_means: float
    auc: float


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Everything `evaluate` prints."""

    n_prompts: int
    n_outcomes: int
    calibration: CalibrationFigures | None
    comparison: Comparison | None
    """None where the logs hold one model's outcome per prompt."""
    notes: tuple[str, ...]
    magnitudes: tuple[MagnitudeReport, ...] = ()
    """Of expected output tokens, cost and latency, where they were logged."""
    off_policy: OffPolicyReport | None = None
    """What the version's policy would have been worth on the logged requests; None where they cannot tell."""
    off_policy_reason: str | None = None
    """Why there is none."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def with_note(self, note: str) -> EvaluationReport:
        return replace(self, notes=(*self.notes, note))

    def with_off_policy(self, found: OffPolicyReport | NotJudged) -> EvaluationReport:
        if isinstance(found, NotJudged):
            return replace(self, off_policy_reason=found.reason)
        return replace(self, off_policy=found)


@dataclass(frozen=True, slots=True)
class Pictures:
    """What the plots are drawn from."""

    points: SweepPoints
    models: tuple[str, ...]
    baselines: dict[str, metrics.Curve]


@dataclass(frozen=True, slots=True)
class Judgement:
    """A report and what its pictures are drawn from."""

    report: EvaluationReport
    pictures: Pictures | None
    p_success: Float64Array
    """[n, m], predictions for held-out prompts."""
    success: Float64Array
    """[n, m], their outcomes; NaN where unknown."""


def segment_means(
    success: Float64Array, count: Float64Array, segment: NDArray[np.int64], n_segments: int
) -> Float64Array:
    """Mean success per segment and model, [n_segments + 1, m], shrunk by ten prompts' worth of the model's mean."""
    total, number = np.nan_to_num(success) * count, count
    mean = (total.sum(axis=0) + total.sum() / number.sum()) / (number.sum(axis=0) + 1)
    rows = [mean]
    for k in range(1, n_segments + 1):
        inside = segment == k
        rows.append((total[inside].sum(axis=0) + 10 * mean) / (number[inside].sum(axis=0) + 10))
    return np.array(rows)


def evaluate(
    catalog: Catalog,
    models: Sequence[str],
    points: OperatingPoints,
    estimates: Estimates,
    held: Held,
    baseline: SegmentMeans,
) -> Judgement:
    """Evaluate estimates [n, m] of held-out prompts under the policy that will serve."""
    known = ~np.isnan(held.success)
    notes: list[str] = []
    calibration = _calibration(models, estimates.p_success, held, baseline) if known.any() else None
    comparison, pictures = _comparison(catalog, tuple(models), points, estimates, held, baseline, notes)
    rows = int(known.any(axis=1).sum())
    magnitudes = _magnitudes(Policy(catalog, models, points), estimates, held, baseline)
    report = EvaluationReport(rows, int(known.sum()), calibration, comparison, tuple(notes), magnitudes)
    return Judgement(report, pictures, estimates.p_success.astype(np.float64), held.success)


def _calibration(
    models: Sequence[str], p_success: NDArray[np.float32], held: Held, baseline: SegmentMeans
) -> CalibrationFigures:
    known = ~np.isnan(held.success)
    p, y = p_success.astype(np.float64), held.success
    by_model = metrics.by_model(metrics.calibration_error, p, y)
    table = baseline.success[held.segment]
    return CalibrationFigures(
        n_outcomes=int(known.sum()),
        ece=metrics.calibration_error(p[known], y[known]),
        ece_by_model={name: float(value) for name, value in zip(models, by_model, strict=True) if not np.isnan(value)},
        brier=metrics.brier(p[known], y[known]),
        brier_segment_means=metrics.brier(table[known], y[known]),
        auc=metrics.auc(p[known], y[known]),
    )


def _magnitudes(
    policy: Policy, estimates: Estimates, held: Held, baseline: SegmentMeans
) -> tuple[MagnitudeReport, ...]:
    expected = {
        "output_tokens": estimates.output_tokens.astype(np.float64),
        "cost_usd": _expected_cost(policy, estimates, held),
        "latency_ms": estimates.latency_ms.astype(np.float64),
    }
    found = []
    for quantity, predicted in expected.items():
        actual, means = getattr(held, quantity), baseline.model_means.get(quantity)
        if actual is not None and means is not None:
            found.append(report_magnitude(quantity, policy.models, actual, predicted, means))
    return tuple(report for report in found if report)


def _comparison(
    catalog: Catalog,
    models: tuple[str, ...],
    points: OperatingPoints,
    estimates: Estimates,
    held: Held,
    baseline: SegmentMeans,
    notes: list[str],
) -> tuple[Comparison | None, Pictures | None]:
    offered = np.array([name in {offer.model for offer in catalog.offers} for name in models])
    cost = _costs(Policy(catalog, models, points), estimates, held, offered, notes)
    observed = ~np.isnan(held.success) & ~np.isnan(cost) & offered
    block = metrics.complete_block(observed)
    if len(block.columns) < 2 or len(block.rows) < max(_FEWEST_PROMPTS, _LEAST_SHARE * len(observed)):
        notes.append(
            "cannot tell: the logs hold one model's outcome for most prompts, and what another choice would have "
            "brought is not in them, so there is no cost-quality curve here"
        )
        return None, None
    left_out = [models[j] for j in block.columns_left_out if offered[j]]
    if left_out:
        notes.append(f"not compared, for want of outcomes on the same prompts or of a price: {', '.join(left_out)}")
        notes.append(
            "quality targets are set for all offered models together, so they cannot be judged on a part of them"
        )
    rows, columns = block.rows, block.columns
    names = tuple(models[j] for j in columns)
    sold = catalog.only(names)
    policy, promising = Policy(sold, models, points.plug_in()), Policy(sold, models, points.promised())
    part = estimates.take(rows)
    expected = policy.price(part)
    served = np.asarray(policy.eligible(part, expected).any(axis=1))
    if not served.all():
        notes.append(f"{int((~served).sum())} prompts fit no offer's limits and are left out")
        rows, part, expected = rows[served], part.take(served), expected[served]
    success, cost = held.success[np.ix_(rows, columns)], cost[np.ix_(rows, columns)]
    place = np.full(len(models), -1)
    place[columns] = np.arange(len(columns))
    to_column = place[policy.column]

    grid = willingness_grid(expected)
    ours = np.stack(
        [to_column[policy.choose_at(part, points.rule, level, expected).chosen] for level in _levels(points, grid)]
    )
    table = baseline.success[held.segment[rows]][:, columns]
    price = np.where(np.isnan(baseline.cost_usd[columns]), np.nanmean(cost, axis=0), baseline.cost_usd[columns])
    by_segment = np.stack([(table - level * price).argmax(axis=1) for level in grid])
    figures, gains, sweep, curves = _figures(success, cost, ours, by_segment)
    comparison = Comparison(
        n_prompts=len(rows),
        models=names,
        best_model=names[sweep.best],
        best_quality=float(sweep.model_quality[sweep.best]),
        best_cost_usd_per_1000=1000 * float(sweep.model_cost[sweep.best]),
        cheapest_model=names[sweep.cheapest],
        figures=figures,
        aiq_gain=gains,
        targets=()
        if left_out
        else tuple(
            target_figures(policy, promising, part, to_column, success, cost, sweep, names, target)
            for target in points.quality_targets
        ),
        two_models=_two_models(success, ours) if len(names) == 2 else None,
        confidence=points.confidence or DEFAULT_CONFIDENCE,
        promise_in_force=points.confidence is not None,
    )
    return comparison, Pictures(sweep, names, curves)


def _levels(points: OperatingPoints, grid: Float64Array) -> Float64Array:
    return grid if points.rule is Rule.PROMISE else np.linspace(0, 1, 201)


def _costs(
    policy: Policy, estimates: Estimates, held: Held, offered: NDArray[np.bool_], notes: list[str]
) -> Float64Array:
    """Logged cost; where a model's cost was never logged, the expected price of its cheapest offer."""
    missing = np.isnan(held.cost_usd) & offered
    counted = missing & ~np.isnan(held.success)
    if counted.any():
        names = [policy.models[j] for j in np.flatnonzero(counted.any(axis=0))]
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        notes.append(
            f"{int(counted.sum()):,} outcomes have no logged cost ({shown}); the catalog's expected price stands in"
        )
    return np.where(missing, _expected_cost(policy, estimates, held), held.cost_usd)


def _expected_cost(policy: Policy, estimates: Estimates, held: Held) -> Float64Array:
    """[n, m], of each model's cheapest offer; what the provider's cache held is known before a call, so it counts."""
    return policy.cheapest(policy.price(estimates, cached=held.cached_input_tokens))


def _figures(
    success: Float64Array, cost: Float64Array, ours: NDArray[np.intp], by_segment: NDArray[np.intp]
) -> tuple[dict[str, CurveFigures], dict[str, Interval], SweepPoints, dict[str, metrics.Curve]]:
    sweeps = {"router": ours, "segment means": by_segment, "oracle": metrics.oracle_choices(success, cost)[None]}

    def all_points(weights: Weights) -> list[dict[str, SweepPoints]]:
        of = {name: metrics.resampled_points(success, cost, choice, weights) for name, choice in sweeps.items()}
        return [_with_fixed({name: of[name][i] for name in sweeps}) for i in range(len(weights))]

    def gains(weights: Weights) -> NDArray[np.float64]:
        return np.array(
            [[metrics.aiq(p["router"]) - metrics.aiq(p[name]) for name in compared] for p in all_points(weights)]
        )

    whole = all_points(np.ones((1, len(success)), dtype=np.int64))[0]
    compared = [name for name in whole if name not in ("router", "oracle")]
    intervals = bootstrap(gains, len(success), repeats=_REPEATS)
    figures = {name: _curve_figures(points) for name, points in whole.items()}
    # The hull of single models is drawn by the picture itself.
    curves = {name: metrics.router_curve(whole[name]) for name in compared if name != "single-model hull"}
    return figures, dict(zip(compared, intervals, strict=True)), whole["router"], curves


def _with_fixed(points: dict[str, SweepPoints]) -> dict[str, SweepPoints]:
    """Adds the baselines that look at no prompt: they are made of single models' points."""
    r = points["router"]
    fixed = {
        "single-model hull": SweepPoints(
            r.model_cost, r.model_quality, r.model_cost, r.model_quality, r.cheapest, r.best
        ),
        "random mix": SweepPoints(
            r.model_cost[[r.best]], r.model_quality[[r.best]], r.model_cost, r.model_quality, r.cheapest, r.best
        ),
    }
    return {"router": r, "segment means": points["segment means"], **fixed, "oracle": points["oracle"]}


def _curve_figures(points: SweepPoints) -> CurveFigures:
    return CurveFigures(
        metrics.aiq(points),
        metrics.quality_at(points, 0.2),
        metrics.quality_at(points, 0.5),
        *(metrics.cost_share(points, share) for share in _SHARES),
    )


def _two_models(success: Float64Array, ours: NDArray[np.intp]) -> TwoModelFigures:
    points = metrics.sweep_points(success, metrics.strong_model_calls(success), ours)
    return TwoModelFigures(metrics.apgr(points), metrics.cpt(points, 0.5), metrics.cpt(points, 0.8))
