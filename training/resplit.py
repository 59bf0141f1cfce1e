"""Does a promised operating point keep its target? Counted over many draws of the prompts that set it.

Two ways to count, from one table of n prompts with the outcomes of all m models:

`population`: the prompts that set the point are drawn from the table with replacement, by default as
many as half of it, and the whole table is the truth. This is the statement that was promised, judged
exactly: the share broken is at most 1 - confidence.

`rest`: a random part sets the point, the others judge. They are a sample too: at a setting that truly
keeps the target with little to spare, their noise breaks the target about half of the time, and what
one part has too much of the other lacks. With halves, a test that errs in exactly 5 % of
populations errs in up to Phi(-1.645 / sqrt(2)) = 12 % of such rests; what this count has above the
other is the judge's noise, and shrinks as the judging part grows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from router_ml.policy import Policy
from router_ml.types import Estimates, Float64Array, Rule
from training.betting import mean_above_zero
from training.intervals import Interval
from training.operating import willingness_grid
from training.promise import Paths, chosen_models

_AT_ONCE = 8
"""Settings tested together; repeats whose sequence has ended drop out between."""


@dataclass(frozen=True, slots=True)
class ResplitSettings:
    """How a study is done."""

    quality_target: float = 0.97
    confidence: float = 0.95
    setting_share: float = 0.5
    """Of the prompts: so many set the point."""
    repeats: int = 500
    seed: int = 0

    def n_setting(self, n: int) -> int:
        return round(self.setting_share * n)


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of the points of one kind."""

    broken: Interval
    """Share of repeats in which the target was not kept, with its exact binomial 95 % interval."""
    not_set: float
    """Share of repeats in which no point could be set: nothing is promised there, and lambda 0 serves."""
    cost_share: float
    """Mean over repeats, of the cost of the best single model."""
    quality_kept: float
    """Mean over repeats, of the quality of the best single model."""


@dataclass(frozen=True, slots=True)
class RuleStudy:
    """One rule, judged in one of the two ways."""

    rule: Rule
    judged_on: str
    """`population` or `rest`."""
    promised: Kept
    plug_in: Kept


@dataclass(frozen=True, slots=True)
class ResplitStudy:
    """Promised and plug-in points side by side."""

    n_prompts: int
    n_models: int
    n_setting: int
    """Prompts that set a point."""
    settings: ResplitSettings
    best_possible: dict[str, float]
    """By rule, the least cost share of a setting that keeps the target on the whole table: hindsight."""
    rules: tuple[RuleStudy, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """The study for a person."""
        s = self.settings
        head = (
            f"target {s.quality_target:.0%} with {100 * s.confidence:.3g} % confidence, {s.repeats} draws of "
            f"{self.n_setting:,} of {self.n_prompts:,} prompts, {self.n_models} models"
        )
        lines = [head]
        for study in self.rules:
            lines.append(f"{study.rule}, judged on the {study.judged_on}:")
            for name, kept in (("promised", study.promised), ("plug-in", study.plug_in)):
                b = kept.broken
                lines.append(
                    f"  {name}: broken {b.estimate:.1%} [{b.low:.1%}, {b.high:.1%}], cost {kept.cost_share:.1%}, "
                    f"quality kept {kept.quality_kept:.1%}, not set {kept.not_set:.1%}"
                )
        for rule, share in self.best_possible.items():
            lines.append(f"{rule}: in hindsight the target costs {share:.1%}")
        return lines


@dataclass(frozen=True, slots=True)
class _Table:
    """Success and cost of single models [n, m], of the settings of a path and of the plug-in sweep [k, n]."""

    success: Float64Array
    cost: Float64Array
    path_success: Float64Array
    path_cost: Float64Array
    sweep_success: Float64Array
    sweep_cost: Float64Array


def study_promise(
    policy: Policy,
    estimates: Estimates,
    success: Float64Array,
    cost_usd: Float64Array,
    paths: Paths,
    settings: ResplitSettings | None = None,
) -> ResplitStudy:
    """Study both rules on complete outcomes [n, m] and the estimates of the same prompts.

    Neither the estimates nor `paths` may come from these prompts. Every prompt needs an offer that
    can serve it; models without an offer are not among the rivals.
    """
    settings = settings or ResplitSettings()
    rivals = np.unique(policy.column)
    grid = willingness_grid(policy.price(estimates))
    sweeps = {Rule.PROMISE: grid, Rule.THRESHOLD: np.linspace(1, 0, 201)}
    n, best_possible, studies = len(success), {}, []
    for rule in Rule:
        path = chosen_models(policy, estimates, rule, paths.of(rule))
        sweep = chosen_models(policy, estimates, rule, sweeps[rule])
        own = success[:, rivals], cost_usd[:, rivals]
        table = _Table(*own, *_of(path, success, cost_usd), *_of(sweep, success, cost_usd))
        best_possible[str(rule)] = _hindsight(table, settings.quality_target)
        studies += [
            _study(table, rule, "population", _with_replacement(n, settings), settings),
            _study(table, rule, "rest", _parted(n, settings), settings),
        ]
    return ResplitStudy(n, len(rivals), settings.n_setting(n), settings, best_possible, tuple(studies))


def _of(chosen: NDArray[np.intp], success: Float64Array, cost: Float64Array) -> tuple[Float64Array, Float64Array]:
    rows = np.arange(len(success))
    return success[rows, chosen], cost[rows, chosen]


def _hindsight(table: _Table, target: float) -> float:
    best = int(table.success.mean(axis=0).argmax())
    reaching = table.sweep_success.mean(axis=1) >= target * table.success[:, best].mean() - 1e-9
    share = table.sweep_cost.mean(axis=1) / table.cost[:, best].mean()
    return float(share[reaching].min()) if reaching.any() else 1.0


@dataclass(frozen=True, slots=True)
class _Draws:
    """Which prompts set the point and which judge it."""

    setting: NDArray[np.intp]
    """[repeats, prompts that set]"""
    judging: Float64Array
    """[repeats, n], weights that add up to 1."""


def _with_replacement(n: int, settings: ResplitSettings) -> _Draws:
    rng = np.random.default_rng(settings.seed)
    return _Draws(rng.integers(n, size=(settings.repeats, settings.n_setting(n))), np.ones((settings.repeats, n)) / n)


def _parted(n: int, settings: ResplitSettings) -> _Draws:
    rng = np.random.default_rng(settings.seed)
    setting = np.stack([rng.permutation(n)[: settings.n_setting(n)] for _ in range(settings.repeats)])
    judging = np.ones((settings.repeats, n))
    np.put_along_axis(judging, setting, 0.0, axis=1)
    return _Draws(setting, judging / judging.sum(axis=1, keepdims=True))


def _study(table: _Table, rule: Rule, judged_on: str, draws: _Draws, settings: ResplitSettings) -> RuleStudy:
    n = len(table.success)
    counts = np.stack([np.bincount(rows, minlength=n) for rows in draws.setting]) / draws.setting.shape[1]
    passed = _n_passing(table, draws.setting, settings)
    quality, best = counts @ table.sweep_success.T, (counts @ table.success).max(axis=1)
    spent = np.where(quality >= settings.quality_target * best[:, None] - 1e-9, counts @ table.sweep_cost.T, np.inf)
    plug_in = np.where(np.isfinite(spent).any(axis=1), spent.argmin(axis=1), -1)
    return RuleStudy(
        rule,
        judged_on,
        _judge(table, table.path_success, table.path_cost, passed - 1, draws, settings),
        _judge(table, table.sweep_success, table.sweep_cost, plug_in, draws, settings),
    )


def _n_passing(table: _Table, setting: NDArray[np.intp], settings: ResplitSettings) -> NDArray[np.intp]:
    """[repeats], `promise.n_passing` of all repeats at once; their draws are in random order already."""
    passed = np.zeros(len(setting), dtype=np.intp)
    running, k = np.arange(len(setting)), len(table.path_success)
    for begin, end in pairwise([*range(0, k, _AT_ONCE), k]):
        ok = _passing(table, table.path_success[begin:end], setting[running], settings)
        passed[running] += np.where(ok.all(axis=1), end - begin, ok.argmin(axis=1))
        running = running[ok.all(axis=1)]
        if not running.size:
            break
    return passed


def _passing(
    table: _Table, path_success: Float64Array, setting: NDArray[np.intp], settings: ResplitSettings
) -> NDArray[np.bool_]:
    """[repeats, settings of the path]"""
    q = settings.quality_target

    def draw(start: int, stop: int) -> Float64Array:
        rows = setting[:, start:stop]
        own = np.moveaxis(path_success[:, rows], 0, 1)  # [repeats, settings, rows]
        rivals = np.moveaxis(table.success[rows], 2, 1)  # [repeats, models, rows]
        return own[:, :, None] - q * rivals[:, None]

    shape = len(setting), len(path_success), table.success.shape[1]
    found = mean_above_zero(draw, shape, setting.shape[1], reach=q, alpha=1 - settings.confidence)
    return np.asarray(found.all(axis=2))


def _judge(
    table: _Table,
    success: Float64Array,
    cost: Float64Array,
    at: NDArray[np.intp],
    draws: _Draws,
    settings: ResplitSettings,
) -> Kept:
    repeats, best = np.arange(len(at)), int(table.success.mean(axis=0).argmax())
    # Setting 0 of path and sweep is the safest, which serves where no point could be set.
    quality = (draws.judging @ success.T)[repeats, np.maximum(at, 0)]
    spent = (draws.judging @ cost.T)[repeats, np.maximum(at, 0)]
    kept = quality / (draws.judging @ table.success).max(axis=1)
    broken = (kept < settings.quality_target - 1e-9) & (at >= 0)
    return Kept(
        broken=_share(int(broken.sum()), len(at)),
        not_set=float((at < 0).mean()),
        cost_share=float((spent / (draws.judging @ table.cost[:, best])).mean()),
        quality_kept=float(kept.mean()),
    )


def _share(count: int, n: int) -> Interval:
    exact = binomtest(count, n).proportion_ci(0.95)
    return Interval(count / n, float(exact.low), float(exact.high))
