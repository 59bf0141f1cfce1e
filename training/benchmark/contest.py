"""All contestants on one split of one table: what each would have chosen, and how sure each said it was."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from router_ml.catalog import Catalog
from router_ml.operating_points import OperatingPoints
from router_ml.policy import Policy
from router_ml.types import Estimates, Float64Array, Rule
from training import metrics
from training.benchmark.baselines import BASELINES, MEAN_OF_LEARNED, Learner, Sample, mean_of_learned
from training.benchmark.tables import Parts, Table
from training.dataset import Dataset
from training.derived_prices import catalog_from_logs
from training.export import estimates_of
from training.fit import FitSettings
from training.metrics import Ints
from training.operating import willingness_grid
from training.verdict import Layer, Verdict
from training.version import Fitted, fit_verdict, fit_version

OURS = "router-ml"
BEST_SINGLE = "best single model"
HULL = "single-model hull"
ORACLE = "oracle"
WITHOUT_VERDICT = "router-ml, deployed all the same"
NOT_RIVALS = (OURS, WITHOUT_VERDICT, ORACLE)

FEWEST_ROWS = 200
"""Test rows that a model needs for a calibration error of its own."""


@dataclass(frozen=True, slots=True)
class Beliefs:
    """How good probabilities are, on every known test outcome."""

    brier: float
    ece: float
    p: Float64Array
    """[n test, m], kept so that splits can be pooled."""


@dataclass(frozen=True, slots=True)
class Round:
    """One split of one table, played by all."""

    table: str
    split: str
    segment_known: bool
    rows: Ints
    """[n], prompts judged, as indices into the table: those with an outcome and a cost of every model compared."""
    success: Float64Array
    """[n, m]"""
    cost_usd: Float64Array
    """[n, m]"""
    choices: dict[str, Ints]
    """Contestant -> [s, n], the model chosen at each of its s settings."""
    beliefs: dict[str, Beliefs]
    """Contestants that give probabilities."""
    test: Ints
    """[n test], all prompts held out."""
    outcomes: Float64Array
    """[n test, m], their outcomes; NaN unknown."""
    models: tuple[str, ...]
    """Of `outcomes`."""
    compared: tuple[str, ...]
    """Of `success`."""
    seconds: dict[str, float]
    """To fit and to predict, of each contestant."""
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Fit:
    """Our router, fitted on one part of a table by the code that `train` runs."""

    fitted: Fitted
    models: tuple[str, ...]
    catalog: Catalog
    """Prices that the rows fitted on imply, as `train` has them without a catalog."""

    def estimates(self, table: Table, index: NDArray[np.int64]) -> Estimates:
        """By the very graph that serves."""
        f = self.fitted
        return estimates_of(f.session, table.data, index, f.parts.pad_id, f.ratio)

    def policy(self, columns: Iterable[int]) -> Policy:
        """The policy that serves, over these models."""
        points = OperatingPoints((1.0,), (0.0,), (1.0,), 1.0, Rule.PROMISE)
        return Policy(self.catalog.only({self.models[j] for j in columns}), self.models, points)


def fit_router(table: Table, fit: NDArray[np.int64], settings: FitSettings, layer: Layer = Layer.ROUTER) -> Fit:
    """Fit on the prompts `fit`: no other row of the table is handed over."""
    data = _rows_of(table, fit)
    return Fit(fit_version(data, table.encoder, settings, layer), data.models, catalog_from_logs(data, []))


def verdict_of(table: Table, fit: NDArray[np.int64], router: Fit, settings: FitSettings) -> Verdict:
    """Whether the rows fitted on carry it."""
    return fit_verdict(_rows_of(table, fit), table.encoder, settings, router.fitted, router.catalog)


def _rows_of(table: Table, prompts: NDArray[np.int64]) -> Dataset:
    return table.data.where(np.isin(table.data.rows.prompt, prompts))


def play(table: Table, parts: Parts, settings: FitSettings, learners: dict[str, Learner] | None = None) -> Round:
    """Fit everyone on FIT, judge on TEST; TUNE is left to what sets operating points."""
    known = bool(table.data.segments)
    success, cost = table.success[parts.test], table.cost_usd[parts.test]
    block = metrics.complete_block(~np.isnan(success) & ~np.isnan(cost))
    rows, columns = block.rows, block.columns
    seconds: dict[str, float] = {}

    start = time.perf_counter()
    router = fit_router(table, parts.fit, settings)
    verdict = verdict_of(table, parts.fit, router, settings)
    served = router if verdict.deploy else fit_router(table, parts.fit, settings, verdict.serves)
    estimates = served.estimates(table, parts.test)
    seconds[OURS] = time.perf_counter() - start
    p = {OURS: estimates.p_success.astype(np.float64)}
    choices = {OURS: our_sweep(served, estimates.take(rows), columns)}
    if not verdict.deploy:
        bare = router.estimates(table, parts.test)
        p[WITHOUT_VERDICT] = bare.p_success.astype(np.float64)
        choices[WITHOUT_VERDICT] = our_sweep(router, bare.take(rows), columns)

    train, test = (
        sample_of(table, parts.fit),
        replace(sample_of(table, parts.test), success=np.full_like(success, np.nan)),
    )
    for name, learner in (BASELINES if learners is None else learners).items():
        start = time.perf_counter()
        p[name] = learner(train, test)
        seconds[name] = time.perf_counter() - start
    if learners is None:
        p[MEAN_OF_LEARNED] = mean_of_learned(p)
    price = np.nanmean(table.cost_usd[parts.fit][:, columns], axis=0)
    for name in p:
        if name not in choices:
            choices[name] = sweep(p[name][np.ix_(rows, columns)], np.tile(price, (len(rows), 1)))
    best = int(np.nanmean(train.success, axis=0)[columns].argmax())
    here_success, here_cost = success[np.ix_(rows, columns)], cost[np.ix_(rows, columns)]
    choices[BEST_SINGLE] = np.full((1, len(rows)), best)
    choices[HULL] = np.tile(np.arange(len(columns))[:, None], (1, len(rows)))
    choices[ORACLE] = metrics.oracle_choices(here_success, here_cost)[None]
    return Round(
        table=table.name,
        split=parts.name,
        segment_known=known,
        rows=parts.test[rows],
        success=here_success,
        cost_usd=here_cost,
        choices=choices,
        beliefs={name: _beliefs(value, success) for name, value in p.items()},
        test=parts.test,
        outcomes=success,
        models=table.data.models,
        compared=tuple(table.data.models[j] for j in columns),
        seconds=seconds,
        verdict=verdict,
    )


def sweep(p: Float64Array, price: Float64Array) -> Ints:
    """[s, n]: for each willingness to pay, the highest success minus lambda times price; both [n, m]."""
    return np.stack([(p - level * price).argmax(axis=1) for level in willingness_grid(price)])


def our_sweep(router: Fit, estimates: Estimates, columns: Ints) -> Ints:
    """[s, n], places in `columns`: what the policy that serves chooses at each willingness to pay."""
    policy = router.policy(columns)
    place = np.full(len(router.models), -1)
    place[columns] = np.arange(len(columns))
    cost = policy.price(estimates)
    levels = willingness_grid(cost)
    chosen = [policy.choose_at(estimates, Rule.PROMISE, level, cost).chosen for level in levels]
    return np.asarray(place[policy.column][np.stack(chosen)])


def _beliefs(p: Float64Array, success: Float64Array) -> Beliefs:
    known = ~np.isnan(success)
    return Beliefs(metrics.brier(p[known], success[known]), metrics.calibration_error(p[known], success[known]), p)


def sample_of(table: Table, index: NDArray[np.int64]) -> Sample:
    """What baselines may see of these prompts."""
    prompts = table.data.prompts
    return Sample(
        [table.texts[i] for i in index],
        table.vectors[index],
        prompts.segment[index],
        len(table.data.segments),
        table.success[index],
    )
