"""Training never sees what it is judged by: poison the held-out rows, and nothing that was fitted changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.benchmark.baselines import BASELINES
from training.benchmark.contest import OURS, play
from training.benchmark.tables import Table, split_parts
from training.fit import FitSettings
from training.pipeline import Trained, TrainSettings, train
from training.split import SplitSettings
from training.trees import TreeSettings

FIT = FitSettings(trees=TreeSettings(n_threads=1))
MODELS = {"small": (0.2, 0.001), "mid": (1.0, 0.004), "large": (2.2, 0.02)}


@pytest.fixture(scope="module")
def table(token_world: Callable[..., Any]) -> Table:
    """A table of embeddings, each with a text for the baselines that read."""
    data = token_world(n=400, m=3, seed=4).data
    p, n = data.prompts, len(data.prompts)
    words = [" ".join(f"w{k}" for k in p.ids_of(i)) for i in range(n)]
    prompts = replace(
        p,
        ids=p.ids[:0],
        start=np.zeros(n + 1, np.int64),
        given=np.ones(n, bool),
        side=np.zeros_like(p.side),
        n_tokens=np.full(n, np.nan, np.float32),
    )
    data = replace(data, prompts=prompts)
    success, cost = data.cells(data.rows.success)[0], data.cells(data.rows.cost_usd)[0]
    return Table("toy", data, tuple(words), p.embedding, success, cost, False, None)  # type: ignore[arg-type]


def test_no_contestant_learns_from_the_outcomes_it_is_judged_by(table: Table) -> None:
    parts = split_parts(table, SplitSettings(by="random", seed=1, test_share=0.3))
    assert not set(parts.test) & (set(parts.fit) | set(parts.tune))
    hidden = np.isin(table.data.rows.prompt, np.concatenate([parts.test, parts.tune]))
    rows = table.data.rows
    poisoned_rows = replace(
        rows,
        success=np.where(hidden, 1 - rows.success, rows.success),
        cost_usd=np.where(hidden, 1e6 / (1 + rows.model), rows.cost_usd),
    )
    data = replace(table.data, rows=poisoned_rows)
    success, cost = data.cells(data.rows.success)[0], data.cells(data.rows.cost_usd)[0]
    poisoned = replace(table, data=data, success=success, cost_usd=cost)
    assert not np.array_equal(table.success, poisoned.success)
    clean, dirty = play(table, parts, FIT), play(poisoned, parts, FIT)
    assert {OURS, *BASELINES} <= set(clean.beliefs)
    assert clean.verdict == dirty.verdict
    for name, belief in clean.beliefs.items():
        assert np.array_equal(belief.p, dirty.beliefs[name].p), name
        assert np.array_equal(clean.choices[name], dirty.choices[name]), name


def test_a_trained_version_is_the_same_whatever_the_test_rows_say(tmp_path: Path) -> None:
    clean, dirty = (trained(tmp_path, poison) for poison in (False, True))
    assert clean.graph == dirty.graph
    assert clean.manifest.operating_points == dirty.manifest.operating_points
    assert clean.verdict == dirty.verdict
    assert clean.promise == dirty.promise
    assert clean.catalog == dirty.catalog
    assert clean.manifest.baseline == dirty.manifest.baseline
    assert clean.judgement.report != dirty.judgement.report  # the judge did see it


def trained(folder: Path, poison: bool) -> Trained:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(300):
        vector, test = rng.normal(size=8), i % 3 == 0
        for model, (ability, cost) in MODELS.items():
            won = rng.random() < 1 / (1 + np.exp(-(ability - 2 * vector[0])))
            success, spent = float(won), cost
            if test and poison:
                success, spent = 1 - success, 1000 * cost
            rows.append(
                {
                    "request_id": f"{i}-{model}",
                    "embedding": vector.tolist(),
                    "segment": f"s{i % 2}",
                    "model": model,
                    "success": success,
                    "cost_usd": spent,
                    "split": "test" if test else "train",
                }
            )
    logs = folder / f"{poison}.jsonl"
    logs.write_text("\n".join(map(json.dumps, rows)))
    return train([logs], None, TrainSettings(fit=FIT), folder / "rejects.jsonl", lambda line: None)
