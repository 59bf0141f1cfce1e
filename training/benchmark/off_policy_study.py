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
from training.intervals import Interval
from training.off_policy import DEFAULT, ESTIMATORS, LoggedRows, Verdict
from training.off_policy.bound import finite_sample_bound
from training.off_policy.compare import PolicyComparison, Standard, judge, paired
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
    bounds: int = 100
    """Replications with a finite-sample bound of the first target's success, which takes time."""


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
    """Mean over the replications."""
    bias: float
    rmse: float
    coverage: float
    width: float
    """Median."""


@dataclass(frozen=True, slots=True)
class VerdictCell:
    """Verdicts on one metric of one target against a baseline: the logging policy, or another target."""

    population: str
    logging: str
    target: str
    baseline: str
    metric: str
    gain: float
    """True difference, positive where the target is better."""
    deciding_rows: float
    """Mean effective number of rows that show what the target does otherwise."""
    share: dict[str, float]
    """Verdict -> share of the replications."""
    coverage: float
    """Of the interval of the difference."""

    @property
    def wrong(self) -> float:
        """Share of the replications with a verdict of the wrong sign."""
        said = self.share[str(Verdict.BETTER)] if self.gain <= 0 else 0.0
        return said + (self.share[str(Verdict.WORSE)] if self.gain >= 0 else 0.0)


@dataclass(frozen=True, slots=True)
class BoundCell:
    """The finite-sample bound of one target's success."""

    population: str
    logging: str
    target: str
    coverage: float
    width: float


@dataclass(frozen=True, slots=True)
class StudyReport:
    """All cells."""

    cells: tuple[Cell, ...]
    verdicts: tuple[VerdictCell, ...]
    bounds: tuple[BoundCell, ...]


@dataclass(frozen=True, slots=True)
class _Log:
    """One log: which prompt of the population each of n requests was, what was called, who drew it."""

    prompt: NDArray[np.int64]
    action: NDArray[np.int64]
    cluster: NDArray[np.int64]


LOGGED = "as logged"
"""The baseline that is the logging policy."""


def study_cells(population: Population, logging: str, settings: StudySettings) -> StudyReport:
    """All targets, baselines and estimators under one logging policy."""
    probability = population.logging[logging]
    keys = [(target, metric) for target in population.targets for metric in STANDARDS]
    contests = [
        (target, baseline, metric)
        for target, metric in keys
        for baseline in (LOGGED, *population.targets)
        if baseline != target
    ]
    alone: list[list[Interval]] = []
    sizes: list[list[float]] = []
    judged: list[list[PolicyComparison]] = []
    bounds: list[tuple[float, float]] = []
    for r, log in enumerate(_logs(population, probability, settings)):
        rows = {key: _rows(population, probability, log, *key) for key in keys}
        baselines = {name: policy[log.prompt] for name, policy in population.targets.items()}
        single = [use(rows[key]) for key in keys for use in ESTIMATORS.values()]
        pairs = [paired(rows[target, metric], baselines.get(base), DEFAULT) for target, base, metric in contests]
        intervals = studentised_intervals(
            np.concatenate([[each.value for each in single], *(values for values, _ in pairs)]),
            np.column_stack([*(each.influence for each in single), *(influence for _, influence in pairs)]),
            log.cluster,
            repeats=settings.resamples,
            seed=r,
        )
        alone.append(intervals[: len(single)])
        sizes.append([effective_sample_size(rows[key].weight) for key in keys])
        names = [str(s) for s in range(population.segment.max())]
        overlap = {key: overlap_of(rows[key], population.segment[log.prompt], names) for key in keys}
        judged.append(
            [
                judge(
                    rows[target, metric],
                    overlap[target, metric],
                    intervals[len(single) + 3 * c :][:3],
                    baseline=baselines.get(base),
                    standard=STANDARDS[metric],
                    estimator=DEFAULT,
                )
                for c, (target, base, metric) in enumerate(contests)
            ]
        )
        if r < settings.bounds:
            bounds.append(finite_sample_bound(rows[keys[0]], alone[-1][0].estimate))
    where = (population.name, logging)
    cells = []
    for k, (key, name) in enumerate((key, name) for key in keys for name in ESTIMATORS):
        truth = population.truth(population.targets[key[0]], key[1])
        size = float(np.mean([each[keys.index(key)] for each in sizes]))
        cells.append(_cell((*where, *key, name), truth, size, [each[k] for each in alone]))
    verdicts = []
    for c, contest in enumerate(contests):
        target, base, metric = contest
        policy = population.targets.get(base, probability)
        difference = population.truth(population.targets[target], metric) - population.truth(policy, metric)
        verdicts.append(_verdict_cell((*where, *contest), difference, [each[c] for each in judged]))
    target, metric = keys[0]
    truth = population.truth(population.targets[target], metric)
    return StudyReport(tuple(cells), tuple(verdicts), (_bound_cell((*where, target), truth, bounds),) if bounds else ())


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


def _cell(names: tuple[str, str, str, str, str], truth: float, size: float, found: list[Interval]) -> Cell:
    error = np.array([each.estimate for each in found]) - truth
    return Cell(
        *names,
        truth=truth,
        effective_sample_size=size,
        bias=float(error.mean()),
        rmse=float(np.sqrt((error**2).mean())),
        coverage=float(np.mean([each.low <= truth <= each.high for each in found])),
        width=float(np.median([each.high - each.low for each in found])),
    )


def _verdict_cell(
    names: tuple[str, str, str, str, str], difference: float, judged: list[PolicyComparison]
) -> VerdictCell:
    return VerdictCell(
        *names,
        gain=difference if STANDARDS[names[-1]].higher_is_better else -difference,
        deciding_rows=float(np.mean([each.deciding_rows for each in judged])),
        share={str(verdict): float(np.mean([each.verdict is verdict for each in judged])) for verdict in Verdict},
        coverage=float(np.mean([each.difference.low <= difference <= each.difference.high for each in judged])),
    )


def _bound_cell(names: tuple[str, str, str], truth: float, bounds: list[tuple[float, float]]) -> BoundCell:
    covered = float(np.mean([low <= truth <= high for low, high in bounds]))
    return BoundCell(*names, coverage=covered, width=float(np.mean([high - low for low, high in bounds])))
