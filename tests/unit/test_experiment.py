"""Who is in a test, and on which side: sticky, even, independent, and only ever taken in by a ramp."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from router_ml.experiment import Arm, Experiment, Shadow, Unit, position
from router_ml.types import Request

LAYER = "layer"
UNITS = [f"session-{k}" for k in range(10_000)]


def experiment(name: str = "one", *, share: float = 0.2, start: float = 0.0, arms: int = 2) -> Experiment:
    sides = tuple(Arm(f"arm-{k}", f"v{k}") for k in range(arms))
    return Experiment(name, f"salt of {name}", Unit.SESSION, None, share, start, sides)


def arms_of(test: Experiment) -> np.ndarray:
    """Arm of each unit; -1: not in the test."""
    found = [test.arm_of(LAYER, unit) for unit in UNITS]
    return np.array([-1 if arm is None else arm for arm in found])


def within_noise(count: int, n: int, probability: float) -> bool:
    """At five standard errors, once in two million."""
    return abs(count - n * probability) < 5 * np.sqrt(n * probability * (1 - probability))


def test_positions_are_spread_evenly() -> None:
    found = np.array([position("salt", unit) for unit in UNITS])
    assert found.min() >= 0 and found.max() < 1
    counts = np.histogram(found, bins=20, range=(0, 1))[0]
    assert all(within_noise(count, len(UNITS), 1 / 20) for count in counts)


@pytest.mark.parametrize("arms", [2, 3, 5])
def test_each_arm_gets_the_share_that_was_asked_for(arms: int) -> None:
    found = arms_of(experiment(share=0.1, arms=arms, start=0.3))
    assert all(within_noise(int((found == arm).sum()), len(UNITS), 0.1) for arm in range(arms))


def test_a_ramp_takes_units_in_and_moves_none() -> None:
    before = arms_of(experiment(share=0.005))
    for share in (0.01, 0.05, 0.2, 0.5):
        after = arms_of(experiment(share=share))
        assert (after[before >= 0] == before[before >= 0]).all()
        assert (after >= 0).sum() > (before >= 0).sum()
        before = after
    assert (before >= 0).all(), "half of the units to each of two arms is all of them"


def test_tests_on_stretches_of_their_own_share_no_unit() -> None:
    first, second = arms_of(experiment("one")), arms_of(experiment("other", start=0.4))
    assert not ((first >= 0) & (second >= 0)).any()


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_cut_out_of_a_layer_no_unit_is_in_two_tests_and_a_ramp_moves_none(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.random(4))
    before, after = [], []
    for k, (start, stop) in enumerate(pairwise([0.0, *ends.tolist(), 1.0])):
        arms = int(rng.integers(2, 6))
        ceiling = (stop - start) / arms
        before.append(arms_of(experiment(f"test {k}", share=ceiling * rng.random(), start=start, arms=arms)))
        after.append(arms_of(experiment(f"test {k}", share=ceiling, start=start, arms=arms)))
    for small, large in zip(before, after, strict=True):
        assert (large[small >= 0] == small[small >= 0]).all()
    taken = np.sum([arms >= 0 for arms in after], axis=0)
    assert taken.max() == 1 and (taken == 0).mean() < 1e-3, "the whole layer, but for rounding at the ends"


def test_arms_of_two_tests_on_the_same_units_are_independent() -> None:
    first, second = arms_of(experiment("one", share=0.5)), arms_of(experiment("other", share=0.5))
    assert within_noise(int((first == second).sum()), len(UNITS), 0.5)


def test_the_unit_is_what_was_asked_for_and_what_is_missing_is_in_no_test() -> None:
    request = Request(text="a", session_id="s", tenant="t", segment="chat")
    units = {unit: replace(experiment(), unit=unit).unit_id(request, "d") for unit in Unit}
    assert units == {Unit.SESSION: "s", Unit.TENANT: "t", Unit.REQUEST: "d"}
    assert experiment().unit_id(Request(text="a", tenant="t", session_id=""), "d") is None


def test_a_test_of_some_segments_takes_no_others() -> None:
    test = replace(experiment(), segments=("chat", "code"))
    taken = [test.unit_id(Request(text="a", session_id="s", segment=segment), "d") for segment in ("code", "law", None)]
    assert taken == ["s", None, None]


def test_a_shadow_takes_its_share_whatever_the_tests_take() -> None:
    shadow = Shadow("look", "shadow salt", Unit.SESSION, None, 0.1, "v")
    taken = np.array([shadow.takes(Request(text="a", session_id=unit), "d") for unit in UNITS])
    tested = arms_of(experiment(share=0.25)) >= 0
    assert within_noise(int(taken.sum()), len(UNITS), 0.1)
    assert within_noise(int((taken & tested).sum()), len(UNITS), 0.05)
