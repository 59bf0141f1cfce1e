"""What the two clients do when the router is down, late or wrong; every test runs with both of them."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from router_ml.aio_client import AsyncRouterClient
from router_ml.client import Receipt, RouterClient
from router_ml.errors import InputError, NoEligibleOfferError, RequestError, RouterMlError, RouterUnavailable
from router_ml.explain import decision_lines
from router_ml.records import OutcomeReport
from router_ml.request import check_request
from router_ml.server import ServerSettings, serve
from router_ml.types import Decision, Reason, Request
from router_ml.v1 import router_pb2 as pb

DECISION_ID = "0193488e-7c00-7abc-8def-0123456789ab"
NOWHERE = "127.0.0.1:1"
DEFAULT = Decision("", "big@eu", "big", (), (), (), 1.0, None, "", "", "")._replace(
    reasons=(Reason.ROUTER_UNAVAILABLE,)
)
WITH_DEFAULT = {"default_model": "big", "default_offer": "big@eu"}


class Awaited:
    """AsyncRouterClient with each call awaited on a loop in another thread, so that tests ask both clients alike."""

    def __init__(self, *args, **options):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

        async def make():
            return AsyncRouterClient(*args, **options)

        try:
            self._client = self._wait(make())
        except BaseException:
            self._end()
            raise

    def __getattr__(self, name):
        method = getattr(self._client, name)
        if not inspect.iscoroutinefunction(method):
            return method
        return lambda *args, **options: self._wait(method(*args, **options))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._wait(self._client.close())
        self._end()

    def _wait(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(90)

    def _end(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(params=[RouterClient, Awaited], ids=["sync", "asyncio"])
def make_client(request):
    """Makes clients that are closed at the end; their deadline is long where no test is about it."""
    with contextlib.ExitStack() as stack:

        def make(*addresses, **options):
            client = request.param(list(addresses), **{"timeout_s": 60.0, "bulk_timeout_s": 60.0} | options)
            return stack.enter_context(client)

        yield make


class MarkingRouter:
    """Answers with its name as the version, when it may; fails on a prompt of `fault`."""

    def __init__(self, name="a"):
        self.name = name
        self.asked = 0
        self.let_go = threading.Event()
        self.let_go.set()

    def decide(self, request):
        self.asked += 1
        assert self.let_go.wait(120)
        check_request(request)
        if request.tenant == "nobody":
            raise NoEligibleOfferError({"o": "region"})
        if request.text == "fault":
            raise ZeroDivisionError
        return Decision(DECISION_ID, "o", "m", (), (), (), 1.0, None, self.name, "", "ab")

    def decide_batch(self, requests):
        return [self._result(request) for request in requests]

    decide_each = decide_batch

    def _result(self, request):
        try:
            return self.decide(request)
        except Exception as error:
            return error


@contextlib.contextmanager
def serving(router, listen="127.0.0.1:0", journal=None):
    server = serve(router, settings=ServerSettings(listen), journal=journal)
    server.start()
    try:
        yield server
    finally:
        server.stop(0)


@pytest.fixture
def router():
    router = MarkingRouter()
    yield router
    router.let_go.set()


@contextlib.contextmanager
def answering(answer):
    """A server that answers every call with these bytes, or aborts it with this status."""

    def call(message, context):
        return context.abort(*answer) if isinstance(answer, tuple) else answer

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(call)

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0)


# -- the default decision ----------------------------------------------------------------------


def test_the_default_stands_in_for_a_router_that_is_down(make_client):
    client = make_client(NOWHERE, **WITH_DEFAULT)
    assert client.route("Hello") == client.decide(Request("Hello")) == DEFAULT
    assert client.decide_batch([Request("one"), Request("two")]) == [DEFAULT, DEFAULT]


def test_the_default_stands_in_for_a_router_that_is_late(make_client, router):
    with serving(router) as server:
        client = make_client(server.address, timeout_s=0.3, bulk_timeout_s=0.3, **WITH_DEFAULT)
        router.let_go.clear()
        assert client.route("Hello") == DEFAULT
        assert client.decide_batch([Request("Hello")]) == [DEFAULT]
        # The server drops what it could not begin in time.
        assert router.asked <= 2, "a late call is not repeated"


@pytest.mark.parametrize(
    "answer",
    [
        (grpc.StatusCode.INTERNAL, "fault"),
        (grpc.StatusCode.UNKNOWN, "fault"),
        (grpc.StatusCode.UNIMPLEMENTED, "another kind of server"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!"),
        (grpc.StatusCode.UNAUTHENTICATED, "the token is out of date"),
        (grpc.StatusCode.ABORTED, ""),
        b"\xff\xff\xff no protobuf",
        b"",
        pb.RouteResponse(decision_id=DECISION_ID, model="m").SerializeToString(),
        pb.RouteResponse(offer="o", model="m").SerializeToString(),
    ],
    ids=lambda answer: answer[0].name if isinstance(answer, tuple) else repr(answer[:9]),
)
def test_the_default_stands_in_for_a_router_that_is_wrong(make_client, answer):
    with answering(answer) as address:
        client = make_client(address, **WITH_DEFAULT)
        assert client.route("Hello") == DEFAULT
        assert client.decide_batch([Request("Hello")]) == [DEFAULT]
        with pytest.raises(RouterMlError):
            make_client(address).route("Hello")


def test_the_default_stands_in_where_the_router_fails_on_one_request_of_a_batch(make_client, router):
    requests = [Request("one"), Request("fault"), Request(" "), Request("two", tenant="nobody"), Request("three")]
    with serving(router) as server:
        results = make_client(server.address, **WITH_DEFAULT).decide_batch(requests)
        failed = make_client(server.address).decide_batch(requests)
    assert (results[0].version, results[1], results[4].version) == ("a", DEFAULT, "a")
    assert [type(result) for result in results[2:4]] == [RequestError, NoEligibleOfferError]
    assert type(failed[1]) is RouterMlError


def test_no_default_hides_the_callers_own_mistake(make_client, router):
    with serving(router) as server:
        client = make_client(server.address, max_message_bytes=10_000_000, **WITH_DEFAULT)
        with pytest.raises(RequestError, match="`text`"):
            client.route(" ")
        with pytest.raises(NoEligibleOfferError):
            client.route("Hello", tenant="nobody")
        with pytest.raises(RequestError, match="4194304"):
            client.route("x" * 5_000_000)


def test_only_what_no_server_took_is_tried_again(make_client, router):
    with serving(router) as server:
        make_client(server.address, **WITH_DEFAULT).route("fault")
    assert router.asked == 1


def test_without_a_default_the_error_is_raised(make_client):
    client = make_client(NOWHERE)
    for call in (lambda: client.route("Hello"), lambda: client.decide_batch([Request("Hello")])):
        with pytest.raises(RouterUnavailable, match=r"127\.0\.0\.1:1 did not answer \(UNAVAILABLE"):
            call()


@pytest.mark.parametrize("limits", [{"denied_models": ("big",)}, {"allowed_models": ("small", "tiny")}])
def test_a_default_that_the_request_excludes_is_not_returned(make_client, limits):
    client = make_client(NOWHERE, **WITH_DEFAULT)
    with pytest.raises(RouterUnavailable, match="the default model `big` is not allowed by this request"):
        client.route("Hello", **limits)
    assert client.route("Hello", allowed_models=["big"]) == DEFAULT


def test_a_default_of_a_model_alone_has_an_offer_of_that_name(make_client):
    decision = make_client(NOWHERE, default_model="big").route("Hello")
    assert (decision.offer, decision.model) == ("big", "big")


def test_a_default_offer_must_tell_its_model(make_client):
    with pytest.raises(InputError, match="`default_model` must name the model of `default_offer` 'big@eu'"):
        make_client(NOWHERE, default_offer="big@eu")


def test_a_default_is_logged_with_its_reason_and_without_the_prompt_but_not_each_time(make_client, caplog):
    client = make_client(NOWHERE, **WITH_DEFAULT)
    for _ in range(5):
        client.route("a secret prompt")
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"the router server at {NOWHERE} did not answer (UNAVAILABLE: ")
    assert message.endswith("so the default offer `big@eu` was used, 1 times by now")
    assert "secret" not in caplog.text


def test_a_default_decision_can_be_explained():
    assert decision_lines(DEFAULT) == ["big@eu: the client's default, since the router did not decide"]


def test_outcomes_of_default_decisions_are_skipped_and_counted(make_client):
    client = make_client(NOWHERE, **WITH_DEFAULT)
    outcome = OutcomeReport(client.route("Hello").decision_id, success=1.0)
    assert client.report([outcome]) == Receipt(0, skipped=1)
    client.report_later(outcome)
    assert client.flush()
    assert client.report_counts().skipped == 1


def test_a_closed_client_raises_in_spite_of_a_default(make_client):
    client = make_client(NOWHERE, **WITH_DEFAULT)
    client.close()
    with pytest.raises(RouterUnavailable, match="is closed"):
        client.route("Hello")


# -- several addresses -------------------------------------------------------------------------


@pytest.fixture
def two():
    """Two servers: their routers and themselves."""
    routers = [MarkingRouter("a"), MarkingRouter("b")]
    with serving(routers[0]) as a, serving(routers[1]) as b:
        yield routers, [a, b]
        for router in routers:
            router.let_go.set()


def versions(client, n):
    return [client.route("Hello").version for _ in range(n)]


def test_calls_are_spread_over_the_addresses(make_client, two):
    _, servers = two
    client = make_client(*(server.address for server in servers))
    assert sorted(versions(client, 10)) == ["a"] * 5 + ["b"] * 5


def test_what_an_address_does_not_take_goes_to_the_next_one(make_client, two):
    _, (a, b) = two
    client = make_client(NOWHERE, a.address, "127.0.0.1:2", b.address)
    assert len(versions(client, 40)) == 40
    a.stop(0)
    assert set(versions(client, 20)) == {"b"}
    b.stop(0)
    with pytest.raises(RouterUnavailable):
        client.route("Hello")


def test_a_server_that_is_going_away_is_passed_over(make_client, two):
    _, (_, b) = two
    with answering((grpc.StatusCode.UNAVAILABLE, "draining")) as leaving:
        assert set(versions(make_client(leaving, b.address), 20)) == {"b"}


def test_a_server_that_hangs_is_left_alone_for_a_while(make_client, two):
    routers, (a, b) = two
    client = make_client(a.address, b.address, timeout_s=0.5, **WITH_DEFAULT)
    assert sorted(versions(client, 2)) == ["a", "b"]
    routers[0].let_go.clear()
    results = versions(client, 8)
    assert "" in results
    assert results.count("b") > results.count("")


def test_it_connects_again_when_a_server_comes_back(make_client, router):
    with serving(router) as server:
        client = make_client(server.address, **WITH_DEFAULT)
        assert client.route("Hello").version == "a"
    assert client.route("Hello") == DEFAULT
    with serving(router, listen=server.address):
        until = time.monotonic() + 60
        while client.route("Hello") == DEFAULT:
            assert time.monotonic() < until, "still not connected"
            time.sleep(0.01)


def test_a_connection_that_breaks_during_a_call_is_made_anew_for_it(make_client, two):
    """As when one of several workers behind one port dies: another one takes the call."""
    routers, (a, b) = two
    with Switch(a.port) as switch:
        client = make_client(switch.address)
        assert versions(client, 1) == ["a"]
        routers[0].let_go.clear()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.route, "Hello")
            until = time.monotonic() + 60
            while routers[0].asked < 2:
                assert time.monotonic() < until, "not asked"
                time.sleep(0.001)
            switch.to(b.port)
            assert answer.result(60).version == "b"


class Switch:
    """A TCP proxy; `to` breaks what is connected and sends what comes later elsewhere."""

    def __init__(self, port):
        self._port = port
        self._pairs = []
        self._copying = []
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self):
        self._thread.start()
        self._server = self._wait(asyncio.start_server(self._join, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *error):
        self._wait(self._break())
        self._server.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def to(self, port):
        self._port = port
        self._wait(self._break())

    def freeze(self):
        """Let what is connected fall silent, as when a machine vanishes; new connections work."""
        for task in self._copying:
            self._loop.call_soon_threadsafe(task.cancel)

    async def _join(self, reader, writer):
        out_reader, out_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._pairs += [writer, out_writer]
        both = (_copy(reader, out_writer), _copy(out_reader, writer))
        self._copying += map(asyncio.ensure_future, both)

    async def _break(self):
        for writer in self._pairs:
            writer.transport.abort()
        self._pairs.clear()
        await asyncio.sleep(0.05)

    def _wait(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)


async def _copy(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.mark.long
def test_a_connection_that_falls_silent_is_replaced(make_client, router):
    with serving(router) as server, Switch(server.port) as switch:
        client = make_client(switch.address, timeout_s=0.2, **WITH_DEFAULT)
        assert versions(client, 1) == ["a"]
        switch.freeze()
        assert client.route("Hello") == DEFAULT
        until = time.monotonic() + 60
        while client.route("Hello") == DEFAULT:
            assert time.monotonic() < until, "still not connected"


def test_an_address_given_twice_gets_two_connections(make_client):
    peers = set()

    def call(message, context):
        peers.add(context.peer())
        return pb.RouteResponse(decision_id=DECISION_ID, offer="o", model="m").SerializeToString()

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(call)

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    versions(make_client(address, address), 4)
    server.stop(0)
    assert len(peers) == 2


@pytest.mark.parametrize(
    ("addresses", "options"),
    [
        ((), {}),
        (("localhost",), {}),
        (("127.0.0.1:0",), {}),
        (("127.0.0.1:65536",), {}),
        (("127.0.0.1:5", "a:b"), {}),
        ((7,), {}),
        ((NOWHERE,), {"timeout_s": 0.0}),
        ((NOWHERE,), {"bulk_timeout_s": -1.0}),
    ],
)
def test_wrong_addresses_and_deadlines_are_refused_by_name(make_client, addresses, options):
    name = next(iter(options), "addresses")
    with pytest.raises(InputError, match=f"`{name}` must"):
        make_client(*addresses, **options)


# -- reports -----------------------------------------------------------------------------------


class ListJournal(list):
    def append_decisions(self, decided):
        pass

    append_outcomes = list.extend


def outcomes(n):
    return [OutcomeReport(DECISION_ID, output_tokens=i) for i in range(n)]


def test_outcomes_handed_over_reach_the_journal_when_the_client_is_closed(make_client, router):
    journal = ListJournal()
    with serving(router, journal=journal) as server:
        client = make_client(server.address)
        for outcome in outcomes(3000):
            client.report_later(outcome)
        client.close(60.0)
    assert journal == outcomes(3000)
    assert client.report_counts().accepted == 3000


def test_outcomes_wait_for_a_server_that_is_away(make_client, router):
    journal = ListJournal()
    with serving(router) as server:
        pass
    client = make_client(server.address)
    for outcome in outcomes(10):
        client.report_later(outcome)
    assert not client.flush(0.2)
    with serving(router, listen=server.address, journal=journal):
        assert client.flush(60.0)
    assert journal == outcomes(10)


def test_a_report_of_long_outcomes_is_sent_in_parts(make_client, router):
    journal = ListJournal()
    long = [OutcomeReport(DECISION_ID, error="x" * 1_500_000)] * 5 + [OutcomeReport(""), OutcomeReport("my-own-id")]
    with serving(router, journal=journal) as server:
        receipt = make_client(server.address).report(long)
    assert (receipt.accepted, receipt.skipped, receipt.rejected[0].index) == (5, 1, 6)
    assert len(journal) == 5
