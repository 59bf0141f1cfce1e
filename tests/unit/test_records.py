from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from router_ml.errors import InputError, RequestError
from router_ml.exploration import Drawn, Exploration, ExplorationRule
from router_ml.privacy import NoText
from router_ml.records import (
    OutcomeReport,
    decision_line,
    loss_line,
    outcome_line,
    outcome_report,
    parse_line,
    shadow_line,
)
from router_ml.types import (
    Candidate,
    Constraints,
    Decision,
    Digest,
    Message,
    Reason,
    Rejection,
    Request,
    ShadowDecision,
)
from router_ml.v1 import log_pb2

MICROS = 1_763_674_435_123_456

texts = st.text(alphabet=st.characters(codec=None), max_size=30)
"""Any string Python can hold: null characters, lone surrogates, emoji."""
names = st.text(alphabet="abcé-1", min_size=1, max_size=6)
tokens = st.integers(0, 2**31 - 1)
amounts = st.floats(0, 1e9, allow_nan=False)
shares = st.floats(0, 1)
maybe = st.none


def tuples(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=3).map(tuple)


prompts = st.one_of(
    st.fixed_dictionaries({"text": texts}),
    st.fixed_dictionaries({"messages": st.lists(st.builds(Message, texts, texts), min_size=1, max_size=3).map(tuple)}),
    st.fixed_dictionaries(
        {"embedding": st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=4).map(lambda x: np.float32(x))}
    ),
)
constraints = st.builds(
    Constraints,
    tuples(names),
    tuples(names),
    tuples(names),
    tuples(names),
    max_cost_usd=maybe() | amounts,
    max_output_tokens=maybe() | st.integers(1, 9999),
)
requests = st.builds(
    lambda prompt, rest: Request(**prompt, **rest),
    prompts,
    st.fixed_dictionaries(
        {
            "segment": maybe() | texts,
            "session_id": maybe() | texts,
            "tenant": maybe() | texts,
            "constraints": constraints,
            "quality_target": maybe() | shares,
            "min_success_probability": maybe() | shares,
            "input_tokens": maybe() | tokens,
            "cached_input_tokens": st.dictionaries(names, tokens, max_size=2),
            "batch": st.booleans(),
        }
    ),
)
candidates = st.builds(
    Candidate,
    offer=names,
    model=names,
    p_success=shares | st.just(math.nan),
    output_tokens=maybe() | amounts,
    cost_usd=maybe() | amounts,
    latency_ms=maybe() | amounts,
    rejected=maybe() | st.sampled_from(Rejection),
)
decisions = st.builds(
    Decision,
    decision_id=names,
    offer=names,
    model=names,
    fallbacks=tuples(names),
    candidates=tuples(candidates),
    reasons=tuples(st.sampled_from(Reason)),
    propensity=st.floats(1e-9, 1),
    quality_target=maybe() | shares,
    version=texts,
    arm=texts,
    bundle_sha256=names,
)
reports = st.builds(
    OutcomeReport,
    decision_id=names,
    offer=maybe() | names,
    model=maybe() | names,
    success=maybe() | shares,
    input_tokens=maybe() | tokens,
    cached_input_tokens=maybe() | tokens,
    output_tokens=maybe() | tokens,
    cost_usd=maybe() | amounts,
    latency_ms=maybe() | amounts,
    ttft_ms=maybe() | amounts,
    error=maybe() | names,
)


DIGEST = Digest(np.float32([0.6, -0.8]), np.float32([0, 1.5]), 3.0, "e" * 64)


def carried(text: str) -> str:
    """What UTF-8 can carry of a string."""
    return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)


def optional(record: Any, field: str) -> Any:
    return getattr(record, field) if record.HasField(field) else None


def check_request(record: log_pb2.RequestRecord, request: Request) -> None:
    for field in ("text", "segment", "session_id", "tenant"):
        value = getattr(request, field)
        assert optional(record, field) == (None if value is None else carried(value))
    told = [Message(**turn) for turn in json.loads(optional(record, "messages") or "[]")]
    assert told == [Message(carried(turn.role), carried(turn.content)) for turn in request.messages]
    given_embedding = [] if request.embedding is None else request.embedding.tolist()
    assert np.frombuffer(record.embedding_f32, "<f4").tolist() == given_embedding
    for field in ("quality_target", "min_success_probability", "input_tokens"):
        assert optional(record, field) == getattr(request, field)
    assert dict(record.cached_input_tokens) == request.cached_input_tokens
    assert record.batch == request.batch
    for field in ("allowed_models", "denied_models", "allowed_regions", "required_capabilities"):
        assert tuple(getattr(record.constraints, field)) == getattr(request.constraints, field)
    for field in ("max_cost_usd", "max_output_tokens"):
        assert optional(record.constraints, field) == getattr(request.constraints, field)


@settings(max_examples=200, deadline=None)
@given(request=requests, decision=decisions)
def test_a_decision_is_read_back_as_it_was(request: Request, decision: Decision) -> None:
    line = decision_line(request, decision, MICROS)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    record = parse_line(line).decision
    check_request(record.request, request)
    assert record.time_unix_micros == MICROS
    for field in ("decision_id", "offer", "model", "propensity", "bundle_sha256"):
        assert getattr(record, field) == getattr(decision, field)
    assert (record.version, record.arm) == (carried(decision.version), carried(decision.arm))
    assert optional(record, "quality_target") == decision.quality_target
    assert tuple(record.fallbacks) == decision.fallbacks
    assert tuple(record.reasons) == decision.reasons
    for told, candidate in zip(record.candidates, decision.candidates, strict=True):
        assert (told.offer, told.model, told.rejected) == (candidate.offer, candidate.model, candidate.rejected or "")
        p_success = optional(told, "p_success")
        assert p_success == candidate.p_success or (p_success is None and math.isnan(candidate.p_success))
        for field in ("output_tokens", "cost_usd", "latency_ms"):
            assert optional(told, field) == getattr(candidate, field)


@settings(max_examples=200, deadline=None)
@given(request=requests, decision=decisions, report=reports)
def test_lines_are_what_protobuf_itself_would_write(
    request: Request, decision: Decision, report: OutcomeReport
) -> None:
    digest = NoText(b"k" * 16).prompt(Request(text="a"), decision._replace(digest=DIGEST))
    even = Drawn(Exploration(0.05, floor=0.0), None)
    unsure = Drawn(Exploration(0.05, ExplorationRule.THOMPSON, 3.0, 0.5, "salt"), (0.25, 1.5))
    looked_on = ShadowDecision("d", "next", "v2", "ab", "a@eu", "a", 0.75, 0.5, True, 0.25, 1.5, 0.5, 120, "")
    for line in (
        decision_line(request, decision, MICROS),
        decision_line(Request(text="a"), decision, MICROS, number=2**40, prompt=digest),
        decision_line(Request(text="a"), decision, MICROS, prompt={"withheld": True}),
        decision_line(request, decision._replace(exploration=even), MICROS),
        decision_line(request, decision._replace(exploration=unsure), MICROS, number=1),
        decision_line(request, decision._replace(arm="shorter/v2", arm_propensity=0.5), MICROS),
        shadow_line(looked_on, MICROS),
        shadow_line(looked_on._replace(offer="", p_success=math.nan, cost_usd=None, agrees=False), MICROS),
        outcome_line(report, MICROS),
        loss_line("1-ab", 2**40, 3, "queue full", MICROS),
        loss_line("1-ab", 1, None, "", MICROS),
    ):
        strict = json_format.Parse(line, log_pb2.JournalRecord())
        printed = json_format.MessageToDict(strict, preserving_proto_field_name=True)
        ours = json.loads(line)
        assert _without_empty(ours) == _without_empty(printed)


def _without_empty(value: Any) -> Any:
    """A field that is empty and one that is left out are the same in proto JSON, where presence is not tracked."""
    if isinstance(value, dict):
        kept = {key: _without_empty(entry) for key, entry in value.items()}
        return {key: entry for key, entry in kept.items() if entry not in ([], {}, "")}
    return [_without_empty(entry) for entry in value] if isinstance(value, list) else value


@settings(max_examples=200, deadline=None)
@given(report=reports)
def test_an_outcome_is_read_back_as_it_was(report: OutcomeReport) -> None:
    record = parse_line(outcome_line(report, MICROS)).outcome
    assert record.time_unix_micros == MICROS
    assert outcome_report(record) == report


def test_zero_is_kept_apart_from_unknown() -> None:
    zero = parse_line(outcome_line(OutcomeReport("d", success=0.0, cost_usd=0.0, output_tokens=0), MICROS)).outcome
    assert zero.HasField("success") and zero.HasField("cost_usd") and zero.HasField("output_tokens")
    unknown = parse_line(outcome_line(OutcomeReport("d"), MICROS)).outcome
    assert not unknown.HasField("success") and not unknown.HasField("cost_usd")


def test_numbers_of_numpy_are_written() -> None:
    candidate = Candidate("o", "m", np.float32(0.25), np.float32(7), None, None)  # type: ignore[arg-type]
    decision = Decision("d", "o", "m", (), (candidate,), (Reason.BEST_VALUE,), 1.0, None, "v1", "", "ab")
    assert parse_line(decision_line(Request(text="a"), decision, MICROS)).decision.candidates[0].p_success == 0.25


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decision_id": None}, "`decision_id`"),
        ({"success": 1.01}, "`success`"),
        ({"success": math.nan}, "`success`"),
        ({"cost_usd": -0.01}, "`cost_usd`"),
        ({"cost_usd": math.inf}, "`cost_usd`"),
        ({"latency_ms": -1.0}, "`latency_ms`"),
        ({"ttft_ms": math.nan}, "`ttft_ms`"),
        ({"input_tokens": -1}, "`input_tokens`"),
        ({"cached_input_tokens": 1.5}, "`cached_input_tokens`"),
        ({"output_tokens": 2**31}, "`output_tokens`"),
        ({"model": 3}, "`model`"),
    ],
)
def test_an_outcome_out_of_range_is_refused_by_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        OutcomeReport(**{"decision_id": "d", **fields})


def test_an_outcome_of_a_default_decision_is_no_record() -> None:
    with pytest.raises(RequestError, match="`decision_id` must be the id of a decision; found none"):
        outcome_line(OutcomeReport("", success=1.0), MICROS)
    with pytest.raises(RequestError, match="`decision_id`"):
        outcome_report(log_pb2.OutcomeRecord(success=1.0))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\n", "holds none"),
        (b"hello\n", "holds none"),
        (b"\0\0\0\n", "holds none"),
        (b'{"mood":{}}\n', "holds none"),
        (b'{"decision":\n', "not a journal record"),
        (b'{"decision":7}\n', "not a journal record"),
        (b'{"decision":null}\n', "empty"),
        (b'{"outcome":{"success":"high"}}\n', "not a journal record"),
        (b'{"outcome":{"error":"\xff"}}\n', "not a journal record"),
        (b'{"outcome":{"error":"\\ud800"}}\n', "not a journal record"),
        (b'{"outcome":' + b"[" * 100_000 + b"\n", "not a journal record"),
    ],
)
def test_what_is_no_record_is_told_without_its_content(line: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_line(line)


def test_fields_of_a_later_version_are_ignored() -> None:
    record = parse_line(b'{"outcome":{"decision_id":"d","success":0.5,"mood":"fine"},"later":1}\n')
    assert outcome_report(record.outcome) == OutcomeReport("d", success=0.5)


FROZEN = (
    b'{"decision":{"decision_id":"019aa2d0-7e40-7000-8000-000000000001","time_unix_micros":"1763674435123456",'
    b'"request":{"text":"2+2?","segment":"math"},"offer":"small","model":"small","fallbacks":["large"],'
    b'"candidates":[{"offer":"small","model":"small","p_success":0.75,"output_tokens":12.0,"cost_usd":0.0001},'
    b'{"offer":"large","model":"large","p_success":0.875,"rejected":"max_cost"}],"reasons":["best_value"],'
    b'"propensity":1.0,"quality_target":0.99,"version":"3","arm":"","bundle_sha256":"ab"}}\n'
)


def test_a_line_of_the_first_version_is_still_written_and_read_the_same() -> None:
    small = Candidate("small", "small", 0.75, 12.0, 0.0001, None)
    large = Candidate("large", "large", 0.875, None, None, None, Rejection.MAX_COST)
    decision_id = "019aa2d0-7e40-7000-8000-000000000001"
    decision = Decision(
        decision_id, "small", "small", ("large",), (small, large), (Reason.BEST_VALUE,), 1.0, 0.99, "3", "", "ab"
    )
    line = decision_line(Request(text="2+2?", segment="math"), decision, 1763674435123456)
    assert line == FROZEN
    record = parse_line(FROZEN).decision
    assert (record.decision_id, record.candidates[1].rejected, record.request.text) == (decision_id, "max_cost", "2+2?")
