"""A short version of the off-policy study on a population made of numbers; the whole is in tests/benchmarks."""

from __future__ import annotations

import numpy as np
import pytest

from training.benchmark.off_policy_study import (
    ENOUGH,
    LOGGED,
    Population,
    StudyReport,
    StudySettings,
    study_cells,
    study_lines,
)
from training.off_policy import DEFAULT, ESTIMATORS, Verdict

LOGGING = ("uniform", "epsilon-greedy", "softmax", "nearly deterministic")
SETTINGS = StudySettings(replications=50, requests=1200, resamples=200, bounds=8)


def population() -> Population:
    """Four models on 900 prompts in 500 sessions; estimates know the prompt, but not well."""
    rng = np.random.default_rng(7)
    n, price = 900, np.array([0.1, 0.25, 0.5, 1.0])
    unit = np.sort(rng.integers(500, size=n))
    hard = (rng.normal(size=500)[unit] + rng.normal(size=n)) / np.sqrt(2)
    truth = 1 / (1 + np.exp(-(np.array([0.0, 0.8, 1.4, 2.0]) - 1.3 * hard[:, None])))
    success = (rng.random((n, 4)) < truth).astype(float)
    cost = price * rng.lognormal(0, 0.6, (n, 1))
    seen = 1 / (1 + np.exp(-(np.array([0.4, 0.9, 1.2, 1.7]) - 0.9 * hard[:, None] + rng.normal(0, 0.3, (n, 4)))))
    router, older = np.eye(4)[(seen - 0.4 * price).argmax(axis=1)], np.eye(4)[(seen - 0.8 * price).argmax(axis=1)]
    soft = np.exp((seen - 0.3 * price) / 0.25)
    return Population(
        "numbers",
        reward={"success": success, "cost": cost},
        q={"success": seen, "cost": np.tile(1.2 * price, (n, 1))},
        unit=unit,
        segment=np.zeros(n, dtype=np.int64),
        asked=2,
        logging={
            "uniform": np.full((n, 4), 0.25),
            "epsilon-greedy": 0.7 * older + 0.075,
            "softmax": soft / soft.sum(axis=1, keepdims=True),
            "nearly deterministic": 0.98 * older + 0.005,
        },
        targets={"router": router, "best single model": np.tile(np.eye(4)[3], (n, 1)), "older router": older},
    )


@pytest.fixture(scope="module")
def reports() -> dict[str, StudyReport]:
    made = population()
    return {logging: study_cells(made, logging, SETTINGS) for logging in LOGGING}


def test_the_default_interval_covers_the_truth_wherever_enough_rows_speak(reports: dict[str, StudyReport]) -> None:
    cells = [cell for report in reports.values() for cell in report.cells if cell.estimator == DEFAULT]
    enough = [cell for cell in cells if cell.effective_sample_size >= ENOUGH]
    assert len(enough) >= 12
    assert 0.93 <= np.mean([cell.coverage for cell in enough]) <= 0.98
    assert min(cell.coverage for cell in enough) >= 0.85  # 50 replications of 95 %
    assert max(abs(cell.bias) / cell.rmse for cell in enough) < 0.4


def test_better_is_hardly_ever_said_of_what_is_not(reports: dict[str, StudyReport]) -> None:
    verdicts = [cell for report in reports.values() for cell in report.verdicts]
    not_better = [cell.share[str(Verdict.BETTER)] for cell in verdicts if cell.gain <= 0]
    assert len(not_better) >= 12
    assert np.mean(not_better) <= 0.025
    assert max(not_better) <= 0.1


def test_what_is_better_is_called_so_where_the_logs_can_tell(reports: dict[str, StudyReport]) -> None:
    (found,) = (
        cell
        for cell in reports["uniform"].verdicts
        if (cell.target, cell.baseline, cell.metric) == ("best single model", LOGGED, "success")
    )
    assert found.gain > 0.05
    assert found.share[str(Verdict.BETTER)] > 0.9


def test_nearly_deterministic_logs_cannot_tell_of_models_that_they_hardly_show(reports: dict[str, StudyReport]) -> None:
    for cell in reports["nearly deterministic"].verdicts:
        if (cell.target, cell.baseline) == ("best single model", LOGGED):
            assert cell.share[str(Verdict.CANNOT_TELL)] > 0.9


def test_the_finite_sample_bound_covers_at_least_what_it_says(reports: dict[str, StudyReport]) -> None:
    assert np.mean([bound.coverage for report in reports.values() for bound in report.bounds]) >= 0.95


def test_doubly_robust_beats_weighting_and_what_shrinks_gives_up_coverage(reports: dict[str, StudyReport]) -> None:
    cells = [cell for report in reports.values() for cell in report.cells if cell.effective_sample_size >= ENOUGH]
    rmse = {name: np.mean([cell.rmse for cell in cells if cell.estimator == name]) for name in ESTIMATORS}
    cover = {name: np.mean([cell.coverage for cell in cells if cell.estimator == name]) for name in ESTIMATORS}
    assert rmse[DEFAULT] < rmse["self-normalised IPS"] < rmse["IPS"]
    assert cover["direct method"] < 0.8


def test_the_tables_name_every_estimator_and_every_group(reports: dict[str, StudyReport]) -> None:
    report = StudyReport(
        *(
            tuple(each for r in reports.values() for each in getattr(r, name))
            for name in ("cells", "verdicts", "bounds")
        )
    )
    text = "\n".join(study_lines(report))
    assert all(f"| {name} |" in text for name in (*ESTIMATORS, *LOGGING))
    assert "Finite-sample bound: coverage" in text
