"""What training keeps of the full-information gain when only one model's outcome per prompt is logged.

`python tests/benchmarks/partial_logs_study.py TABLE... [--seeds N]` masks outcome tables in which several models
answered each prompt, and a simulated one, with logging policies from even to nearly certain, and fits success models
on what is left: as logged ("naive"), corrected as `train` does it with logged and with estimated propensities, always
weighted, and on doubly robust pseudo-outcomes. Each is judged by AIQ over the single-model hull on other prompts with
the outcomes of every model, all at the same shrinkage and at the mean price of each model.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import softmax

from training import metrics, selection
from training.benchmark.tables import text_column
from training.dataset import Dataset, Rows, build_dataset
from training.encoder import Encoder, EncoderSettings, prepare_encoder
from training.fit import FitSettings, SuccessFit, fit_success
from training.linear import LinearSettings
from training.logging_policy import estimate_propensities
from training.operating import doubly_robust, willingness_grid
from training.outcomes import read_outcomes
from training.synthetic.simulate import SimulateSettings, run_simulate
from training.trees import TreeSettings

SETTINGS = FitSettings(linear=LinearSettings(scale=0.2, own_scale=1.0), trees=TreeSettings(n_threads=1))
MOST_PROMPTS, MOST_MODELS, TEST_SHARE = 2000, 11, 0.3
METHODS = ("naive", "logged", "estimated", "always weighted", "pseudo-outcomes")
POLICIES = {
    "even": "every model alike",
    "softmax": "by value as a router sees it, softly",
    "epsilon 10 %": "the best by value, 10 % anywhere",
    "epsilon 1 %": "the best by value, 1 % anywhere",
    "hidden": "hard prompts to strong models, by what only a reader sees; 5 % anywhere",
    "hidden, nearly certain": "the same, three times as decided",
}


@dataclass(frozen=True)
class Full:
    """A table with the outcomes of every model, its prompts parted, and what full information gives."""

    data: Dataset
    vocabulary: int
    fit: np.ndarray
    test: np.ndarray
    success: np.ndarray
    cost: np.ndarray
    price: np.ndarray
    p_fit: np.ndarray
    """[len(fit), m], of the full-information fit, out of fold."""
    gain: float

    def fitted(self, data: Dataset, weight: np.ndarray | None = None, settings: FitSettings = SETTINGS) -> SuccessFit:
        return selection.fit_success(data, vocabulary=self.vocabulary, settings=settings, weight=weight)

    def gain_of(self, fit: SuccessFit) -> float:
        prompts = self.data.prompts
        logits = fit.model.linear.logits(prompts, self.test)
        p = fit.model.probabilities(logits, fit.model.features_of(logits, prompts, self.test))
        return gain_of(p, self.success[self.test], self.cost[self.test], self.price)


def gain_of(p: np.ndarray, success: np.ndarray, cost: np.ndarray, price: np.ndarray) -> float:
    """AIQ over the single-model hull."""
    levels = willingness_grid(np.tile(price, (2, 1)))
    points = metrics.sweep_points(success, cost, np.stack([(p - level * price).argmax(axis=1) for level in levels]))
    return metrics.aiq(points) - metrics.single_model_aiq(points)


def complete(data: Dataset) -> Dataset:
    """Only the models, at most `MOST_MODELS`, and prompts without a hole; calls of the better stand for no cost."""
    success, _ = data.cells(data.rows.success)
    if np.isnan(data.rows.cost_usd).all():
        strong = int(np.nanmean(success, axis=0).argmax())
        data = replace(data, rows=replace(data.rows, cost_usd=(data.rows.model == strong).astype(float)))
    cost, _ = data.cells(data.rows.cost_usd)
    known = ~np.isnan(success) & ~np.isnan(cost)
    best = np.sort(np.argsort(-known.sum(axis=0), kind="stable")[:MOST_MODELS])
    whole = known[:, best].all(axis=1)
    names = tuple(data.models[j] for j in best)
    return data.where(whole[data.rows.prompt]).keep_models(names)


def part(data: Dataset, vocabulary: int, seed: int) -> Full:
    rng = np.random.default_rng([seed, 1])
    index = rng.permutation(data.prompts_with_rows())
    n_test = round(TEST_SHARE * len(index))
    test, fit = np.sort(index[:n_test]), np.sort(index[n_test:][:MOST_PROMPTS])
    success, cost = data.cells(data.rows.success)[0], data.cells(data.rows.cost_usd)[0]
    full = fit_success(data.where(np.isin(data.rows.prompt, fit)), vocabulary=vocabulary, settings=SETTINGS)
    price = cost[fit].mean(axis=0)
    found = Full(data, vocabulary, fit, test, success, cost, price, full.p_success, 0.0)
    return replace(found, gain=found.gain_of(full))


def policy_of(name: str, full: Full) -> np.ndarray:
    """[len(fit), m]"""
    m = len(full.price)
    even = np.full((len(full.fit), m), 1 / m)
    value = full.p_fit - 0.15 * full.price / (full.price.max() - full.price.min())
    greedy = np.eye(m)[value.argmax(axis=1)]
    hard = 1 - full.success[full.fit].mean(axis=1)
    strong = full.success[full.fit].mean(axis=0)
    decided = np.outer((hard - hard.mean()) / hard.std(), (strong - strong.mean()) / strong.std())
    made = {
        "even": even,
        "softmax": 0.98 * softmax(value / 0.08, axis=1) + 0.02 * even,
        "epsilon 10 %": 0.9 * greedy + 0.1 * even,
        "epsilon 1 %": 0.99 * greedy + 0.01 * even,
        "hidden": 0.95 * softmax(decided, axis=1) + 0.05 * even,
        "hidden, nearly certain": 0.95 * softmax(3 * decided, axis=1) + 0.05 * even,
    }
    return made[name]


def masked(full: Full, policy: np.ndarray, seed: int) -> Dataset:
    """One row per prompt to fit on, with its propensity."""
    rng = np.random.default_rng([seed, 2])
    drawn = (rng.random((len(policy), 1)) > policy.cumsum(axis=1)).sum(axis=1).clip(0, policy.shape[1] - 1)
    chosen, propensity = np.full(len(full.data.prompts), -1), np.full(len(full.data.prompts), np.nan)
    chosen[full.fit], propensity[full.fit] = drawn, policy[np.arange(len(policy)), drawn]
    data = full.data.where(chosen[full.data.rows.prompt] == full.data.rows.model)
    return replace(data, rows=replace(data.rows, propensity=propensity[data.rows.prompt]))


def pseudo(full: Full, data: Dataset, plain: SuccessFit) -> SuccessFit:
    """The linear layer and calibration on doubly robust pseudo-outcomes of every cell; trees take none out of range."""
    filled, _ = doubly_robust(data, plain.index, plain.p_success, np.ones(len(data.rows), dtype=bool), floor=0.1)
    n, m = filled.shape
    unknown = {name: np.full(n * m, np.nan) for name in Rows.__slots__}
    own = {"prompt": np.repeat(plain.index, m), "model": np.tile(np.arange(m), n), "success": filled.ravel()}
    own |= {"time_us": np.full(n * m, -1), "own_split": np.full(n * m, "")}
    every = replace(data, rows=Rows(**(unknown | own)))
    return full.fitted(every, settings=replace(SETTINGS, trees=replace(SETTINGS.trees, n_trees=0)))


def remembered(fit: Callable[..., SuccessFit]) -> Callable[..., SuccessFit]:
    """The same fit asked for twice, as what is chosen among and then used, is made once."""
    made: dict[bytes, SuccessFit] = {}

    def found(data: Dataset, *, weight: np.ndarray | None = None, **options: Any) -> SuccessFit:
        key = data.rows.success.tobytes() + (np.ones(len(data.rows)) if weight is None else weight).tobytes()
        if key not in made:
            made[key] = fit(data, weight=weight, **options)
        return made[key]

    return found


def play(full: Full, policy: np.ndarray, seed: int) -> dict[str, float]:
    selection.fit_success = remembered(fit_success)  # type: ignore[assignment]  # saves half of the study's hour
    data = masked(full, policy, seed)
    plain = full.fitted(data)
    found = {"naive": full.gain_of(plain)}
    blind = replace(data, rows=replace(data.rows, propensity=np.full(len(data.rows), np.nan)))
    for name, known in (("logged", data), ("estimated", estimate_propensities(blind).all(blind))):
        weight = selection.choose_correction(known, vocabulary=full.vocabulary, settings=SETTINGS).weight
        found[name] = found["naive"] if weight is None else full.gain_of(full.fitted(data, weight))
        found[f"{name} chose weights"] = float(weight is not None)
    rows = data.rows
    weight = selection.stabilised(rows.propensity, rows.model, len(data.models), 10.0)
    found["always weighted"] = full.gain_of(full.fitted(data, weight))
    found["pseudo-outcomes"] = full.gain_of(pseudo(full, data, plain))
    return found


def mean_and_half(values: np.ndarray) -> tuple[float, float]:
    """Mean and half of its 95 % t-interval over seeds."""
    spread = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(stats.t.ppf(0.975, max(1, len(values) - 1)) * spread)


def tables(paths: list[Path], columns: list[str], encoder: Encoder, scratch: Path) -> dict[str, Callable[[], Dataset]]:
    simulated = scratch / "simulated.parquet"
    run_simulate(simulated, SimulateSettings(days=20, requests_per_day=250, seed=2026, full_information=True))

    def reader(path: Path) -> Callable[[], Dataset]:
        column = text_column(path, columns)
        batches = read_outcomes([path], prompt_column=column, rejects=scratch / "rejects.jsonl").batches
        return lambda: complete(build_dataset(batches(), encoder))

    return {path.stem: reader(path) for path in (simulated, *paths)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tables", nargs="*", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--prompt-column", action="append", help="first of these that a table holds; default prompt")
    parser.add_argument("--no-simulated", action="store_true", help="leave out the simulated table")
    parser.add_argument("--policy", action="append", choices=POLICIES, help="may be repeated; default: all")
    args = parser.parse_args()
    encoder = prepare_encoder(EncoderSettings())
    head = ("table", "logging policy", "full", *METHODS, "logged - naive", "estimated - naive", "weights chosen")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        read = tables(args.tables, args.prompt_column or ["prompt"], encoder, Path(scratch))
        for name, make in read.items():
            if args.no_simulated and name == "simulated":
                continue
            data = make()
            cases = [part(data, encoder.tokenizer.vocabulary_size, seed) for seed in range(args.seeds)]
            for policy in args.policy or POLICIES:
                found = [play(full, policy_of(policy, full), seed) for seed, full in enumerate(cases)]
                gain = {key: np.array([each[key] for each in found]) for key in found[0]}
                whole = np.mean([full.gain for full in cases])
                cells = [name, policy, f"{whole:+.4f}"]
                cells += [f"{gain[method].mean() / whole:.0%} ({gain[method].mean():+.4f})" for method in METHODS]
                for method in METHODS[1:3]:
                    mean, half = mean_and_half(gain[method] - gain["naive"])
                    cells.append(f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]")
                cells.append(", ".join(f"{gain[f'{method} chose weights'].sum():.0f}" for method in METHODS[1:3]))
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
