import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from router_ml import convert
from router_ml.errors import BundleError, NoEligibleOfferError, RequestError, RouterMlError, RouterUnavailable
from router_ml.records import OutcomeReport
from router_ml.request import MAX_MESSAGES, MAX_TOKENS, check_request
from router_ml.types import (
    AbTest,
    ArmDescription,
    Candidate,
    Constraints,
    Decision,
    Description,
    Message,
    Reason,
    Rejection,
    Request,
    ShadowTest,
)
from router_ml.v1 import router_pb2 as pb

examples = settings(derandomize=True, deadline=None)

DECISION_ID = "0193488e-7c00-7abc-8def-0123456789ab"

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
names = st.lists(texts, max_size=3).map(tuple)
amounts = st.floats(0, allow_infinity=False, allow_nan=False)
shares = st.floats(0, 1)
tokens = st.integers(0, MAX_TOKENS)
prompts = st.one_of(
    st.fixed_dictionaries({"text": texts.filter(lambda text: not text.isspace())}),
    st.fixed_dictionaries({"messages": st.lists(st.builds(Message, texts, texts), max_size=3).map(tuple)}).map(
        lambda prompt: {"messages": (*prompt["messages"], Message("user", "hello"))}
    ),
    st.fixed_dictionaries(
        {"embedding": arrays.arrays(np.float32, st.integers(1, 8), elements=st.floats(0.5, 1e6, width=32))}
    ),
)
constraints = st.builds(
    Constraints, names, names, names, names, st.none() | amounts, st.none() | st.integers(1, MAX_TOKENS)
)
requests = st.builds(
    lambda prompt, **fields: Request(**prompt, **fields),
    prompts,
    segment=st.none() | texts,
    session_id=st.none() | texts,
    tenant=st.none() | texts,
    constraints=constraints,
    quality_target=st.none() | st.floats(0, 1, exclude_min=True),
    min_success_probability=st.none() | shares,
    input_tokens=st.none() | tokens,
    cached_input_tokens=st.dictionaries(texts, tokens, max_size=3),
    batch=st.booleans(),
)
candidates = st.builds(
    Candidate,
    texts,
    texts,
    shares,
    st.none() | amounts,
    st.none() | amounts,
    st.none() | amounts,
    st.none() | st.sampled_from(Rejection),
)
decisions = st.builds(
    Decision,
    decision_id=texts,
    offer=texts,
    model=texts,
    fallbacks=names,
    candidates=st.lists(candidates, max_size=3).map(tuple),
    reasons=st.lists(st.sampled_from(Reason), max_size=3).map(tuple),
    propensity=shares,
    quality_target=st.none() | shares,
    version=texts,
    arm=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    bundle_sha256=texts,
    digest=st.none(),  # stays in the process that made it
)
outcomes = st.builds(
    OutcomeReport,
    decision_id=st.just(DECISION_ID),
    offer=st.none() | texts,
    model=st.none() | texts,
    success=st.none() | shares,
    input_tokens=st.none() | tokens,
    cached_input_tokens=st.none() | tokens,
    output_tokens=st.none() | tokens,
    cost_usd=st.none() | amounts,
    latency_ms=st.none() | amounts,
    ttft_ms=st.none() | amounts,
    error=st.none() | texts,
)
arms = st.lists(st.builds(ArmDescription, texts, texts, texts), max_size=3).map(tuple)
tests = st.builds(AbTest, texts, texts, texts, names, shares, shares, arms)
shadows = st.builds(ShadowTest, texts, texts, texts, names, shares, texts, texts)
descriptions = st.builds(
    Description,
    version=texts,
    bundle_sha256=texts,
    bundle_format=st.integers(0, 99),
    created=texts,
    training_start=st.none() | texts,
    training_end=st.none() | texts,
    encoder=texts,
    embedding_size=tokens,
    models=names,
    offers=names,
    catalog_as_of=st.none() | texts,
    segments=names,
    quality_targets=st.lists(shares, max_size=3).map(tuple),
    default_quality_target=shares,
    max_text_chars=tokens,
    refused=st.none() | texts,
    exploration=st.none() | texts,
    layer_salt=texts,
    tests=st.lists(tests, max_size=3).map(tuple),
    shadows=st.lists(shadows, max_size=3).map(tuple),
)


def over_the_wire(message):
    return type(message).FromString(message.SerializeToString())


def test_of_a_flood_of_messages_only_as_many_are_read_as_show_that_they_are_too_many():
    flood = pb.RouteRequest(messages=pb.Conversation(messages=[pb.Message(role="user", content="a")] * 50_000))
    request = convert.request_from_proto(flood)
    assert len(request.messages) == MAX_MESSAGES + 1
    with pytest.raises(RequestError, match="`messages` must hold at most 4096 messages"):
        check_request(request)


@examples
@given(requests)
def test_a_request_survives_the_wire(request):
    back = convert.request_from_proto(over_the_wire(convert.request_to_proto(request)))
    for field in Request.__slots__:
        if field != "embedding":
            assert getattr(back, field) == getattr(request, field)
    if request.embedding is None:
        assert back.embedding is None
    else:
        assert back.embedding.dtype == np.float32
        np.testing.assert_array_equal(back.embedding, request.embedding)


@examples
@given(decisions)
def test_a_decision_survives_the_wire(decision):
    assert convert.decision_from_proto(over_the_wire(convert.decision_to_proto(decision))) == decision


@examples
@given(outcomes)
def test_an_outcome_survives_the_wire(outcome):
    assert convert.outcome_from_proto(over_the_wire(convert.outcome_to_proto(outcome))) == outcome


@examples
@given(descriptions)
def test_a_description_survives_the_wire(description):
    assert convert.description_from_proto(over_the_wire(convert.description_to_proto(description))) == description


def test_a_model_that_cannot_be_judged_has_no_probability_on_the_wire():
    candidate = Candidate("o", "m", math.nan, None, None, None)
    decision = Decision(DECISION_ID, "o", "m", (), (candidate,), (), 1.0, None, "1", "", "ab")
    message = convert.decision_to_proto(decision)
    assert not message.candidates[0].HasField("p_success")
    assert math.isnan(convert.decision_from_proto(message).candidates[0].p_success)


def test_lone_surrogates_become_replacement_characters_one_for_one():
    request = Request(
        text="a\ud800\udc00b",
        tenant="t\udfff",
        constraints=Constraints(denied_models=("m\ud800",)),
        cached_input_tokens={"o\ud800": 3},
    )
    message = convert.request_to_proto(request)
    assert message.text == "a\ufffd\ufffdb"
    assert message.tenant == "t\ufffd"
    assert list(message.denied_models) == ["m\ufffd"]
    assert dict(message.cached_input_tokens) == {"o\ufffd": 3}
    turns = convert.request_to_proto(Request(messages=(Message("user", "a\ud800"),))).messages.messages
    assert turns[0].content == "a\ufffd"
    assert convert.outcome_to_proto(OutcomeReport(DECISION_ID, error="e\ud800")).error == "e\ufffd"


@pytest.mark.parametrize("text", ["a\0b", "\u202eשלום", "🙂👩‍👩‍👧"])
def test_strange_text_is_kept_as_it_is(text):
    assert over_the_wire(convert.request_to_proto(Request(text=text))).text == text


def test_a_wrong_request_never_reaches_the_wire():
    with pytest.raises(RequestError, match="`quality_target`"):
        convert.request_to_proto(Request(text="a", quality_target=2.0))


def test_what_a_newer_server_says_is_read_as_far_as_it_is_known():
    message = pb.RouteResponse(reasons=[1, 99], candidates=[{"offer": "o", "rejected": 99}])
    decision = convert.decision_from_proto(over_the_wire(message))
    assert decision.reasons == (Reason.BEST_VALUE,)
    assert decision.candidates[0].rejected is Rejection.OTHER


ERRORS = [
    (RequestError("`text` is wrong"), pb.ERROR_CODE_INVALID_REQUEST, RequestError),
    (NoEligibleOfferError({"o": "region", "p": "max_cost"}), pb.ERROR_CODE_NO_ELIGIBLE_OFFER, NoEligibleOfferError),
    (RouterUnavailable("later"), pb.ERROR_CODE_UNAVAILABLE, RouterUnavailable),
    (BundleError("damaged"), pb.ERROR_CODE_NOT_SET_UP, RouterMlError),
    (RouterMlError("no journal"), pb.ERROR_CODE_NOT_SET_UP, RouterMlError),
]


@pytest.mark.parametrize(("error", "code", "kind"), ERRORS)
def test_an_error_survives_the_wire(error, code, kind):
    message = over_the_wire(pb.Error(**convert.error_fields(error)))
    back = convert.error_from_proto(message)
    assert message.code == code
    assert type(back) is kind
    assert str(back) == str(error)
    if isinstance(error, NoEligibleOfferError):
        assert back.rejected == error.rejected


def test_a_fault_of_the_server_is_not_described_to_clients():
    message = pb.Error(**convert.error_fields(KeyError("secret")))
    assert message.code == pb.ERROR_CODE_INTERNAL
    assert "secret" not in message.message
    assert type(convert.error_from_proto(message)) is RouterMlError


def test_reasons_unknown_to_the_contract_are_other_reasons():
    message = pb.Error(**convert.error_fields(NoEligibleOfferError({"o": "phase of the moon"})))
    assert message.rejected[0].reason == pb.REJECTION_OTHER
    assert convert.error_from_proto(message).rejected == {"o": "other"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"decision_id": ""}, "`decision_id` must be"),
        ({"decision_id": "my-request-7"}, "`decision_id` must be"),
        ({"decision_id": DECISION_ID.upper()}, "`decision_id` must be"),
        ({"decision_id": DECISION_ID.replace("-7", "-4")}, "`decision_id` must be"),
        ({"success": 1.5}, "`success` must be a number, 0 or more and at most 1; found 1.5"),
        ({"success": math.nan}, "`success` must be"),
        ({"input_tokens": -1}, "`input_tokens` must be"),
        ({"cached_input_tokens": -1}, "`cached_input_tokens` must be"),
        ({"output_tokens": -1}, "`output_tokens` must be"),
        ({"cost_usd": math.inf}, "`cost_usd` must be"),
        ({"latency_ms": -1.0}, "`latency_ms` must be"),
        ({"ttft_ms": math.nan}, "`ttft_ms` must be"),
    ],
)
def test_a_wrong_outcome_is_refused_by_field(fields, reason):
    message = pb.Outcome(**({"decision_id": DECISION_ID} | fields))
    with pytest.raises(RequestError, match=re.escape(reason)):
        convert.outcome_from_proto(message)
