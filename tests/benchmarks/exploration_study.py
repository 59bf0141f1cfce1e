"""Which exploration rule teaches more: `python tests/benchmarks/exploration_study.py [--worlds N] [--share S]`.

In each of N simulated worlds a first version is fitted on what a logging policy left behind. Then, round after
round, it decides, a share of its decisions is left to chance, the outcomes of what was called are logged, and the next
version is fitted on all logs so far. Scenario `even`: the first logs hold every model. Scenario `new model`: they hold
only some outcomes of the model that would be chosen most often if all were known.

Printed are means over worlds, and the mean and standard error of the paired difference to no exploration: the share of
decisions that were explored, what they cost beside the policy's own choice, and, on fresh prompts by their true
probabilities, the quality index (AIQ) of the last version and the value it loses to the best possible choices (success
minus willingness to pay times cost, in points). And how well the last round's log, of decisions of the version before,
judges the last version by inverse propensities: effective sample size, and decisions that could not have been logged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from router_ml.exploration import Exploration, ExplorationRule, probabilities
from router_ml.types import Rule
from training.dataset import Dataset, build_dataset
from training.encoder import EncoderSettings, prepare_encoder
from training.fit import FitSettings, SuccessModel, fit_success
from training.linear import LinearSettings
from training.metrics import aiq, sweep_points
from training.synthetic.table import outcome_batch, truth_batch
from training.synthetic.traffic import TrafficSettings, draw_traffic
from training.synthetic.world import World
from training.trees import TreeSettings
from training.uncertainty import fit_uncertainty

SETTINGS = FitSettings(linear=LinearSettings(scale=0.35, own_scale=1.0), trees=TreeSettings(n_threads=1))
TARGET = 0.97
FIRST, ROUND, ROUNDS, FRESH = 1000, 1000, 3, 2000
FEW = 15
"""Outcomes of the new model in the first logs."""


@dataclass
class Truth:
    """What is true of n prompts and m models."""

    data: Dataset
    p: np.ndarray
    cost: np.ndarray
    logging: np.ndarray
    vocabulary: int


def truth_of(seed: int) -> Truth:
    """Prompts of a world with the truth in the place of outcomes."""
    encoder = prepare_encoder(EncoderSettings())
    n = FIRST + ROUND * ROUNDS + FRESH

    def batches() -> Iterator[pa.RecordBatch]:
        traffic = TrafficSettings(days=1, requests_per_day=int(1.3 * n), full_information=True)
        for part in draw_traffic(World.create(seed), traffic):
            rows, true = outcome_batch(part, full_information=True), truth_batch(part, full_information=True)
            assert rows["request_id"].equals(true["request_id"])
            columns = {name: rows[name] for name in rows.schema.names}
            columns |= {"success": true["p_success"], "cost_usd": true["cost_usd"], "propensity": true["propensity"]}
            yield pa.RecordBatch.from_arrays([columns[name] for name in rows.schema.names], schema=rows.schema)

    data = build_dataset(batches(), encoder)
    p, cost, logging = (data.cells(getattr(data.rows, name))[0] for name in ("success", "cost_usd", "propensity"))
    assert len(p) >= n, len(p)
    return Truth(data, p, cost, logging, encoder.tokenizer.vocabulary_size)


def willingness(truth: Truth) -> float:
    """The largest at which the best possible choices keep the target."""
    goal = TARGET * truth.p.mean(axis=0).max()
    for level in np.geomspace(1e5, 1, 200):
        choice = (truth.p - level * truth.cost).argmax(axis=1)
        if truth.p[np.arange(len(choice)), choice].mean() >= goal:
            return float(level)
    return 0.0


def estimates(model: SuccessModel, truth: Truth, index: np.ndarray) -> np.ndarray:
    """Success probabilities [len(index), m] of a fitted model."""
    logits = model.linear.logits(truth.data.prompts, index)
    return model.probabilities(logits, model.features_of(logits, truth.data.prompts, index))


def run(truth: Truth, level: float, exploration: Exploration | None, thin: bool, seed: int) -> dict[str, float]:
    """One life: logs, rounds, and what the last version is worth."""
    rng = np.random.default_rng(seed)
    n, m = truth.p.shape
    outcome = rng.random((n, m)) < truth.p
    draws = rng.random((n, 1))
    shown = np.zeros((n, m), dtype=bool)
    first = (draws[:FIRST] > truth.logging[:FIRST].cumsum(axis=1)).sum(axis=1).clip(0, m - 1)
    if thin:
        best = np.bincount((truth.p - level * truth.cost).argmax(axis=1), minlength=m).argmax()
        among = truth.logging[:FIRST].copy()
        among[FEW:, best] = 0
        among[:FEW] = np.eye(m)[best]
        first = (draws[:FIRST] * among.sum(axis=1, keepdims=True) > among.cumsum(axis=1)).sum(axis=1).clip(0, m - 1)
    shown[np.arange(FIRST), first] = True
    explored, extra_cost, own_cost, lost = 0.0, 0.0, 0.0, 0.0
    chosen = logged = np.zeros(0)
    for k in range(ROUNDS + 1):
        table = truth.data.rows
        success = outcome[table.prompt, table.model].astype(float)
        seen = replace(truth.data, rows=replace(table, success=success)).where(shown[table.prompt, table.model])
        fit = fit_success(seen, vocabulary=truth.vocabulary, settings=SETTINGS)
        index = np.arange(FIRST + k * ROUND, FIRST + (k + 1) * ROUND) if k < ROUNDS else np.arange(n - FRESH, n)
        p = estimates(fit.model, truth, index)
        cost, at = truth.cost[index], np.arange(len(index))
        greedy = (p - level * cost).argmax(axis=1)
        if k == ROUNDS:
            break
        chosen, logged = greedy, np.eye(m)[greedy]
        if exploration is not None:
            deviation = fit_uncertainty(truth.data.prompts, fit, len(seen.segments)).deviations(
                truth.data.prompts, index
            )
            logged = probabilities(exploration, p, cost, greedy, rule=Rule.PROMISE, level=level, deviation=deviation)
            chosen = (draws[index] > logged.cumsum(axis=1)).sum(axis=1).clip(0, m - 1)
        shown[index, chosen] = True
        explored += (chosen != greedy).mean() / ROUNDS
        extra_cost += (cost[at, chosen] - cost[at, greedy]).sum()
        own_cost += cost[at, greedy].sum()
        lost += (truth.p[index][at, greedy] - truth.p[index][at, chosen]).mean() / ROUNDS
    before = np.arange(FIRST + (ROUNDS - 1) * ROUND, FIRST + ROUNDS * ROUND)
    wanted = (estimates(fit.model, truth, before) - level * truth.cost[before]).argmax(axis=1)
    rows = np.arange(ROUND)
    weight = np.where(chosen == wanted, 1 / logged[rows, chosen], 0.0)
    true = truth.p[index]
    best = (true - level * cost).max(axis=1)
    levels = [0.0, *np.geomspace(level / 100, level * 100, 60)]
    choices = np.array([(p - each * cost).argmax(axis=1) for each in levels])
    return {
        "explored %": 100 * explored,
        "extra cost %": 100 * extra_cost / own_cost,
        "success lost, points": 100 * lost,
        "effective size %": 100 * weight.sum() ** 2 / (weight**2).sum() / ROUND,
        "without support %": 100 * (logged[rows, wanted] == 0).mean(),
        "AIQ": 100 * aiq(sweep_points(true, cost, choices)),
        "regret, points": 100 * float((best - (true - level * cost)[at, greedy]).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worlds", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--cost-multiple", type=float, default=2.0)
    args = parser.parse_args()
    rules: dict[str, Exploration | None] = {"none": None}
    rules |= {rule: Exploration(args.share, rule, args.cost_multiple) for rule in ExplorationRule}
    found: dict[tuple[bool, str], list[dict[str, float]]] = {}
    for seed in range(args.worlds):
        truth = truth_of(100 + seed)
        level = willingness(truth)
        for thin in (False, True):
            for name, exploration in rules.items():
                found.setdefault((thin, name), []).append(run(truth, level, exploration, thin, seed))
        print(f"… world {seed + 1} of {args.worlds}", file=sys.stderr)
    for (thin, name), lives in found.items():
        print("new model" if thin else "even", name)
        for figure in lives[0]:
            values = np.array([life[figure] for life in lives])
            change = values - [life[figure] for life in found[thin, "none"]]
            error = change.std(ddof=1) / np.sqrt(len(change)) if len(change) > 1 else float("nan")
            print(f"  {figure:<22} {values.mean():7.2f}   change {change.mean():+6.2f} ± {error:.2f}")


if __name__ == "__main__":
    main()
