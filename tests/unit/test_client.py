import contextlib
import inspect
import itertools
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from router_ml.calls import translated_error
from router_ml.client import Receipt, RejectedOutcome, RouterClient
from router_ml.convert import MAX_ITEMS
from router_ml.errors import InputError, NoEligibleOfferError, RequestError, RouterMlError, RouterUnavailable
from router_ml.records import OutcomeReport
from router_ml.request import check_request, make_request
from router_ml.server import ServerSettings, serve
from router_ml.types import Decision, Description, Message, Request

DECISION_ID = "0193488e-7c00-7abc-8def-0123456789ab"
DESCRIPTION = Description(
    "7", "ab", 1, "2026-11-20", None, None, "static", 4, ("m",), ("o",), None, ("support",), (0.95,), 0.95, 8192
)


class MarkingRouter:
    """Keeps what it was asked, and answers with its number; refuses a request of tenant `nobody`."""

    def __init__(self):
        self.asked = []
        self.batches = []
        self.let_go = threading.Event()
        self.let_go.set()

    def decide(self, request):
        assert self.let_go.wait(120)
        check_request(request)
        if request.tenant == "nobody":
            raise NoEligibleOfferError({"o": "region", "p": "max_cost"})
        self.asked.append(request)
        return Decision(DECISION_ID, "o", "m", (), (), (), 1.0, None, request.text or "", "", "ab")

    def decide_batch(self, requests):
        self.batches.append(len(requests))
        return [self._result(request) for request in requests]

    decide_each = decide_batch

    def describe(self):
        return DESCRIPTION

    def _result(self, request):
        try:
            return self.decide(request)
        except RouterMlError as error:
            return error


class ListJournal(list):
    def append_decisions(self, decided):
        pass

    append_outcomes = list.extend


@contextlib.contextmanager
def served(router, journal=None, **options):
    server = serve(router, settings=ServerSettings("127.0.0.1:0"), journal=journal)
    server.start()
    with RouterClient(server.address, **{"timeout_s": 60.0, "bulk_timeout_s": 60.0, **options}) as client:
        yield client
    server.stop(0)


@pytest.fixture
def router():
    return MarkingRouter()


@pytest.fixture
def journal():
    return ListJournal()


@pytest.fixture
def client(router, journal):
    with served(router, journal) as client:
        yield client


def versions(results):
    return [result.version if isinstance(result, Decision) else type(result) for result in results]


def test_route_takes_the_arguments_of_make_request():
    parameters = dict(inspect.signature(RouterClient.route).parameters)
    del parameters["self"]
    assert parameters == dict(inspect.signature(make_request).parameters)


def test_route_asks_what_make_request_makes(client, router):
    arguments = {
        "segment": "support",
        "session_id": "s",
        "tenant": "t",
        "allowed_models": ("m",),
        "denied_models": ("n",),
        "allowed_regions": ("eu",),
        "required_capabilities": ("tools",),
        "max_cost_usd": 0.0,
        "max_output_tokens": 5,
        "quality_target": 0.9,
        "min_success_probability": 0.0,
        "input_tokens": 0,
        "cached_input_tokens": {"o": 3},
        "batch": True,
    }
    assert set(arguments) == set(inspect.signature(make_request).parameters) - {"text", "messages", "embedding"}
    assert client.route("Hello", **arguments).version == "Hello"
    client.route(messages=[{"role": "user", "content": "Hi"}])
    client.route(embedding=[3.0, 4.0])
    told, spoken, embedded = router.asked
    assert told == make_request("Hello", **arguments)
    assert spoken.messages == (Message("user", "Hi"),)
    np.testing.assert_array_equal(embedded.embedding, np.array([3, 4], np.float32))


def test_a_wrong_request_is_refused_before_it_is_sent():
    with RouterClient("127.0.0.1:1") as nowhere, pytest.raises(RequestError, match="`text`"):
        nowhere.route(" ")


def test_a_request_that_no_offer_may_serve_raises_the_same_error_as_in_process(client):
    with pytest.raises(NoEligibleOfferError) as caught:
        client.route("Hello", tenant="nobody")
    assert caught.value.rejected == {"o": "region", "p": "max_cost"}


def test_a_prompt_of_two_megabytes_is_served(client, router):
    client.route("x" * 2_000_000)
    assert len(router.asked[0].text) == 2_000_000


def test_a_prompt_above_the_limit_is_refused_by_the_limit(client):
    with pytest.raises(RequestError, match="more than the 4194240 that the server takes; shorten the prompt"):
        client.route("x" * 5_000_000)


def test_a_prompt_that_only_the_server_finds_too_long_is_a_request_error(router):
    with served(router, max_message_bytes=10_000_000) as client, pytest.raises(RequestError, match="4194304"):
        client.route("x" * 5_000_000)


def test_lone_surrogates_do_not_break_a_call(client, router):
    client.route("a\ud800b", segment="\udfff")
    assert (router.asked[0].text, router.asked[0].segment) == ("a\ufffdb", "\ufffd")


def test_a_batch_keeps_its_order_around_bad_requests(client):
    requests = [
        Request("one"),
        Request(" "),
        Request("two", tenant="nobody"),
        Request("x" * 5_000_000),
        Request("three"),
    ]
    results = client.decide_batch(requests)
    assert versions(results) == ["one", RequestError, NoEligibleOfferError, RequestError, "three"]


def test_an_empty_batch_asks_nothing(client, router):
    assert client.decide_batch([]) == []
    assert router.batches == []


def test_a_long_batch_is_sent_in_parts(client, router):
    texts = [str(i) for i in range(2 * MAX_ITEMS + 1)]
    assert versions(client.decide_batch([Request(text) for text in texts])) == texts
    assert router.batches == [MAX_ITEMS, MAX_ITEMS, 1]


def test_a_batch_of_long_prompts_is_sent_in_parts(client, router):
    client.decide_batch([Request("x" * 1_500_000)] * 5)
    assert router.batches == [2, 2, 1]


def test_requests_that_just_fit_are_sent(client):
    fits = 4 * 1024 * 1024 - 64 - 5  # tag and length of the text
    assert len(client.route("x" * fits).version) == fits
    assert len(client.decide_batch([Request("x" * fits)] * 2)) == 2
    assert len(list(client.decide_stream([Request("x" * fits)] * 2))) == 2


def test_a_stream_answers_in_order_around_bad_requests(client):
    requests = [
        Request("one"),
        Request(" "),
        Request("two", tenant="nobody"),
        Request("x" * 5_000_000),
        Request("three"),
    ]
    results = list(client.decide_stream(requests))
    assert versions(results) == ["one", RequestError, NoEligibleOfferError, RequestError, "three"]
    assert "`text`" in str(results[1])
    assert "shorten the prompt" in str(results[3])


def test_a_stream_answers_each_request_before_the_next_is_known(client):
    requests: queue.SimpleQueue = queue.SimpleQueue()
    results = client.decide_stream(iter(lambda: requests.get(timeout=60), None))
    for text in ("one", " ", "two"):
        requests.put(Request(text))
        assert versions([next(results)]) == [RequestError if text == " " else text]
    requests.put(None)
    assert list(results) == []


def test_a_stream_can_be_left_early(client):
    endless = (Request(str(i)) for i in itertools.count())
    results = client.decide_stream(endless)
    assert next(results).version == "0"
    results.close()
    assert client.route("after").version == "after"


def test_what_the_iterable_of_a_stream_raises_is_raised_after_the_answers(client):
    def requests():
        yield Request("one")
        raise KeyError("broken source")

    results = client.decide_stream(requests())
    assert next(results).version == "one"
    with pytest.raises(KeyError, match="broken source"):
        next(results)


def test_reported_outcomes_reach_the_journal_and_bad_ones_come_back(client, journal):
    good = OutcomeReport(DECISION_ID, success=0.0, error="timeout")
    receipt = client.report([good, OutcomeReport("my-own-id"), good])
    assert journal == [good, good]
    assert receipt == Receipt(2, (RejectedOutcome(1, "my-own-id", receipt.rejected[0].reason),))
    assert "`decision_id`" in receipt.rejected[0].reason


def test_many_outcomes_are_reported_in_parts(client, journal):
    outcomes = [OutcomeReport(DECISION_ID)] * MAX_ITEMS + [OutcomeReport("my-own-id")]
    receipt = client.report(outcomes)
    assert receipt.accepted == len(journal) == MAX_ITEMS
    assert receipt.rejected[0].index == MAX_ITEMS


def test_a_server_without_a_journal_says_so(router):
    with served(router) as client, pytest.raises(RouterMlError, match="keeps no journal"):
        client.report([OutcomeReport(DECISION_ID)])


def test_describe_gives_the_description(client):
    assert client.describe() == DESCRIPTION


def test_one_client_serves_many_threads(client):
    with ThreadPoolExecutor(4) as pool:
        decisions = pool.map(client.route, map(str, range(40)))
        assert [decision.version for decision in decisions] == [str(i) for i in range(40)]


def test_a_server_that_is_not_there_is_unavailable():
    with RouterClient("127.0.0.1:1") as client:
        with pytest.raises(RouterUnavailable, match=r"127\.0\.0\.1:1 did not answer \(UNAVAILABLE"):
            client.route("Hello")
        with pytest.raises(RouterUnavailable):
            list(client.decide_stream([Request("Hello")]))


def test_a_server_that_is_too_slow_is_unavailable(router):
    router.let_go.clear()
    with served(router, timeout_s=0.05) as client:
        with pytest.raises(RouterUnavailable, match="DEADLINE_EXCEEDED"):
            client.route("Hello")
        router.let_go.set()


def test_a_server_that_stops_in_the_middle_of_a_stream_is_unavailable(router):
    server = serve(router, settings=ServerSettings("127.0.0.1:0"))
    server.start()
    requests: queue.SimpleQueue = queue.SimpleQueue()
    requests.put(Request("one"))
    with RouterClient(server.address, timeout_s=60.0, bulk_timeout_s=60.0) as client:
        results = client.decide_stream(iter(lambda: requests.get(timeout=60), None))
        assert next(results).version == "one"
        server.stop(0)
        with pytest.raises(RouterUnavailable):
            next(results)
    requests.put(None)


def test_a_closed_client_is_unavailable(client):
    client.close()
    for call in (client.describe, lambda: list(client.decide_stream([]))):
        with pytest.raises(RouterUnavailable, match="is closed"):
            call()


def test_another_kind_of_server_is_named():
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with (
        RouterClient(f"127.0.0.1:{port}", bulk_timeout_s=60.0) as client,
        pytest.raises(RouterMlError, match=rf"127\.0\.0\.1:{port} failed \(UNIMPLEMENTED"),
    ):
        client.describe()
    server.stop(0)


class FailedCall(grpc.RpcError):
    """A failure as gRPC reports it, of any status."""

    def __init__(self, status):
        self.status = status

    def code(self):
        return self.status

    def details(self):
        return "words"

    def trailing_metadata(self):
        return None


UNAVAILABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
WRONG = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE}


@pytest.mark.parametrize("status", grpc.StatusCode, ids=lambda status: status.name)
def test_every_status_of_grpc_becomes_an_error_of_ours(status):
    error = translated_error(FailedCall(status), "127.0.0.1:1")
    expected = RouterUnavailable if status in UNAVAILABLE else RequestError if status in WRONG else RouterMlError
    assert type(error) is expected
    assert "words" in str(error)


@pytest.mark.parametrize(("address", "options"), [("localhost", {}), ("a:1", {"timeout_s": 0.0})])
def test_wrong_options_are_refused(address, options):
    with pytest.raises(InputError):
        RouterClient(address, **options)
