"""Candidates kept as numbers, and the bytes made of them, beside what protobuf and orjson make of each candidate."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_ml import convert
from router_ml.records import decision_line, parse_line
from router_ml.types import Candidate, Decision, Reason, Rejection, Request
from router_ml.weighed import OfferNames, Weighed

OFFERS = (("small@eu", "small"), ("groß@us", "groß"), ('quo"te', "small"))
NAMES = OfferNames(OFFERS)
"""Shared by all examples, as the decisions of a router share theirs."""

numbers = (
    st.floats(0, 1e9) | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from((0.0, math.nan, math.inf))
)
rejections = st.none() | st.lists(st.none() | st.sampled_from(Rejection), min_size=3, max_size=3)


def decision(candidates: Weighed | tuple[Candidate, ...]) -> Decision:
    return Decision("d", "small@eu", "small", (), candidates, (Reason.BEST_VALUE,), 1.0, 0.97, "7", "", "ab")


def plain(weighed: Weighed) -> tuple[Candidate, ...]:
    return tuple(weighed)


@settings(max_examples=500, deadline=None)
@given(st.lists(numbers, min_size=12, max_size=12), rejections)
def test_bytes_are_those_of_candidates_made_one_by_one(
    values: list[float], rejected: list[Rejection | None] | None
) -> None:
    weighed = Weighed(NAMES, values, rejected)
    one, other = decision(weighed), decision(plain(weighed))
    assert convert.decision_to_proto(one) == convert.decision_to_proto(other)
    assert convert.batch_to_proto([one, other]).items[0] == convert.batch_to_proto([other, one]).items[0]
    assert convert.stream_answer_to_proto("a", one) == convert.stream_answer_to_proto("a", other)
    asked = Request(text="hi")
    assert json.loads(decision_line(asked, one, 5)) == json.loads(decision_line(asked, other, 5))
    if math.inf not in values:
        assert weighed.message() is not None and weighed.json() is not None


@pytest.mark.parametrize("text", ["hi", "a lone surrogate \ud800"])
def test_a_line_holds_the_candidates_whatever_the_prompt(text: str) -> None:
    weighed = Weighed(NAMES, [0.5, 12.0, 0.001, math.nan] * 3, [None, Rejection.REGION, None])
    record = parse_line(decision_line(Request(text=text), decision(weighed), 5)).decision
    assert [each.rejected for each in record.candidates] == ["", "region", ""]
    assert [each.cost_usd for each in record.candidates] == [0.001] * 3
    assert not any(each.HasField("latency_ms") for each in record.candidates)


def test_candidates_are_found_by_place_and_equal_a_tuple_of_the_same() -> None:
    weighed = Weighed(NAMES, [0.5, 12.0, 0.001, 100.0] * 3, [None, None, Rejection.REGION])
    last = Candidate('quo"te', "small", 0.5, 12.0, 0.001, 100.0, Rejection.REGION)
    assert (weighed[2], weighed[-1], weighed[1:], len(weighed)) == (last, last, plain(weighed)[1:], 3)
    assert weighed == plain(weighed) and plain(weighed) == weighed and hash(weighed) == hash(plain(weighed))
    assert weighed != plain(weighed)[:2] and weighed != "abc" and weighed != 3
    assert repr(weighed) == repr(plain(weighed))


def test_what_is_remembered_of_layouts_is_bounded() -> None:
    names = OfferNames(OFFERS)
    for n in range(2**12):
        Weighed(names, [math.nan if n >> at & 1 else 0.5 for at in range(12)]).message()
    assert len(names._layouts) <= 256
