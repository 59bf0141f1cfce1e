"""Who is ahead, and whether that is more than noise.

A table's figure is the mean over its random splits; the file's own split stands apart.
Test parts of several splits overlap, so a resample draws prompts of the whole table, and
each prompt counts the same in every split that tests on it (paired bootstrap over
prompts). Pooled figures weigh each table the same; tables are resampled independently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Float64Array
from training import metrics
from training.benchmark.contest import FEWEST_ROWS, NOT_RIVALS, OURS, Round
from training.intervals import Interval, interval_of
from training.metrics import SweepPoints

REPEATS = 500
_SHARES = (0.97, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Line:
    """One contestant: means over splits. Costs are shares of the best single model's; never reached counts as 1."""

    aiq: float
    quality_at_20: float | None
    """Quality at 20 % of the best single model's cost; None where some split has nothing so cheap."""
    quality_at_50: float | None
    cost_share_97: float
    """1 where the quality is never reached: whoever needs it calls the best model."""
    cost_share_99: float
    cost_share_100: float
    brier: float | None
    """None for what gives no probabilities."""
    ece: float | None
    """Of all test rows of all splits together."""
    aiq_gain: Interval | None
    """Router minus this one."""
    cost_share_99_gain: Interval | None
    """The same of the cost share at 99 %: negative is cheaper."""


@dataclass(frozen=True, slots=True)
class ModelCalibration:
    """Calibration error of our router on one model, over the test rows of all splits."""

    n_rows: int
    """Distinct prompts with an outcome; a prompt tested in several splits is rated in each."""
    ece: float
    by_chance: float
    """What a perfectly calibrated router would show on as many rows, by noise alone; mean of simulations."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One table, or all of them, with the segment known or hidden."""

    table: str
    splits: tuple[str, ...]
    segment_known: bool
    n_models: int
    n_prompts: int
    """Judged in each split, on average."""
    lines: dict[str, Line]
    calibration: dict[str, ModelCalibration]
    """By model, those with enough rows."""
    deployed: float
    """Share of splits whose verdict was to deploy the router; in the others its fallback played."""
    seconds: dict[str, float]
    """To fit and predict, mean over splits."""
    two_models: dict[str, float] | None
    """APGR and CPT of our router, where two models are compared."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def best_baseline(self) -> str:
        """Of highest AIQ."""
        rivals = [name for name in self.lines if name not in NOT_RIVALS]
        return max(rivals, key=lambda name: self.lines[name].aiq)


@dataclass(frozen=True, slots=True)
class Draws:
    """Figures of every contestant: as they are [0] and under each resample [1:]."""

    aiq: dict[str, Float64Array]
    cost_99: dict[str, Float64Array]


def standing(rounds: Sequence[Round], n_prompts: int) -> tuple[Standing, Draws]:
    """Rounds of one table with one knowledge of the segment; `n_prompts` is the size of the whole table."""
    points = [_points(each) for each in rounds]
    draws = _draws(rounds, n_prompts)
    lines = {name: _line(name, rounds, [of[name] for of in points], draws) for name in draws.aiq}
    standing = Standing(
        table=rounds[0].table,
        splits=tuple(each.split for each in rounds),
        segment_known=rounds[0].segment_known,
        n_models=rounds[0].success.shape[1],
        n_prompts=round(float(np.mean([len(each.rows) for each in rounds]))),
        lines=lines,
        calibration=_calibration(rounds),
        deployed=float(np.mean([one.verdict.deploy for one in rounds])),
        seconds={name: float(np.mean([one.seconds[name] for one in rounds])) for name in rounds[0].seconds},
        two_models=_two_models(rounds),
    )
    return standing, draws


def pooled(standings: Sequence[Standing], draws: Sequence[Draws]) -> Standing:
    """All tables together, each weighing the same."""
    names = [name for name in standings[0].lines if all(name in each.lines for each in standings)]
    together = Draws(
        {name: np.mean([each.aiq[name] for each in draws], axis=0) for name in names},
        {name: np.mean([each.cost_99[name] for each in draws], axis=0) for name in names},
    )

    def mean(name: str, figure: str) -> Any:
        values = [getattr(each.lines[name], figure) for each in standings]
        return None if any(value is None for value in values) else float(np.mean(values))

    figures = ("quality_at_20", "quality_at_50", "cost_share_97", "cost_share_100", "brier", "ece")
    lines = {
        name: Line(
            aiq=float(together.aiq[name][0]),
            cost_share_99=float(together.cost_99[name][0]),
            aiq_gain=_gain(together.aiq, name),
            cost_share_99_gain=_gain(together.cost_99, name),
            **{figure: mean(name, figure) for figure in figures},
        )
        for name in names
    }
    first = standings[0]
    total = sum(each.n_prompts for each in standings)
    tables = " + ".join(each.table for each in standings)
    deployed = float(np.mean([each.deployed for each in standings]))
    return Standing(tables, first.splits, first.segment_known, 0, total, lines, {}, deployed, {}, None)


def _points(one: Round) -> dict[str, SweepPoints]:
    return {name: metrics.sweep_points(one.success, one.cost_usd, each) for name, each in one.choices.items()}


def _draws(rounds: Sequence[Round], n_prompts: int) -> Draws:
    rng = np.random.default_rng(0)
    weights = np.stack([np.ones(n_prompts, np.int64), *(_resample(rng, n_prompts) for _ in range(REPEATS))])
    names = [name for name in rounds[0].choices if all(name in one.choices for one in rounds)]
    aiq = {name: np.zeros(len(weights)) for name in names}
    cost_99 = {name: np.zeros(len(weights)) for name in names}
    for one in rounds:
        here = weights[:, one.rows]
        for name in names:
            points = metrics.resampled_points(one.success, one.cost_usd, one.choices[name], here)
            aiq[name] += [metrics.aiq(each) for each in points]
            cost_99[name] += [_cost_share(each, 0.99) for each in points]
    n = len(rounds)
    return Draws({name: aiq[name] / n for name in names}, {name: cost_99[name] / n for name in names})


def _resample(rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    return np.bincount(rng.integers(n, size=n), minlength=n)


def _line(name: str, rounds: Sequence[Round], points: Sequence[SweepPoints], draws: Draws) -> Line:
    at_20, at_50 = ([metrics.quality_at(each, share) for each in points] for share in (0.2, 0.5))
    shares = np.mean([[_cost_share(each, share) for share in _SHARES] for each in points], axis=0)
    brier = ece = None
    if name in rounds[0].beliefs:
        p, y = (np.concatenate(parts) for parts in zip(*(_known(one, name) for one in rounds), strict=True))
        brier = float(np.mean([one.beliefs[name].brier for one in rounds]))
        ece = metrics.calibration_error(p, y)
    return Line(
        aiq=float(draws.aiq[name][0]),
        quality_at_20=_mean(at_20),
        quality_at_50=_mean(at_50),
        cost_share_97=float(shares[0]),
        cost_share_99=float(shares[1]),
        cost_share_100=float(shares[2]),
        brier=brier,
        ece=ece,
        aiq_gain=_gain(draws.aiq, name),
        cost_share_99_gain=_gain(draws.cost_99, name),
    )


def _known(one: Round, name: str) -> tuple[Float64Array, Float64Array]:
    known = ~np.isnan(one.outcomes)
    return one.beliefs[name].p[known], one.outcomes[known]


def _gain(values: dict[str, Float64Array], name: str) -> Interval | None:
    if name in NOT_RIVALS:
        return None
    difference = values[OURS] - values[name]
    return interval_of(float(difference[0]), difference[1:])


def _calibration(rounds: Sequence[Round]) -> dict[str, ModelCalibration]:
    found = {}
    rng = np.random.default_rng(0)
    for j, model in enumerate(rounds[0].models):
        rated = [(one.beliefs[OURS].p[:, j], one.outcomes[:, j], one.test) for one in rounds]
        p, y, prompt = (np.concatenate(parts) for parts in zip(*rated, strict=True))
        known = ~np.isnan(y)
        p, y, prompt = p[known], y[known], prompt[known]
        distinct = len(np.unique(prompt))
        if distinct < FEWEST_ROWS:
            continue
        found[model] = ModelCalibration(distinct, metrics.calibration_error(p, y), _by_chance(p, prompt, rng))
    return found


def _by_chance(p: Float64Array, prompt: NDArray[np.int64], rng: np.random.Generator) -> float:
    """ECE of outcomes drawn from `p` itself: one uniform number per prompt, so that splits agree on it."""
    drawn = rng.random((40, int(prompt.max()) + 1))[:, prompt] < p
    return float(np.mean([metrics.calibration_error(p, each.astype(np.float64)) for each in drawn]))


def _two_models(rounds: Sequence[Round]) -> dict[str, float] | None:
    if rounds[0].success.shape[1] != 2:
        return None
    points = [
        metrics.sweep_points(one.success, metrics.strong_model_calls(one.success), one.choices[OURS]) for one in rounds
    ]
    return {
        "apgr": float(np.mean([metrics.apgr(each) for each in points])),
        "cpt_50": float(np.mean([metrics.cpt(each, 0.5) for each in points])),
        "cpt_80": float(np.mean([metrics.cpt(each, 0.8) for each in points])),
    }


def _cost_share(points: SweepPoints, share: float) -> float:
    found = metrics.cost_share(points, share)
    return 1.0 if found is None else min(1.0, found)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
