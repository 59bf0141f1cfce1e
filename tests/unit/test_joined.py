from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from router_ml.records import OutcomeReport, decision_line, outcome_line, parse_line
from router_ml.types import Candidate, Decision, Reason, Request
from training.joined import Joined, join

MICROS = 1_763_674_435_123_456
MODELS = {"small": "small", "small-eu": "small", "large": "large"}
FIELDS = (
    "success",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "cost_usd",
    "latency_ms",
    "ttft_ms",
    "error",
)


def joined(*reports: OutcomeReport) -> Joined:
    """Through the very lines of a journal."""
    candidates = tuple(Candidate(offer, model, 0.5, None, None, None) for offer, model in MODELS.items())
    decision = Decision("d", "small", "small", (), candidates, (Reason.BEST_VALUE,), 0.8, None, "3", "", "ab")
    record = parse_line(decision_line(Request(text="2 + 2?"), decision, MICROS)).decision
    return join(record, [parse_line(outcome_line(report, MICROS)).outcome for report in reports])


def offers(result: Joined) -> list[tuple[str | None, float | None]]:
    return [(row["offer"], row["success"]) for row in result.rows]


def test_of_two_offers_of_one_model_the_row_is_that_whose_success_is_known() -> None:
    result = joined(
        OutcomeReport("d", offer="small-eu", success=1.0, output_tokens=7), OutcomeReport("d", error="timeout")
    )
    assert offers(result) == [("small-eu", 1.0)]
    assert result.rows[0]["error"] is None and result.rows[0]["output_tokens"] == 7
    (left,) = result.left_out
    assert (left.reason, left.outcome.error) == ("an outcome of a second offer of one model", "timeout")
    assert "`small-eu`" in left.detail


def test_of_two_offers_of_one_model_alike_the_row_is_that_reported_last() -> None:
    first, second = OutcomeReport("d", offer="small"), OutcomeReport("d", offer="small-eu")
    assert offers(joined(first, second)) == [("small-eu", None)]
    assert offers(joined(second, first)) == [("small", None)]
    scored = [OutcomeReport("d", offer=offer, success=value) for offer, value in (("small", 0.0), ("small-eu", 1.0))]
    assert offers(joined(*scored)) == [("small-eu", 1.0)]
    assert offers(joined(second, first, second)) == [("small-eu", None)]


def test_an_offer_that_no_one_knows_leaves_the_decision_unanswered() -> None:
    result = joined(OutcomeReport("d", offer="gone", success=1.0))
    assert (offers(result), result.is_answered) == ([("small", None)], False)
    assert [left.reason for left in result.left_out] == ["an outcome of an unknown offer"]


def test_a_row_tells_when_its_success_was_last_reported() -> None:
    candidates = (Candidate("small", "small", 0.5, None, None, None),)
    decision = Decision("d", "small", "small", (), candidates, (Reason.BEST_VALUE,), 0.8, None, "3", "", "ab")
    record = parse_line(decision_line(Request(text="2 + 2?"), decision, MICROS)).decision
    told = [OutcomeReport("d", success=1.0), OutcomeReport("d", success=0.0), OutcomeReport("d", output_tokens=7)]
    lines = [outcome_line(report, MICROS + 1_000_000 * k) for k, report in enumerate(told)]
    (row,) = join(record, [parse_line(line).outcome for line in lines]).rows
    assert (row["reported_at"] - row["timestamp"]).total_seconds() == 1
    (row,) = join(record, [parse_line(lines[2]).outcome]).rows
    assert row["reported_at"] is None


REPORTS = st.lists(
    st.builds(
        OutcomeReport,
        decision_id=st.just("d"),
        offer=st.sampled_from([None, *MODELS]),
        success=st.none() | st.floats(0, 1),
        input_tokens=st.none() | st.integers(0, 2**31 - 1),
        cached_input_tokens=st.none() | st.integers(0, 2**31 - 1),
        output_tokens=st.none() | st.integers(0, 2**31 - 1),
        cost_usd=st.none() | st.floats(0, 10),
        latency_ms=st.none() | st.floats(0, 1e6),
        ttft_ms=st.none() | st.floats(0, 1e6),
        error=st.none() | st.text("xyé\0", min_size=1, max_size=4),
    ),
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(reports=REPORTS)
def test_rows_hold_what_a_plain_reading_of_the_reports_says(reports: Sequence[OutcomeReport]) -> None:
    told: dict[str, dict[str, Any]] = {}
    for report in reports:
        offer = report.offer or "small"
        values = {name: getattr(report, name) for name in FIELDS if getattr(report, name) is not None}
        told[offer] = told.pop(offer, {}) | values
    result = joined(*reports)
    assert result.is_answered == bool(reports)
    for row in result.rows:
        assert (row["model"], row["request_id"]) == (MODELS[row["offer"]], "d")
        assert row["propensity"] == (0.8 if row["model"] == "small" else None)
        assert {name: row[name] for name in FIELDS if row[name] is not None} == told.get(row["offer"], {})
    assert sorted(row["model"] for row in result.rows) == sorted({MODELS[offer] for offer in told} or {"small"})
    assert len(result.rows) + len(result.left_out) == max(1, len(told))
    scored = {MODELS[offer] for offer, values in told.items() if "success" in values}
    assert scored == {row["model"] for row in result.rows if row["success"] is not None}
