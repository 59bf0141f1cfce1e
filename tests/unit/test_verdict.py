"""Deploy where the evidence carries a router, and nowhere else: on simulated truth."""

from __future__ import annotations

import numpy as np
import pytest

from training.operating import Outcomes
from training.verdict import Layer, Rating, Verdict, judge

PRICE = np.array([0.1, 1.0, 4.0])


def rating(
    seed: int, n: int = 600, *, prompt: float = 0.0, segment: float = 0.0, partial: bool = False, noise: float = 0.0
) -> Rating:
    """A world in which difficulty has a part that only the prompt tells and one that the segment tells.

    `noise` is added to what the router believes: it learned what is not there.
    """
    rng = np.random.default_rng(seed)
    of_segment = rng.integers(0, 2, n) * 2 - 1
    of_prompt = rng.normal(size=n)
    ability = np.array([0.0, 0.8, 1.8])
    leaning = np.array([1.0, 0.6, 0.1])  # what is hard is hard for the cheap ones
    base, by_segment = np.tile(ability, (n, 1)), segment * of_segment[:, None] * leaning
    by_prompt = prompt * of_prompt[:, None] * leaning
    truth = sigmoid(base - by_segment - by_prompt)
    success = (rng.random(truth.shape) < truth).astype(float)
    p = {
        Layer.ROUTER: sigmoid(base - by_segment - by_prompt + noise * rng.normal(size=truth.shape)),
        Layer.SEGMENT_MEANS: sigmoid(base - by_segment),
        Layer.SINGLE_MODELS: sigmoid(base),
    }
    price = np.tile(PRICE, (n, 1))
    if partial:
        seen = rng.integers(0, 3, n)[:, None] == np.arange(3)
        return Rating(p, price, np.where(seen, success, np.nan), None)
    return Rating(p, price, success, Outcomes(success, price, "complete"))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


@pytest.mark.parametrize("partial", [False, True], ids=["complete", "one model per prompt"])
def test_a_router_that_knows_is_deployed(partial: bool) -> None:
    verdict = judge(rating(0, n=1500, prompt=2.0, segment=0.5, partial=partial))
    assert verdict.deploy and verdict.serves is Layer.ROUTER
    assert verdict.measure == ("log loss" if partial else "decision value")
    assert verdict.over_single_models.low > 0
    assert "better than that of single models" in verdict.reason


@pytest.mark.parametrize("partial", [False, True], ids=["complete", "one model per prompt"])
def test_where_only_the_segment_tells_a_router_that_adds_noise_leaves_it_to_segment_means(partial: bool) -> None:
    verdict = judge(rating(1, n=1500, segment=1.5, noise=1.0, partial=partial))
    assert not verdict.deploy
    assert verdict.serves is Layer.SEGMENT_MEANS


@pytest.mark.parametrize(("n", "noise"), [(60, 0.2), (300, 0.2), (300, 0.5)])
def test_a_router_that_learned_nothing_is_deployed_in_at_most_a_few_of_a_hundred_worlds(n: int, noise: float) -> None:
    """Little noise is the hard case: such a router is hardly worse, and its curve has more points to pick from."""
    verdicts = [judge(rating(seed, n=n, noise=noise)) for seed in range(60)]
    assert sum(verdict.deploy for verdict in verdicts) <= 4  # 1.5 expected at 2.5 %; 5 or more are a chance of 2 %
    assert all(verdict.deploy or verdict.serves is not Layer.ROUTER for verdict in verdicts)


def test_thirty_prompts_do_not_carry_a_router_that_knows_little() -> None:
    verdicts = [judge(rating(seed, n=30, prompt=0.5)) for seed in range(20)]
    assert sum(verdict.deploy for verdict in verdicts) <= 5
    assert "add logs" in next(verdict for verdict in verdicts if not verdict.deploy).reason


def test_models_that_are_not_offered_play_no_part() -> None:
    found = rating(2, n=800, prompt=2.0)
    priced = found.price.copy()
    priced[:, 1] = np.nan
    assert found.outcomes is not None
    poisoned = found.outcomes.success.copy()
    poisoned[:, 1] = np.nan
    one = judge(Rating(found.p_success, priced, found.success, found.outcomes))
    other = judge(
        Rating(found.p_success, priced, found.success, Outcomes(poisoned, found.outcomes.cost_usd, "complete"))
    )
    assert one == other and one.deploy


def test_a_verdict_becomes_plain_data() -> None:
    verdict = judge(rating(3))
    assert isinstance(verdict, Verdict)
    data = verdict.to_dict()
    assert data["deploy"] is False and data["serves"] == "single models"
    assert set(data["over_single_models"]) == {"estimate", "low", "high", "level"}
