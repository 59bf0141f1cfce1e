"""Populations of the off-policy study: tables in which every model answered every prompt, and policies over them.

The prompts that routers learn from are none of the population's, so estimates have seen none of its outcomes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from router_ml.operating_points import OperatingPoints
from router_ml.policy import Policy
from router_ml.types import Estimates, Float64Array, Rule
from training.benchmark.off_policy_study import Population
from training.benchmark.tables import text_column
from training.dataset import Dataset, build_dataset
from training.derived_prices import catalog_from_logs
from training.encoder import Encoder, EncoderSettings, prepare_encoder
from training.evaluate import segment_means
from training.export import estimates_of
from training.fit import FitSettings
from training.operating import Outcomes, fit_operating_points
from training.outcomes import read_outcomes
from training.trees import TreeSettings
from training.version import fit_version

_LEARN_SHARE = 0.4
_TUNE_SHARE = 0.25
"""Of what is learned from."""
_OLDER_SHARE = 0.25
"""Of what is learned from, for the router that wrote the logs."""
_MOST_UNKNOWN = 0.05
"""Of the prompts; a model with more unknown outcomes is left out."""
_TARGET = 0.97
_EPSILON = 0.2
_TEMPERATURE = 0.15
_NEARLY = 0.97


def read_population(path: Path, prompt_columns: tuple[str, ...], rejects: Path, *, seed: int = 0) -> Population:
    """From an outcome table with several models' answers to each prompt."""
    encoder = prepare_encoder(EncoderSettings())
    column = text_column(path, prompt_columns)
    data = build_dataset(read_outcomes([path], prompt_column=column, rejects=rejects).batches(), encoder)
    return make_population(path.stem, data, encoder, seed=seed)


def make_population(name: str, data: Dataset, encoder: Encoder, *, seed: int = 0) -> Population:
    """Routers learn from two fifths of the units (sessions, or prompts where there are none), logs come of the rest."""
    data = _answered_by_most(_with_costs(data))
    success, _ = data.cells(data.rows.success)
    cost, _ = data.cells(data.rows.cost_usd)
    unit = _units(data)
    complete = np.asarray(~np.isnan(success + cost).any(axis=1))
    learn, tune, older, rest = _parts(unit, complete, seed)
    settings = FitSettings(trees=TreeSettings(n_threads=1))
    catalog = catalog_from_logs(_rows_of(data, learn), [])
    scale = np.nanmean(cost, axis=0).max()

    def fitted(prompts: NDArray[np.int64]) -> tuple[Estimates, Estimates]:
        """Estimates of the prompts to tune on, and of the population."""
        version = fit_version(_rows_of(data, prompts), encoder, settings)
        of = (version.session, data)
        return tuple(estimates_of(*of, index, version.parts.pad_id, version.ratio) for index in (tune, rest))  # type: ignore[return-value]

    def policy_of(tuned: Estimates, target: float) -> Policy:
        draft = Policy(catalog, data.models, OperatingPoints((1.0,), (0.0,), (1.0,), 1.0))
        seen = Outcomes(success[tune], cost[tune], "")
        points = fit_operating_points(draft, tuned, seen, default_target=target, rule=Rule.PROMISE, targets=(target,))
        return Policy(catalog, data.models, points)

    ours, logged = fitted(learn), fitted(older)
    router = policy_of(ours[0], _TARGET)
    means = segment_means(*_cells_of(data, learn), data.prompts.segment[learn], len(data.segments))
    table = [_of_table(means[data.prompts.segment[index]], at) for index, at in zip((tune, rest), ours, strict=True)]
    price = router.cheapest(router.price(ours[1]))
    best = int(np.nanmean(success[learn], axis=0).argmax())
    n, m = len(rest), len(data.models)
    favourite = _one_hot(policy_of(logged[0], 0.95), logged[1])
    worth = logged[1].p_success / _TEMPERATURE - price / price.mean() / 2
    soft = np.exp(worth - worth.max(axis=1, keepdims=True))
    even = np.full((n, m), 1 / m)
    return Population(
        name,
        reward={"success": success[rest], "cost": cost[rest] / scale},
        q={"success": ours[1].p_success.astype(np.float64), "cost": price / scale},
        unit=unit[rest],
        segment=data.prompts.segment[rest],
        asked=1 if (data.rows.session >= 0).any() else 3,
        logging={
            "uniform": even,
            "epsilon-greedy": (1 - _EPSILON) * favourite + _EPSILON * even,
            "softmax": soft / soft.sum(axis=1, keepdims=True),
            "nearly deterministic": _NEARLY * favourite + (1 - _NEARLY) * even,
        },
        targets={
            "router": _one_hot(router, ours[1]),
            "best single model": np.tile(np.eye(m)[best], (n, 1)),
            "segment table": _one_hot(policy_of(table[0], _TARGET), table[1]),
        },
    )


def _with_costs(data: Dataset) -> Dataset:
    """Where a table of two models holds no cost, that of a call of the better one is 1."""
    if not np.isnan(data.rows.cost_usd).all() or len(data.models) != 2:
        return data
    strong = int(np.nanargmax(data.model_means(data.rows.success)))
    calls = np.where(data.rows.model == strong, 1.0, 0.1)
    return replace(data, rows=replace(data.rows, cost_usd=calls))


def _answered_by_most(data: Dataset) -> Dataset:
    success, _ = data.cells(data.rows.success)
    cost, _ = data.cells(data.rows.cost_usd)
    unknown = np.isnan(success + cost).mean(axis=0)
    return data.keep_models(tuple(np.array(data.models)[unknown <= _MOST_UNKNOWN]))


def _units(data: Dataset) -> NDArray[np.int64]:
    """[prompts], its first session, or itself."""
    unit = np.full(len(data.prompts), -1, dtype=np.int64)
    order = np.arange(len(data.rows))[::-1]
    unit[data.rows.prompt[order]] = data.rows.session[order]
    return np.where(unit < 0, unit.max() + 1 + np.arange(len(unit)), unit)


def _parts(unit: NDArray[np.int64], complete: NDArray[np.bool_], seed: int) -> tuple[NDArray[np.int64], ...]:
    """Prompts to learn from, to tune on, those of the older router, and the population."""
    uniform = np.random.default_rng(seed).random(unit.max() + 1)[unit]
    learning = uniform < _LEARN_SHARE
    tuning = learning & (uniform >= _LEARN_SHARE * (1 - _TUNE_SHARE)) & complete
    older = uniform < _LEARN_SHARE * _OLDER_SHARE
    fit = learning & (uniform < _LEARN_SHARE * (1 - _TUNE_SHARE))
    return tuple(np.flatnonzero(part) for part in (fit, tuning, older, ~learning & complete))


def _rows_of(data: Dataset, prompts: NDArray[np.int64]) -> Dataset:
    return data.where(np.isin(data.rows.prompt, prompts))


def _cells_of(data: Dataset, prompts: NDArray[np.int64]) -> tuple[Float64Array, Float64Array]:
    success, count = data.cells(data.rows.success)
    return success[prompts], count[prompts]


def _of_table(p: Float64Array, estimates: Estimates) -> Estimates:
    return Estimates(p.astype(np.float32), estimates.output_tokens, estimates.latency_ms, estimates.input_tokens)


def _one_hot(policy: Policy, estimates: Estimates) -> Float64Array:
    return np.asarray(np.eye(len(policy.models))[policy.column[policy.choose(estimates).chosen]])
