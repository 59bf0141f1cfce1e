from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from router_ml.explain import decision_dict, decision_lines
from router_ml.router import Router
from router_ml.types import Candidate, Decision, Reason, Rejection


@pytest.fixture
def decision() -> Decision:
    return Decision(
        decision_id="0192",
        offer="b",
        model="B",
        fallbacks=("c",),
        candidates=(
            Candidate("a", "A", 0.3, 20.0, 0.01, 100.0, Rejection.REGION),
            Candidate("b", "B", 0.9, 100.4, 0.0012345, None),
            Candidate("c", "B", 0.91, None, None, None),
        ),
        reasons=(Reason.BEST_VALUE,),
        propensity=1.0,
        quality_target=0.97,
        version="v7",
        arm="",
        bundle_sha256="ab" * 32,
    )


def test_the_lines_say_what_was_chosen_and_why(decision: Decision) -> None:
    lines = decision_lines(decision)
    assert lines[0] == "b: the best success for its cost at the quality target (quality target 97%)"
    assert lines[-1] == "version v7, decision 0192, propensity 1"
    assert decision_lines(decision._replace(arm="shorter/v7"))[-1].startswith("version v7 (arm shorter/v7), ")


def test_the_chosen_offer_comes_first_then_the_fallbacks_then_the_rest(decision: Decision) -> None:
    rows = [line.split() for line in decision_lines(decision)[2:-1]]
    assert rows == [
        [">", "b", "90.0%", "$1.234", "100"],
        ["c", "91.0%", "unknown", "unknown"],
        ["a", "30.0%", "$10.000", "20", "region"],
    ]


def test_columns_stand_under_their_heads(decision: Decision) -> None:
    long = decision.candidates[2]._replace(offer="an-offer-of-a-long-name@eu-central")
    _, head, *rows, _ = decision_lines(decision._replace(candidates=(*decision.candidates[:2], long)))
    for row in rows:
        assert len(row.removesuffix("  region")) == len(head)


def test_a_target_is_never_rounded_up(decision: Decision) -> None:
    assert "(quality target 99.5%)" in decision_lines(decision._replace(quality_target=0.995))[0]
    assert "(quality target 57%)" in decision_lines(decision._replace(quality_target=0.57))[0]


def test_no_target_is_named_where_none_was_in_force(decision: Decision) -> None:
    assert "target" not in decision_lines(decision._replace(quality_target=None, reasons=(Reason.NONE_CLEARS,)))[0]


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_words(decision: Decision, reason: Reason) -> None:
    assert decision_lines(decision._replace(reasons=(reason,)))[0].count(":") == 1


def test_several_reasons_are_all_told(decision: Decision) -> None:
    both = decision._replace(reasons=(Reason.BEST_VALUE, Reason.ONLY_ELIGIBLE))
    assert "quality target; the constraints leave no other offer" in decision_lines(both)[0]


def test_an_unknown_probability_is_called_so(decision: Decision) -> None:
    """A newer server may leave it out."""
    unknown = decision.candidates[0]._replace(p_success=math.nan)
    line = decision_lines(decision._replace(candidates=(unknown, *decision.candidates[1:])))[-2]
    assert "nan" not in line
    assert line.split()[:2] == ["a", "unknown"]


def test_a_decision_as_json_keeps_every_field(decision: Decision) -> None:
    data = json.loads(json.dumps(decision_dict(decision), allow_nan=False))
    assert data["offer"] == "b"
    assert data["reasons"] == ["best_value"]
    assert data["candidates"][0] == {
        "offer": "a",
        "model": "A",
        "p_success": 0.3,
        "output_tokens": 20.0,
        "cost_usd": 0.01,
        "latency_ms": 100.0,
        "rejected": "region",
    }
    assert data["candidates"][2]["cost_usd"] is None
    assert set(data) == set(Decision._fields)


def test_a_real_decision_can_be_explained(tiny_bundle: Path) -> None:
    decision = Router.load(tiny_bundle).route("bab deb", allowed_regions=["eu"])
    lines = decision_lines(decision)
    assert lines[0].startswith(f"{decision.offer}: ")
    assert sum(line.startswith(">") for line in lines) == 1
    assert len(lines) == 3 + len(decision.candidates)
    json.dumps(decision_dict(decision), allow_nan=False)
