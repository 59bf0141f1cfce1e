"""How right off-policy estimates are: logs drawn again and again from a population whose truth is known.

A population is a set of prompts on which every model's outcome is known. One replication draws units with
replacement (a unit is a prompt, asked one to three times, or a session), lets a logging policy choose a model for
each request, keeps that outcome alone, and estimates what each target policy is worth. The truth is the mean of a
target's reward over the population, so bias, coverage and wrong verdicts can be counted. Array letters: N prompts
of the population, n requests of one log, m models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Float64Array
from training.off_policy import ESTIMATORS, LoggedRows, Verdict
from training.off_policy.bound import finite_sample_bound
from training.off_policy.compare import Standard, compare
from training.off_policy.overlap import effective_sample_size, overlap_of
from training.off_policy.uncertainty import studentised_intervals

STANDARDS = {"success": Standard(), "cost": Standard(margin=0.02, higher_is_better=False, largest=np.inf)}
"""By metric."""


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """N prompts with every outcome, policies over them, and estimates that saw none of them."""

    name: str
    reward: dict[str, Float64Array]
    """Metric -> [N, m]; cost as a share of the dearest model's mean."""
    q: dict[str, Float64Array]
    unit: NDArray[np.int64]
    """[N], what is drawn as a whole."""
    segment: NDArray[np.int64]
    asked: int
    """Each prompt of a unit is asked one to so many times."""
    logging: dict[str, Float64Array]
    """Name -> probabilities [N, m]."""
    targets: dict[str, Float64Array]

    def truth(self, policy: Float64Array, metric: str) -> float:
        """Value of a policy [N, m] over the population."""
        return float((policy * self.reward[metric]).sum(axis=1).mean())


@dataclass(frozen=True, slots=True)
class StudySettings:
    """Size of the study."""

    replications: int = 200
    requests: int = 3000
    """Of one log, about."""
    resamples: int = 1000
    """Of one interval."""
    seed: int = 0
    bounds: bool = True
    """Also finite-sample bounds, which take time."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One estimator of one metric of one target under one logging policy."""

    population: str
    logging: str
    target: str
    metric: str
    estimator: str
    truth: float
    effective_sample_size: float
    """Mean over the replications, as are bias, width and coverage."""
    bias: float
    rmse: float
    coverage: float
    width: float


@dataclass(frozen=True, slots=True)
class VerdictCell:
    """Verdicts on one metric of one target against one logging policy."""

    population: str
    logging: str
    target: str
    metric: str
    gain: float
    """True difference, positive where the target is better."""
    effective_sample_size: float
    share: dict[str, float]
    """Verdict -> share of the replications."""
    difference_coverage: float
    bound_coverage: float | None
    """Of the finite-sample bound; success alone."""
    bound_width: float | None

    @property
    def wrong(self) -> float:
        """Share of the replications with a verdict of the wrong sign."""
        said = self.share.get(str(Verdict.BETTER), 0.0) if self.gain <= 0 else 0.0
        return said + (self.share.get(str(Verdict.WORSE), 0.0) if self.gain >= 0 else 0.0)


@dataclass(frozen=True, slots=True)
class StudyReport:
    """All cells."""

    cells: tuple[Cell, ...]
    verdicts: tuple[VerdictCell, ...]


@dataclass(frozen=True, slots=True)
class _Log:
    """One log: which prompt of the population each of n requests was, what was called, who drew it."""

    prompt: NDArray[np.int64]
    action: NDArray[np.int64]
    cluster: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Judged:
    """One comparison: verdict, interval of the difference, finite-sample bound."""

    verdict: Verdict
    low: float
    high: float
    bound_low: float
    bound_high: float


def study_cells(population: Population, logging: str, settings: StudySettings) -> StudyReport:
    """All targets and estimators under one logging policy."""
    names = list(ESTIMATORS)
    probability = population.logging[logging]
    keys = [(target, metric) for target in population.targets for metric in STANDARDS]
    found = {key: np.zeros((settings.replications, len(names), 3)) for key in keys}
    sizes = {target: np.zeros(settings.replications) for target in population.targets}
    judged: dict[tuple[str, str], list[_Judged]] = {key: [] for key in keys}
    for r, log in enumerate(_logs(population, probability, settings)):
        rows = {key: _rows(population, probability, log, *key) for key in keys}
        contributions = [[ESTIMATORS[name](rows[key]) for name in names] for key in keys]
        flat = [each for some in contributions for each in some]
        intervals = studentised_intervals(
            np.array([each.value for each in flat]),
            np.column_stack([each.influence for each in flat]),
            log.cluster,
            repeats=settings.resamples,
            seed=r,
        )
        for k, key in enumerate(keys):
            some = intervals[k * len(names) : (k + 1) * len(names)]
            found[key][r] = [(each.estimate, each.low, each.high) for each in some]
            sizes[key[0]][r] = effective_sample_size(rows[key].weight)
            judged[key].append(_judged(population, log, rows[key], key[1], settings, r))
    cells, verdicts = [], []
    for key in keys:
        target, metric = key
        truth = population.truth(population.targets[target], metric)
        base = population.truth(probability, metric)
        size = float(sizes[target].mean())
        for j, name in enumerate(names):
            cells.append(_cell(population.name, logging, key, name, truth, size, found[key][:, j]))
        verdicts.append(_verdict_cell(population.name, logging, key, truth, base, size, judged[key]))
    return StudyReport(tuple(cells), tuple(verdicts))


def _logs(population: Population, probability: Float64Array, settings: StudySettings) -> Iterator[_Log]:
    rng = np.random.default_rng(settings.seed)
    _, unit = np.unique(population.unit, return_inverse=True)
    members = np.argsort(unit, kind="stable")
    start = np.searchsorted(unit[members], np.arange(unit.max() + 2))
    mean_size = len(unit) / (unit.max() + 1) * (1 + population.asked) / 2
    cumulative = probability.cumsum(axis=1)
    for _ in range(settings.replications):
        drawn = rng.integers(unit.max() + 1, size=round(settings.requests / mean_size))
        size = start[drawn + 1] - start[drawn]
        cluster = np.repeat(np.arange(len(drawn)), size)
        offset = np.arange(len(cluster)) - np.repeat(size.cumsum() - size, size)
        prompt = members[start[drawn][cluster] + offset]
        times = rng.integers(1, population.asked + 1, size=len(prompt))
        prompt, cluster = np.repeat(prompt, times), np.repeat(cluster, times)
        # A total a hair below 1 must not choose a model beyond the last.
        uniform = rng.random((len(prompt), 1)) * cumulative[prompt, -1:]
        yield _Log(prompt, (uniform >= cumulative[prompt]).sum(axis=1), cluster)


def _rows(population: Population, probability: Float64Array, log: _Log, target: str, metric: str) -> LoggedRows:
    return LoggedRows(
        reward=population.reward[metric][log.prompt, log.action],
        action=log.action,
        propensity=np.minimum(probability[log.prompt, log.action], 1.0),
        target=population.targets[target][log.prompt],
        q=population.q[metric][log.prompt],
        cluster=log.cluster,
    )


def _judged(
    population: Population, log: _Log, rows: LoggedRows, metric: str, settings: StudySettings, seed: int
) -> _Judged:
    overlap = overlap_of(rows, population.segment[log.prompt], [str(s) for s in range(population.segment.max())])
    standard = STANDARDS[metric]
    found = compare(rows, overlap, standard=standard, repeats=settings.resamples, seed=seed)
    bound = (np.nan, np.nan)
    if metric == "success" and settings.bounds:
        bound = finite_sample_bound(rows, found.estimate.value)
    return _Judged(found.verdict, found.difference.low, found.difference.high, *bound)


def _cell(
    population: str, logging: str, key: tuple[str, str], name: str, truth: float, size: float, found: Float64Array
) -> Cell:
    """`found` is [replications, 3]: estimate, low, high."""
    error = found[:, 0] - truth
    covered = (found[:, 1] <= truth) & (truth <= found[:, 2])
    width = float(np.median(found[:, 2] - found[:, 1]))
    rmse = float(np.sqrt((error**2).mean()))
    return Cell(population, logging, *key, name, truth, size, float(error.mean()), rmse, float(covered.mean()), width)


def _verdict_cell(
    population: str, logging: str, key: tuple[str, str], truth: float, base: float, size: float, judged: list[_Judged]
) -> VerdictCell:
    low, high, bound_low, bound_high = (
        np.array([getattr(each, name) for each in judged]) for name in ("low", "high", "bound_low", "bound_high")
    )
    difference = truth - base
    bounded = not np.isnan(bound_low).any()
    return VerdictCell(
        population,
        logging,
        *key,
        gain=difference if STANDARDS[key[1]].higher_is_better else -difference,
        effective_sample_size=size,
        share={str(v): float(np.mean([each.verdict is v for each in judged])) for v in Verdict},
        difference_coverage=float(((low <= difference) & (difference <= high)).mean()),
        bound_coverage=float(((bound_low <= truth) & (truth <= bound_high)).mean()) if bounded else None,
        bound_width=float((bound_high - bound_low).mean()) if bounded else None,
    )
