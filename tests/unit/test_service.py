import contextlib
import logging
import queue
import threading
import time

import grpc
import pytest

from router_ml.convert import ERROR_KEY, MAX_ITEMS
from router_ml.errors import BundleError, NoEligibleOfferError, RequestError, RouterMlError, RouterUnavailable
from router_ml.records import OutcomeReport
from router_ml.request import check_request
from router_ml.server import ServerSettings, serve
from router_ml.types import Candidate, Decision, Description, Reason, Rejection
from router_ml.v1 import router_pb2 as pb
from router_ml.v1 import router_pb2_grpc

DECISION_ID = "0193488e-7c00-7abc-8def-0123456789ab"
CANDIDATES = (
    Candidate("cheap", "small", 0.9, 120.0, 0.001, None),
    Candidate("dear", "large", 0.95, None, None, None, Rejection.PRICE_UNKNOWN),
)
REASONS = (Reason.ONLY_ELIGIBLE,)
DECISION = Decision(DECISION_ID, "cheap", "small", ("dear",), CANDIDATES, REASONS, 1.0, 0.95, "7", "", "ab" * 32)
DESCRIPTION = Description(
    "7", "ab" * 32, 1, "2026-11-20T00:00:00Z", None, None, "static", 4, ("small", "large"), ("cheap", "dear"),
    None, (), (0.95,), 0.95, 8192,
)  # fmt: skip

FAULTS = {
    "no offer": NoEligibleOfferError({"cheap": "region", "dear": "max_cost"}),
    "damaged": BundleError("the bundle is damaged"),
    "later": RouterUnavailable("busy"),
    "bug": ZeroDivisionError("a secret"),
    "many offers": NoEligibleOfferError({f"provider/a-long-name-of-an-offer-{i}": "region" for i in range(1000)}),
    "verbose": RequestError("`text` ü" * 5000),
}


class OneDecisionRouter:
    """Decides every good request alike; a text that names a fault meets it."""

    def decide(self, request):
        check_request(request)
        if request.text in FAULTS:
            raise FAULTS[request.text]
        return DECISION

    def decide_batch(self, requests):
        return [self._result(request) for request in requests]

    decide_each = decide_batch

    def describe(self):
        return DESCRIPTION

    def _result(self, request):
        try:
            return self.decide(request)
        except RouterMlError as error:
            return error


class ListJournal:
    def __init__(self):
        self.decisions = []
        self.outcomes = []
        self.trouble = None

    def append_decisions(self, decided):
        self.decisions += decided

    def append_outcomes(self, outcomes):
        if self.trouble:
            raise self.trouble
        self.outcomes += outcomes


@contextlib.contextmanager
def served(journal=None, **settings):
    server = serve(OneDecisionRouter(), settings=ServerSettings("127.0.0.1:0", **settings), journal=journal)
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        yield router_pb2_grpc.RouterServiceStub(channel)
    server.stop(0)


@pytest.fixture
def journal():
    return ListJournal()


@pytest.fixture
def stub(journal):
    with served(journal) as stub:
        yield stub


def failure(call, *arguments):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, timeout=60)
    return caught.value


def attached(error):
    return pb.Error.FromString(dict(error.trailing_metadata())[ERROR_KEY])


def test_route_answers_with_the_decision_and_writes_it_down(stub, journal):
    answer = stub.Route(pb.RouteRequest(text="Hello", segment="support"))
    assert (answer.decision_id, answer.offer, answer.model, list(answer.fallbacks)) == (
        DECISION_ID, "cheap", "small", ["dear"],
    )  # fmt: skip
    assert answer.candidates[0].cost_usd == 0.001
    assert not answer.candidates[1].HasField("cost_usd")
    assert answer.candidates[1].rejected == pb.REJECTION_PRICE_UNKNOWN
    ((request, decision),) = journal.decisions
    assert (request.text, request.segment, decision) == ("Hello", "support", DECISION)


STATUSES = [
    (" ", grpc.StatusCode.INVALID_ARGUMENT, pb.ERROR_CODE_INVALID_REQUEST, "`text`"),
    ("no offer", grpc.StatusCode.FAILED_PRECONDITION, pb.ERROR_CODE_NO_ELIGIBLE_OFFER, "cheap: region"),
    ("damaged", grpc.StatusCode.FAILED_PRECONDITION, pb.ERROR_CODE_NOT_SET_UP, "the bundle is damaged"),
    ("later", grpc.StatusCode.UNAVAILABLE, pb.ERROR_CODE_UNAVAILABLE, "busy"),
    ("bug", grpc.StatusCode.INTERNAL, pb.ERROR_CODE_INTERNAL, "its log says why"),
]


@pytest.mark.parametrize(("text", "status", "code", "words"), STATUSES)
def test_each_kind_of_error_has_its_status(stub, text, status, code, words):
    error = failure(stub.Route, pb.RouteRequest(text=text))
    assert error.code() is status
    assert words in error.details()
    assert attached(error).code == code
    assert attached(error).message == error.details()


def test_every_error_code_has_a_status():
    assert {code for _, _, code, _ in STATUSES} == set(pb.ErrorCode.values()) - {pb.ERROR_CODE_UNSPECIFIED}


def test_a_request_without_a_prompt_is_refused(stub):
    assert "exactly one of `text`, `messages` and `embedding`" in failure(stub.Route, pb.RouteRequest()).details()


def test_a_status_tells_which_offer_was_rejected_and_why(stub):
    rejected = attached(failure(stub.Route, pb.RouteRequest(text="no offer"))).rejected
    assert [(item.offer, item.reason) for item in rejected] == [
        ("cheap", pb.REJECTION_REGION),
        ("dear", pb.REJECTION_MAX_COST),
    ]


@pytest.mark.parametrize("text", ["many offers", "verbose"])
def test_a_long_error_still_fits_a_status(stub, text):
    error = failure(stub.Route, pb.RouteRequest(text=text))
    assert error.code() in {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT}
    assert len(error.details()) >= 500


def test_a_fault_of_the_server_is_not_told_and_logged_without_what_it_may_quote_of_the_prompt(stub, caplog):
    error = failure(stub.Route, pb.RouteRequest(text="bug"))
    assert "secret" not in error.details()
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "ZeroDivisionError" in record.getMessage()
    assert "in decide" in record.getMessage()
    assert "secret" not in record.getMessage() and not record.exc_info


def test_a_bad_request_does_not_spoil_its_batch(stub, journal):
    texts = ["one", " ", "no offer", "two"]
    answer = stub.RouteBatch(pb.RouteBatchRequest(requests=[pb.RouteRequest(text=text) for text in texts]))
    assert [item.WhichOneof("result") for item in answer.items] == ["decision", "error", "error", "decision"]
    assert [item.error.code for item in answer.items[1:3]] == [
        pb.ERROR_CODE_INVALID_REQUEST,
        pb.ERROR_CODE_NO_ELIGIBLE_OFFER,
    ]
    assert [request.text for request, _ in journal.decisions] == ["one", "two"]


def test_an_empty_batch_has_an_empty_answer(stub):
    assert not stub.RouteBatch(pb.RouteBatchRequest()).items


def test_too_long_a_batch_is_refused_by_its_limit(stub):
    requests = [pb.RouteRequest(text="a")] * (MAX_ITEMS + 1)
    error = failure(stub.RouteBatch, pb.RouteBatchRequest(requests=requests))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 1024 items, found more" in error.details()


def test_a_stream_answers_each_message_in_order_and_survives_errors(stub):
    texts = ["one", " ", "bug", "no offer", "two"]
    messages = [pb.RouteStreamRequest(id=f"#{i}", request=pb.RouteRequest(text=text)) for i, text in enumerate(texts)]
    answers = list(stub.RouteStream(iter(messages), timeout=60))
    assert [answer.id for answer in answers] == ["#0", "#1", "#2", "#3", "#4"]
    assert [answer.error.code for answer in answers] == [
        pb.ERROR_CODE_UNSPECIFIED,
        pb.ERROR_CODE_INVALID_REQUEST,
        pb.ERROR_CODE_INTERNAL,
        pb.ERROR_CODE_NO_ELIGIBLE_OFFER,
        pb.ERROR_CODE_UNSPECIFIED,
    ]


def test_a_stream_answers_before_the_next_message_comes(stub):
    messages: queue.SimpleQueue = queue.SimpleQueue()
    answers = stub.RouteStream(iter(lambda: messages.get(timeout=60), None), timeout=60)
    for mark in ("first", "second"):
        messages.put(pb.RouteStreamRequest(id=mark, request=pb.RouteRequest(text="a")))
        assert next(answers).id == mark
    messages.put(None)
    assert list(answers) == []


def test_messages_that_wait_together_are_answered_as_if_they_came_alone(stub, journal):
    texts = ["Hello", "bug", "", "no offer", "Hello", "later", "Hello"] * 40
    messages = [pb.RouteStreamRequest(id=str(k), request={"text": text}) for k, text in enumerate(texts)]
    answers = list(stub.RouteStream(iter(messages), timeout=20))
    assert [answer.id for answer in answers] == [message.id for message in messages]
    codes = {
        "bug": pb.ERROR_CODE_INTERNAL,
        "": pb.ERROR_CODE_INVALID_REQUEST,
        "no offer": pb.ERROR_CODE_NO_ELIGIBLE_OFFER,
        "later": pb.ERROR_CODE_UNAVAILABLE,
        "Hello": 0,
    }
    assert [answer.error.code for answer in answers] == [codes[text] for text in texts]
    assert [answer.HasField("decision") for answer in answers] == [text == "Hello" for text in texts]
    assert [request.text for request, _ in journal.decisions] == ["Hello"] * 120


def test_a_stream_that_is_broken_off_leaves_no_thread_behind(stub):
    told = queue.SimpleQueue()
    told.put(pb.RouteStreamRequest(id="1", request={"text": "Hello"}))
    call = stub.RouteStream(iter(told.get, None), timeout=20)
    assert next(call).id == "1"
    call.cancel()
    told.put(None)
    end = time.monotonic() + 10
    while any(thread.name == "router-ml-stream" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_one_stream_too_many_is_refused_and_unary_calls_still_pass():
    message = pb.RouteStreamRequest(request=pb.RouteRequest(text="a"))
    with served(threads=1, max_streams=1) as stub:
        open_end: queue.SimpleQueue = queue.SimpleQueue()
        open_end.put(message)
        first = stub.RouteStream(iter(lambda: open_end.get(timeout=60), None), timeout=60)
        next(first)
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.RouteStream(iter([message]), timeout=60))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert stub.Route(pb.RouteRequest(text="a"), timeout=60).offer == "cheap"
        open_end.put(None)
        assert list(first) == []
        assert len(list(stub.RouteStream(iter([message]), timeout=60))) == 1


def test_good_outcomes_are_taken_and_bad_ones_returned(stub, journal):
    outcomes = [
        pb.Outcome(decision_id=DECISION_ID, success=0.0, cost_usd=0.5),
        pb.Outcome(decision_id=DECISION_ID, success=2.0),
        pb.Outcome(decision_id="unknown"),
        pb.Outcome(decision_id=DECISION_ID, offer="dear", error="timeout"),
    ]
    answer = stub.ReportOutcomes(pb.ReportOutcomesRequest(outcomes=outcomes))
    assert answer.accepted == 2
    assert [(item.index, item.decision_id) for item in answer.rejected] == [(1, DECISION_ID), (2, "unknown")]
    assert "`success`" in answer.rejected[0].reason
    assert "`decision_id`" in answer.rejected[1].reason
    assert journal.outcomes == [
        OutcomeReport(DECISION_ID, success=0.0, cost_usd=0.5),
        OutcomeReport(DECISION_ID, offer="dear", error="timeout"),
    ]


def test_outcomes_that_cannot_be_written_are_to_be_reported_again(stub, journal):
    journal.trouble = OSError(28, "No space left on device")
    error = failure(stub.ReportOutcomes, pb.ReportOutcomesRequest(outcomes=[pb.Outcome(decision_id=DECISION_ID)]))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "No space left on device" in error.details()
    assert "report them again" in error.details()


def test_too_many_outcomes_are_refused_by_their_limit(stub):
    outcomes = [pb.Outcome(decision_id=DECISION_ID)] * (MAX_ITEMS + 1)
    error = failure(stub.ReportOutcomes, pb.ReportOutcomesRequest(outcomes=outcomes))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_server_without_a_journal_decides_but_takes_no_outcomes():
    with served(journal=None) as stub:
        assert stub.Route(pb.RouteRequest(text="a")).offer == "cheap"
        error = failure(stub.ReportOutcomes, pb.ReportOutcomesRequest())
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "keeps no journal" in error.details()


def test_describe_tells_what_is_in_force(stub):
    answer = stub.Describe(pb.DescribeRequest())
    assert answer.version == "7"
    assert list(answer.offers) == ["cheap", "dear"]
    assert answer.training_start == ""
