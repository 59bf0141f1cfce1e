"""Each baseline learns what can be learned, with holes in the outcomes and with fractional success."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.benchmark.baselines import BASELINES, LEARNED, Sample, by_model, log_loss, mean_of_learned


def world(n: int, seed: int, *, holes: float = 0.0) -> tuple[Sample, np.ndarray]:
    """Two kinds of prompt, told apart by their words, their vectors and their segment; and the truth."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, n)
    words = [["apple pear plum", "granite marble slate"][k] for k in kind]
    texts = [f"{word} number{rng.integers(50)}" for word in words]
    vectors = rng.normal(0, 0.3, (n, 8))
    vectors[:, 0] += 2 * kind - 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    truth = np.array([[0.9, 0.9], [0.2, 0.8]])[kind]
    success = (rng.random(truth.shape) < truth).astype(float)
    success[rng.random(truth.shape) < holes] = np.nan
    return Sample(texts, vectors.astype(np.float32), kind + 1, 2, success), truth


@pytest.mark.parametrize("holes", [0.0, 0.4])
@pytest.mark.parametrize("name", BASELINES)
def test_it_learns_what_can_be_learned(name: str, holes: float) -> None:
    train, _ = world(400, 0, holes=holes)
    test, truth = world(200, 1)
    p = BASELINES[name](train, replace(test, success=np.full_like(test.success, np.nan)))
    assert p.shape == truth.shape and ((p >= 0) & (p <= 1)).all()
    assert log_loss(p, test.success) < log_loss(by_model(train, test), test.success) - 0.05
    assert np.abs(p - truth).mean() < 0.12


@pytest.mark.parametrize("name", LEARNED)
def test_the_same_prompts_give_the_same_answer_whatever_the_test_outcomes_are(name: str) -> None:
    train, _ = world(200, 0)
    test, _ = world(50, 1)
    blind = replace(test, success=1 - test.success)
    assert np.array_equal(BASELINES[name](train, test), BASELINES[name](train, blind))


@pytest.mark.parametrize("name", BASELINES)
def test_fractional_success_is_taken_as_it_is(name: str) -> None:
    train, _ = world(300, 2)
    half = replace(train, success=np.full_like(train.success, 0.5) + 0.25 * (train.success - 0.5))
    p = BASELINES[name](half, train)
    assert 0.3 < p.min() and p.max() < 0.7


def test_without_segments_their_means_are_means_per_model() -> None:
    train, _ = world(100, 0)
    hidden = replace(train, segment=np.zeros_like(train.segment), n_segments=0)
    assert BASELINES["segment means"](hidden, hidden) == pytest.approx(by_model(train, train))


def test_the_mean_of_the_learned_is_that_of_their_log_odds() -> None:
    p = {name: np.array([[value]]) for name, value in zip(LEARNED, (0.5, 0.5, 0.5, 0.9, 0.1), strict=True)}
    assert mean_of_learned(p) == pytest.approx(0.5)
