"""The road as a whole on small tables of embeddings: what rests on what; same inputs, same bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from router_ml import bundle
from router_ml.catalog import Catalog
from router_ml.errors import InputError
from training.appraise import Appraisal, EvaluateSettings, appraise
from training.fit import FitSettings
from training.labels import LabelSettings
from training.linear import LinearSettings
from training.pipeline import Trained, TrainSettings, train
from training.report import training_lines
from training.trees import TreeSettings

MODELS = ("small", "large")
CATALOG = Catalog.from_dict(
    {
        "models": [{"name": name} for name in MODELS],
        "offers": [
            {"name": name, "model": name, "request_usd": usd} for name, usd in zip(MODELS, (0.001, 0.01), strict=True)
        ],
    }
)
FIT = FitSettings(linear=LinearSettings(scale=0.7, own_scale=1.0), trees=TreeSettings(n_trees=5, n_threads=1))
START = datetime(2026, 10, 1, tzinfo=UTC)

Rows = list[dict[str, Any]]


def appraised(found: Trained, folder: Path) -> Appraisal:
    """The version, judged on the logs it was trained on, by the rows that it held out."""
    found.write(folder / "bundle")
    opened = bundle.load(folder / "bundle")
    rejects = folder / "rejects.jsonl"
    return appraise([folder / "logs.jsonl"], opened, None, EvaluateSettings(), rejects, lambda line: None)


def full(n: int = 500, seed: int = 3) -> Rows:
    """Both models on every prompt; the first number of a prompt is how hard it is for the small one."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        vector = rng.normal(size=8)
        for model, odds in zip(MODELS, (-2 * vector[0], 1.5), strict=True):
            rows.append(
                {
                    "embedding": vector.tolist(),
                    "timestamp": (START + timedelta(hours=i)).isoformat(),
                    "model": model,
                    "segment": "chat",
                    "success": float(rng.random() < 1 / (1 + np.exp(-odds))),
                    "output_tokens": 50,
                }
            )
    return rows


def partial(n: int = 1000, seed: int = 3) -> Rows:
    """One model per prompt, hard prompts mostly to the large one; propensities not logged."""
    rng = np.random.default_rng([seed, 1])
    rows = full(n, seed)
    kept = []
    for i in range(n):
        large = 1 / (1 + np.exp(-2 * rows[2 * i]["embedding"][0]))
        kept.append(rows[2 * i + int(rng.random() < 0.1 + 0.8 * large)])
    return kept


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Trained]:
    """`trained(rows, say=..., **settings)`"""

    def run(rows: Rows, say: Callable[[str], None] = lambda line: None, **settings: Any) -> Trained:
        logs = tmp_path / "logs.jsonl"
        logs.write_text("\n".join(map(json.dumps, rows)))
        return train([logs], CATALOG, replace(TrainSettings(fit=FIT), **settings), tmp_path / "rejects.jsonl", say)

    return run


def test_linear_algebra_runs_on_one_thread_so_the_bundle_does_not_depend_on_their_number(
    trained: Callable[..., Trained],
) -> None:
    threads: set[int] = set()
    graphs = []
    for limit in (1, 2):
        with threadpool_limits(limit, user_api="blas"):
            found = trained(full(), say=lambda _: threads.update(_blas_threads()))
            assert _blas_threads() == {limit}
            graphs.append((found.manifest.version, found.graph))
    assert threads == {1}
    assert graphs[0] == graphs[1]


def _blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_what_rests_on_estimated_propensities_says_so_in_training_and_in_evaluation(
    trained: Callable[..., Trained], tmp_path: Path
) -> None:
    found = trained(partial())
    basis = found.propensities.basis
    assert basis.startswith("the propensities of 100% of the rows are not logged but estimated")
    text = "\n".join(training_lines(found))
    assert basis in text and "overlap of the logs: smallest propensity" in text
    assert found.tuning_basis == "doubly robust by estimated propensities"
    assert found.promise.reason is not None and "log the propensity of each decision" in found.promise.reason
    assert set(found.promise.willingness) == {None}
    assert found.manifest.verdict["rests_on"] == basis
    appraisal = appraised(found, tmp_path)
    assert f"of this version's training: {basis}" in appraisal.judgement.report.notes


def test_a_full_information_table_whose_every_row_says_propensity_1_is_read_as_if_it_were_empty(
    trained: Callable[..., Trained],
) -> None:
    plain, ones = trained(full()), trained([row | {"propensity": 1.0} for row in full()])
    assert plain.graph == ones.graph
    assert plain.manifest.operating_points == ones.manifest.operating_points
    assert ones.promise.basis == "outcomes of every model on each prompt"
    assert "propensity 1 on 1,000 rows" in "\n".join(training_lines(ones))
    assert not plain.propensities.lines()


def test_certain_choices_are_no_evidence_of_the_others(trained: Callable[..., Trained]) -> None:
    found = trained([row | {"propensity": 1.0} for row in partial()])
    assert found.verdict.measure == "log loss"
    assert "doubly robust" not in found.tuning_basis
    assert "100.0% of the rows without overlap" in "\n".join(training_lines(found))


def test_late_rows_are_held_back_in_training_and_in_evaluation(trained: Callable[..., Trained], tmp_path: Path) -> None:
    rows = full()
    for row in rows:
        delay = timedelta(hours=40 if row["success"] else 1)
        reported = datetime.fromisoformat(row["timestamp"]) + delay
        late = reported > START + timedelta(hours=500)
        row |= {"success": None} if late else {"reported_at": reported.isoformat()}
    found = trained(rows)
    held = [note for note in found.notes if "younger than 40.0 hours" in note]
    assert held and sum(found.n_rows.values()) == 1000 - 78
    appraisal = appraised(found, tmp_path)
    assert held[0] in appraisal.judgement.report.notes
    assert appraisal.judgement.report.n_outcomes == found.n_rows["test"]


def test_logs_of_complaints_alone_are_refused_until_silence_is_declared(trained: Callable[..., Trained]) -> None:
    rows = [row | ({"success": None} if row["success"] else {}) for row in full()]
    with pytest.raises(InputError, match=r"only complaints are reported.*--unreported success"):
        trained(rows)
    found = trained(rows, labels=LabelSettings.declared(["success"], None))
    assert found.manifest.split["labels"]["unreported"] == {"": "success"}
    assert found.graph == trained(full()).graph
