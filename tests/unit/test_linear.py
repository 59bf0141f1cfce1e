from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from router_ml.features import SIDE_FEATURES, no_text_side
from training.dataset import Prompts
from training.linear import BIGRAM_BUCKETS, BIGRAM_FACTOR, LinearModel, LinearSettings, fit_linear, gram_counts

CONVERGED = LinearSettings(max_iterations=200)


def prompts_of(
    ids: Sequence[Sequence[int]], embedding: np.ndarray | None = None, side: np.ndarray | None = None
) -> Prompts:
    n = len(ids)
    return Prompts(
        prompt_id=np.array([f"p{i}" for i in range(n)]),
        ids=np.array([i for row in ids for i in row], dtype=np.int32),
        start=np.cumsum([0, *map(len, ids)]),
        embedding=np.zeros((n, 4), np.float32) if embedding is None else embedding.astype(np.float32),
        given=np.zeros(n, dtype=bool),
        side=no_text_side(n) if side is None else side.astype(np.float32),
        n_tokens=np.array([len(row) for row in ids], dtype=np.float32),
        segment=np.zeros(n, dtype=np.int64),
    )


def fit_all(prompts: Prompts, success: np.ndarray, vocabulary: int = 10, **options: Any) -> LinearModel:
    index, settings = np.arange(len(prompts)), options.get("settings", CONVERGED)
    count = options.get("count", np.ones_like(success))
    return fit_linear(prompts, index, success, count, vocabulary=vocabulary, n_segments=0, settings=settings)


def outcomes(rng: np.random.Generator, n: int, m: int) -> np.ndarray:
    return rng.integers(0, 2, (n, m)).astype(float)


def test_grams_are_counted_within_a_prompt_and_never_across_two() -> None:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 50, length).tolist() for length in (0, 1, 2, 60, 0, 7)]
    index = np.array([3, 0, 5, 1, 2])
    found = gram_counts(prompts_of(ids), index, 50).toarray()
    for row, i in zip(found, index, strict=True):
        expected = Counter(ids[i])
        expected.update(50 + (a * BIGRAM_FACTOR + b) % BIGRAM_BUCKETS for a, b in pairwise(ids[i]))
        assert {k: int(row[k]) for k in np.flatnonzero(row)} == dict(expected)


def test_the_fit_is_the_minimum_that_an_independent_solver_finds() -> None:
    rng = np.random.default_rng(1)
    n, m, d = 120, 3, 4
    prompts = prompts_of([()] * n, embedding=rng.normal(size=(n, d)))
    success, count = outcomes(rng, n, m), rng.integers(0, 3, (n, m)).astype(float)
    settings = LinearSettings(scale=0.7, own_scale=0.5, bias_scale=1.0, max_iterations=200)
    model = fit_all(prompts, success, settings=settings, count=count)

    x = prompts.embedding - prompts.embedding.mean(axis=0)
    x = x * 0.7 / np.sqrt((x**2).sum(axis=1).mean())
    mean = (success * count).sum() / count.sum()

    def scores(flat: np.ndarray) -> np.ndarray:
        shared, own = flat[m : m + d], flat[m + d :].reshape(d, m)
        return np.log(mean / (1 - mean)) + flat[:m] + x @ (shared[:, None] + 0.5 * own)

    def loss(flat: np.ndarray) -> float:
        z = scores(flat)
        return float((count * (np.logaddexp(0, z) - success * z)).sum() + 0.5 * (flat**2).sum())

    best = minimize(loss, np.zeros(m + d + d * m), method="BFGS", options={"gtol": 1e-4})
    assert model.logits(prompts, np.arange(n)) == pytest.approx(scores(best.x), abs=2e-3)


def test_prompts_are_reckoned_for_their_own_model_alone_as_they_would_be_for_all() -> None:
    """An outcome of no weight for every other model changes nothing but the way that is taken."""
    rng = np.random.default_rng(6)
    ids = [rng.integers(0, 12, rng.integers(0, 9)).tolist() for _ in range(200)]
    prompts, success = prompts_of(ids, embedding=rng.normal(size=(200, 4))), outcomes(rng, 200, 3)
    count = (rng.random((200, 3)) < 0.4).astype(float)
    assert {0, 1, 2, 3} == set(count.sum(axis=1))
    alone, together = (fit_all(prompts, success, 12, count=each) for each in (count, np.maximum(count, 1e-9)))
    at = np.arange(200)
    assert alone.logits(prompts, at) == pytest.approx(together.logits(prompts, at), abs=2e-3)


def test_a_scale_of_zero_is_blind_to_the_prompt() -> None:
    rng = np.random.default_rng(7)
    prompts = prompts_of([[i % 5] for i in range(60)], embedding=rng.normal(size=(60, 4)))
    model = fit_all(prompts, outcomes(rng, 60, 2), settings=replace(CONVERGED, scale=0.0))
    assert model.logits(prompts, np.arange(60)) == pytest.approx(np.tile(model.bias, (60, 1)), abs=1e-6)


def test_the_unit_of_a_side_feature_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    side = rng.normal(size=(80, len(SIDE_FEATURES)))
    side[:, -1] = 1
    side[:20] = 0  # as prompts without text have it
    success = (rng.random((80, 2)) < 0.3 + 0.4 * (side[:, :1] > 0)).astype(float)
    other = side.copy()
    other[20:, 0] = 40 - 8 * side[20:, 0]
    one, two = (prompts_of([()] * 80, side=each) for each in (side, other))
    logits = fit_all(one, success).logits(one, np.arange(80))
    assert np.abs(logits[20:, 0] - logits[20, 0]).max() > 0.1
    assert fit_all(two, success).logits(two, np.arange(80)) == pytest.approx(logits, abs=5e-3)


def test_prompts_without_text_take_nothing_from_the_side_features() -> None:
    rng = np.random.default_rng(3)
    side = rng.normal(5, 1, size=(60, len(SIDE_FEATURES)))
    side[:, -1] = 1
    side[40:] = 0
    prompts = prompts_of([()] * 60, side=side)
    model = fit_all(prompts, outcomes(rng, 60, 2))
    assert model.logits(prompts, np.arange(40, 60)) == pytest.approx(np.tile(model.bias, (20, 1)), abs=1e-6)


def test_tokens_of_fewer_than_two_prompts_weigh_nothing() -> None:
    rng = np.random.default_rng(4)
    ids = [[0, 1, 1] if i % 2 else [2, 3] for i in range(30)]
    ids[0] = [4, 4, 4]  # often, but in one prompt
    model = fit_all(prompts_of(ids), outcomes(rng, 30, 2))
    assert not model.grams[4:10].any()
    assert model.grams[:4, -1].all()
    stranger = prompts_of([[4, 9, 8], []])
    assert model.logits(stranger, np.arange(2)) == pytest.approx(np.tile(model.bias, (2, 1)), abs=1e-6)


def test_repeating_a_prompt_within_itself_keeps_the_share_of_its_words() -> None:
    """Unit length is over occurrences, so a text of one word twice as long says sqrt(2) times as much."""
    ids = [[i % 2] for i in range(40)]
    success = np.repeat([[i % 2, i % 2] for i in range(40)], 1, axis=0).astype(float)
    model = fit_all(prompts_of(ids), success)
    once, four_times = model.logits(prompts_of([[0], [0, 5, 0, 6, 0, 7, 0]]), np.arange(2)) - model.bias
    assert once[0] < -0.5
    assert four_times == pytest.approx(2 * once, rel=1e-5)


def test_a_segment_moves_its_own_prompts_and_the_unknown_one_moves_none() -> None:
    rng = np.random.default_rng(5)
    segment = np.arange(300) % 3
    prompts = replace(prompts_of([()] * 300), segment=segment)
    success = (rng.random((300, 2)) < np.array([0.5, 0.1, 0.9])[segment][:, None]).astype(float)
    count = np.ones_like(success)
    model = fit_linear(prompts, np.arange(300), success, count, vocabulary=1, n_segments=2, settings=CONVERGED)
    assert not model.segment[0].any()
    logits = model.logits(prompts, np.arange(3)).mean(axis=1)
    assert logits[1] < -1 < logits[0] < 1 < logits[2]


def test_equal_embeddings_weigh_nothing_instead_of_magnifying_their_rounding() -> None:
    rng = np.random.default_rng(6)
    same = rng.normal(size=4) / 3
    prompts = prompts_of([()] * 101, embedding=np.tile(same, (101, 1)))
    model = fit_all(prompts, outcomes(rng, 101, 2))
    assert np.abs(model.embedding).max() < 1e-3
    assert np.abs(model.bias).max() < 3


def test_the_order_of_prompts_does_not_matter(token_world: Callable[..., Any]) -> None:
    world = token_world(n=200, seed=6)
    success, count = world.data.cells(world.data.rows.success)
    order = np.random.default_rng(0).permutation(200)
    fits = [
        fit_linear(
            world.data.prompts,
            np.arange(200)[each],
            success[each],
            count[each],
            vocabulary=world.vocabulary,
            n_segments=3,
            settings=LinearSettings(),
        ).logits(world.data.prompts, np.arange(200))
        for each in (slice(None), order)
    ]
    assert fits[0] == pytest.approx(fits[1], abs=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_outcomes_of_one_kind_give_finite_weights(value: float) -> None:
    rng = np.random.default_rng(7)
    prompts = prompts_of([()] * 30, embedding=rng.normal(size=(30, 4)))
    logits = fit_all(prompts, np.full((30, 2), value)).logits(prompts, np.arange(30))
    assert np.isfinite(logits).all() and ((logits > 0) == (value == 1)).all()
