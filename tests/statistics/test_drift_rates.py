"""Drift is reported where there is some, and hardly ever where there is none.

The nights are made from known distributions; `python tests/benchmarks/drift_study.py` has whole worlds.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from training.drift import DriftReport, Kind, Observed
from training.drift.clustered import means, totals
from training.drift.permutation import permutation_p_value

_SPEC = importlib.util.spec_from_file_location(
    "drift_study", Path(__file__).parents[1] / "benchmarks" / "drift_study.py"
)
assert _SPEC is not None and _SPEC.loader is not None
study = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = study
_SPEC.loader.exec_module(study)

UNLIKELY = 1e-3
QUIET = 2


def at_most(found: int, tries: int, share: float) -> bool:
    """Whether so many are no evidence of more than `share`."""
    return stats.binom.sf(found - 1, tries, share) > UNLIKELY


def sessions(rng: np.random.Generator, n: int) -> np.ndarray:
    turns = np.minimum(np.floor((1 - rng.random(n)) ** (-1 / 1.5)), 60).astype(int)
    return np.repeat(np.arange(n), turns)[:n]


@pytest.mark.parametrize(("log_odds", "n"), [(2.0, 60), (2.0, 1000), (-4.0, 1000)])
def test_p_values_of_clustered_means_are_not_too_small(log_odds: float, n: int) -> None:
    rng = np.random.default_rng(1)
    p_values = []
    for _ in range(1500):
        sides = []
        for size in (n, 4 * n):
            cluster = sessions(rng, size)
            chance = 1 / (1 + np.exp(-log_odds - rng.normal(size=size)[cluster]))
            sides.append(totals((rng.random(size) < chance).astype(float), cluster))
        now, before = means(*sides)
        p_values.append(now.minus(before).p_value)
    for level in (0.05, 0.01, 0.001):
        assert at_most(int((np.array(p_values) <= level).sum()), len(p_values), level), level


def test_intervals_of_clustered_means_cover_a_true_difference() -> None:
    rng, covered = np.random.default_rng(2), 0
    for _ in range(500):
        sides = []
        for size, shift in ((600, 0.3), (2000, 0.0)):
            cluster = sessions(rng, size)
            sides.append(totals(shift + rng.normal(size=size)[cluster] + rng.normal(size=size), cluster))
        now, before = means(*sides)
        low, high = now.minus(before).interval()
        covered += low <= 0.3 <= high
    assert 0.92 <= covered / 500 <= 0.99


def test_permutation_p_values_are_as_uniform_as_they_say() -> None:
    rng = np.random.default_rng(3)
    p_values = np.array(
        [
            permutation_p_value(
                rng.normal(size=(30, 3)).astype(np.float32), rng.normal(size=(90, 3)).astype(np.float32), seed=k
            )
            for k in range(400)
        ]
    )
    for level in (0.5, 0.2, 0.05, 0.01):
        count = int((p_values <= level).sum())
        assert at_most(count, 400, level), level
    assert (p_values <= 0.5).mean() > 0.4


def test_nights_without_change_hardly_ever_alarm() -> None:
    count = study.made_nights(60, 300)
    assert count.nights == 60
    assert at_most(count.noise, count.nights, 0.01)


@pytest.mark.long
def test_a_thousand_nights_without_change_alarm_at_most_as_often_as_stated() -> None:
    count = study.made_nights(1000, 1000)
    assert at_most(count.noise, count.nights, 0.01)


def reports_of(seed: int, requests: int, change: Callable[[Observed], Observed]) -> Iterator[DriftReport]:
    """Of some nights, all but the first `QUIET` of them changed."""
    rng = np.random.default_rng([9, seed])
    training = study.made_night(rng, 7 * requests)
    nights = (study.made_night(rng, requests) for _ in range(1 + QUIET + 7))
    return study.reports(training, (change(one) if k > QUIET else one for k, one in enumerate(nights)))


def worse(model: str, by: float) -> Callable[[Observed], Observed]:
    def change(observed: Observed) -> Observed:
        rng = np.random.default_rng(len(observed))
        lost = (observed.model == model) & (rng.random(len(observed)) < by)
        return replace(observed, success=np.where(lost, observed.success * 0, observed.success))

    return change


def longer(model: str, factor: float) -> Callable[[Observed], Observed]:
    def change(observed: Observed) -> Observed:
        tokens = observed.output_tokens * np.where(observed.model == model, factor, 1.0)
        return replace(observed, output_tokens=tokens)

    return change


def moved(observed: Observed) -> Observed:
    vector = observed.vector + np.eye(16, dtype=np.float32)[0] * 0.25
    return replace(observed, vector=vector / np.linalg.norm(vector, axis=1, keepdims=True))


@pytest.mark.parametrize(
    ("kind", "subject", "change", "nights"),
    [
        (Kind.SUCCESS, "model-0", worse("model-0", 0.25), 2),
        (Kind.SUCCESS, "model-1", worse("model-1", 0.2), 7),
        (Kind.OUTPUT_LENGTH, "model-1", longer("model-1", 1.4), 3),
        (Kind.PROMPTS, "", moved, 2),
    ],
)
def test_a_change_is_told_within_its_nights(
    kind: Kind, subject: str, change: Callable[[Observed], Observed], nights: int
) -> None:
    for seed in range(2):
        told = [
            [one for one in report.alarms if (one.kind, one.subject) == (kind, subject)]
            for report in islice(reports_of(seed, 600, change), QUIET + nights)
        ]
        assert not any(told[:QUIET]) and any(told[QUIET:])
