"""What a promise may rest on: unbiased where it says so, against the router where it does not know."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from router_ml.features import no_text_side
from training.dataset import Dataset, Prompts, Rows
from training.evidence import Evidence, gather_evidence, propensity_floor

NAN = float("nan")
Q = 0.97


def table(n: int, m: int, rows: Sequence[tuple[int, int, float, float]]) -> Dataset:
    """Rows of (prompt, model, success, propensity)."""
    prompt, model, success, propensity = np.array(rows, dtype=float).T
    r, none = len(rows), np.full(len(rows), np.nan)
    prompts = Prompts(
        prompt_id=np.array([f"p{i}" for i in range(n)]),
        ids=np.zeros(0, np.int32),
        start=np.zeros(n + 1, np.int64),
        embedding=np.ones((n, 1), np.float32),
        given=np.ones(n, bool),
        side=no_text_side(n),
        n_tokens=np.full(n, np.nan, np.float32),
        segment=np.zeros(n, np.int64),
    )
    index = prompt.astype(np.int64), model.astype(np.int64)
    rest = Rows(
        *index, success, none, none, none, none, none, propensity, np.full(r, -1), np.full(r, ""), np.full(r, -1)
    )
    return Dataset(prompts, rest, tuple(f"m{j}" for j in range(m)), (), "")


def evidence_of(data: Dataset, floor: float = 0.1, p: np.ndarray | None = None) -> Evidence:
    n, m = len(data.prompts), len(data.models)
    p = np.full((n, m), 0.5) if p is None else p
    return gather_evidence(data, np.arange(n), p, np.arange(m), floor)


def full(success: np.ndarray) -> list[tuple[int, int, float, float]]:
    return [(i, j, success[i, j], NAN) for i, j in product(*map(range, success.shape)) if not np.isnan(success[i, j])]


def test_complete_outcomes_stand_as_they_are() -> None:
    success = np.array([[0.0, 1.0], [0.25, 1.0]])
    found = evidence_of(table(2, 2, full(success)))
    assert found.reason is None and found.known.all()
    assert np.array_equal(found.low, success) and np.array_equal(found.high, success)
    assert found.reach(Q) == pytest.approx(Q)
    assert found.basis == "outcomes of every model on each prompt"


def test_a_missing_outcome_counts_against_the_setting_unless_it_is_the_one_chosen() -> None:
    success = np.ones((20, 2))
    success[0, 1] = np.nan
    found = evidence_of(table(20, 2, full(success)))
    assert found.reason is None and found.basis.startswith("outcomes of 97.5%")
    chosen = np.array([[0] * 20, [1] * 20])
    first = found.differences(chosen, np.arange(2), Q)[..., 0]
    assert first == pytest.approx(np.array([[1 - Q, 1 - Q], [-Q, 0.0]]))


def test_a_prompt_without_any_known_outcome_is_left_out() -> None:
    found = evidence_of(table(3, 2, full(np.array([[1.0, 0.0], [np.nan, np.nan], [1.0, 1.0]]))))
    assert found.known.tolist() == [True, False, True]
    assert found.reason is None and len(found.take(found.known)) == 2


def test_many_holes_without_propensities_carry_no_promise_and_say_why() -> None:
    rows = [(i, i % 2, 1.0, NAN) for i in range(20)]
    found = evidence_of(table(20, 2, rows))
    assert found.reason is not None
    assert found.reason.startswith("only 50% of the outcomes are known") and "propensity" in found.reason


def test_models_that_are_not_offered_need_no_outcomes() -> None:
    success = np.ones((10, 3))
    success[:, 2] = np.nan
    data = table(10, 3, full(success))
    assert gather_evidence(data, np.arange(10), np.full((10, 3), 0.5), np.array([0, 1]), 0.1).reason is None


@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
def test_with_propensities_the_mean_over_all_draws_is_the_truth_even_of_rare_models(p: float) -> None:
    truth, chance = np.array([0.2, 0.9, 0.5]), np.array([0.68, 0.02, 0.3])
    draws = list(product(range(3), (0.0, 1.0)))
    weights = [chance[model] * (truth[model] if success else 1 - truth[model]) for model, success in draws]
    rows = [(i, model, success, chance[model]) for i, (model, success) in enumerate(draws)]
    found = evidence_of(table(6, 3, rows), 0.01, np.full((6, 3), p))
    assert found.reason is None and found.basis.startswith("doubly robust")
    mean = found.differences(np.zeros((1, 6), dtype=np.intp), np.arange(3), Q)[0] @ weights
    assert mean == pytest.approx(truth[0] - Q * truth)


def test_no_outcome_lies_beyond_the_reach() -> None:
    rng = np.random.default_rng(0)
    floor, n = 0.05, 400
    p = rng.integers(0, 2, (n, 3)) * 1.0  # the extremes
    rows = [(i, int(rng.integers(3)), float(rng.integers(2)), floor) for i in range(n)]
    found = evidence_of(table(n, 3, rows), floor, p)
    worst = min(found.differences(rng.integers(0, 3, (1, n)), np.arange(3), Q).min() for _ in range(20))
    assert worst >= -found.reach(Q) - 1e-9
    assert worst < -0.9 * found.reach(Q)


@pytest.mark.parametrize(
    ("propensities", "words"),
    [
        ([0.5] * 99 + [0.04], "go down to 0.04, below the 0.1"),
        ([0.5] * 99 + [1.0], "with propensity 1, which leaves the others less than 0.1"),
    ],
)
def test_propensities_that_leave_a_model_too_little_chance_carry_no_promise(
    propensities: list[float], words: str
) -> None:
    rows = [(i, i % 2, 1.0, propensity) for i, propensity in enumerate(propensities)]
    reason = evidence_of(table(100, 2, rows)).reason
    assert reason is not None and words in reason


def test_a_model_that_propensities_should_have_brought_and_that_is_missing_is_told() -> None:
    reason = evidence_of(table(100, 2, [(i, 0, 1.0, 0.5) for i in range(100)])).reason
    assert reason is not None and reason.startswith("`m1` answered 0 of the 100 requests")


def test_no_known_outcome_is_told() -> None:
    reason = evidence_of(table(2, 2, [(0, 0, NAN, 0.5), (1, 1, NAN, 0.5)])).reason
    assert reason == "no prompt to tune on has a known outcome"


def test_the_floor_follows_the_rows_fitted_on_and_never_vanishes() -> None:
    assert propensity_floor(np.array([0.9, 0.05, NAN])) == pytest.approx(0.04)
    assert propensity_floor(np.array([1e-6, 0.5])) == 0.01
    assert propensity_floor(np.array([NAN])) == 0.01
