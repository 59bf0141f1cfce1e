"""What one policy is worth beside another, where the truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from training.nightly.choices import Requests
from training.nightly.value import compare, evidence_of

LOSING, WINNING = 0, 3
"""Of the four models of the token world, the least and the most able."""


def requests_of(world: Any) -> Requests:
    return Requests(world.data, world.data.models, np.arange(len(world.data.rows)), ())


def compared(world: Any, new: int, old: int, willingness: float = 0.0) -> dict[str, Any]:
    requests = requests_of(world)
    r, m = len(world.data.rows), len(world.data.models)
    rng = np.random.default_rng(5)
    q = np.clip(world.truth[world.data.rows.prompt] + rng.normal(0, 0.1, (r, m)), 0, 1)
    q_cost = 0.001 * 4.0 ** np.arange(m) * rng.lognormal(0, 0.1, (r, m))
    evidence = evidence_of(requests, q_cost)
    found = compare(requests, evidence, np.full(r, new), np.full(r, old), q, q_cost, willingness, 0.95)
    return {name: difference.to_dict() for name, difference in found.items()}


@pytest.mark.parametrize("partial", [False, True])
def test_the_difference_of_two_policies_is_found(token_world: Callable[..., Any], partial: bool) -> None:
    world = token_world(n=3000, seed=3, partial=partial)
    found = compared(world, WINNING, LOSING)["success"]
    truth = float((world.truth[:, WINNING] - world.truth[:, LOSING]).mean())
    assert found["low"] - 0.02 <= truth <= found["high"] + 0.02
    assert found["new_low"] <= found["new"] <= found["new_high"]
    assert found["new"] - found["old"] == pytest.approx(found["difference"], abs=1e-9)
    assert found["verdict"] == "better"
    assert compared(world, LOSING, WINNING)["success"]["verdict"] == "worse"


@pytest.mark.parametrize("partial", [False, True])
def test_a_policy_is_no_different_from_itself(token_world: Callable[..., Any], partial: bool) -> None:
    found = compared(token_world(n=1500, partial=partial), WINNING, WINNING)
    assert {figure["difference"] for figure in found.values()} == {0.0}
    assert {figure["verdict"] for figure in found.values()} == {"no different beyond noise"}


def test_cost_is_better_where_it_is_less_and_counts_in_the_value(token_world: Callable[..., Any]) -> None:
    world = token_world(n=3000, seed=3, partial=True)
    found = compared(world, LOSING, WINNING, willingness=100.0)
    assert found["cost_usd"]["verdict"] == "better"
    assert found["cost_usd"]["difference"] == pytest.approx(0.001 - 0.064, rel=0.05)
    assert found["value"]["verdict"] == "better"  # six points of success for every tenth of a cent


def test_where_no_propensity_is_logged_estimated_ones_serve_and_are_told(token_world: Callable[..., Any]) -> None:
    world = token_world(n=3000, seed=3, partial=True)
    unknown = np.full(len(world.data.rows), np.nan)
    blind = replace(world, data=replace(world.data, rows=replace(world.data.rows, propensity=unknown)))
    found = compared(blind, WINNING, LOSING)["success"]
    truth = float((world.truth[:, WINNING] - world.truth[:, LOSING]).mean())
    assert found["low"] - 0.02 <= truth <= found["high"] + 0.02
    basis = evidence_of(requests_of(blind), np.zeros((3000, 4))).basis
    assert "100% of the propensities are estimated, and all rests on these estimates" in basis
    assert "estimated" not in evidence_of(requests_of(world), np.zeros((3000, 4))).basis
