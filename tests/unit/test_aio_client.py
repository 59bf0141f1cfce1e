"""What only the client for asyncio has; what it shares with the other one is in test_client_faults."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import numpy as np
import pytest

from router_ml.aio_client import AsyncRouterClient
from router_ml.errors import InputError, RequestError, RouterUnavailable
from router_ml.records import OutcomeReport
from router_ml.request import make_request
from router_ml.server import ServerSettings, serve
from router_ml.types import Decision, Description, Request

DECISION_ID = "0193488e-7c00-7abc-8def-0123456789ab"


class Router:
    """Answers with the prompt as the version, when it may."""

    def __init__(self):
        self.asked = []
        self.let_go = threading.Event()
        self.let_go.set()

    def decide(self, request):
        self.asked.append(request)
        assert self.let_go.wait(120)
        return Decision(DECISION_ID, "o", "m", (), (), (), 1.0, None, request.text or "", "", "ab")

    def decide_batch(self, requests):
        return [self.decide(request) for request in requests]

    decide_each = decide_batch

    def describe(self):
        return Description("7", "ab", 1, "now", None, None, "static", 4, (), (), None, (), (), 0.95, 8192)


class ListJournal(list):
    def append_decisions(self, decided):
        pass

    append_outcomes = list.extend


@pytest.fixture
def router():
    return Router()


@pytest.fixture
def journal():
    return ListJournal()


@pytest.fixture
def address(router, journal):
    server = serve(router, settings=ServerSettings("127.0.0.1:0"), journal=journal)
    server.start()
    yield server.address
    router.let_go.set()
    server.stop(0)


@contextlib.asynccontextmanager
async def connected(address, **options):
    async with AsyncRouterClient(address, **{"timeout_s": 60.0, "bulk_timeout_s": 60.0} | options) as client:
        yield client


async def until_asked(router, n):
    async with asyncio.timeout(60):
        while len(router.asked) < n:
            await asyncio.sleep(0.001)


def test_all_calls_of_one_loop_go_on_at_once(address):
    async def ask():
        async with connected(address) as client:
            decisions = await asyncio.gather(*(client.route(str(i)) for i in range(50)))
            return [decision.version for decision in decisions]

    assert asyncio.run(ask()) == [str(i) for i in range(50)]


def test_it_asks_what_make_request_makes(address, router):
    arguments = {"segment": "chat", "denied_models": ["n"], "max_cost_usd": 0.5, "cached_input_tokens": {"o": 3}}

    async def ask():
        async with connected(address) as client:
            await client.route("Hello", **arguments)
            await client.route(embedding=[3.0, 4.0])

    asyncio.run(ask())
    assert router.asked[0] == make_request("Hello", **arguments)
    np.testing.assert_array_equal(router.asked[1].embedding, np.array([3, 4], np.float32))


def test_every_other_call_is_answered_too(address, journal):
    async def ask():
        async with connected(address) as client:
            one, wrong = await client.decide_batch([Request("one"), Request(" ")])
            receipt = await client.report([OutcomeReport(DECISION_ID, success=1.0)])
            client.report_later(OutcomeReport(DECISION_ID, success=0.0))
            assert await client.flush(60.0)
            return one.version, type(wrong), receipt.accepted, (await client.describe()).version

    assert asyncio.run(ask()) == ("one", RequestError, 1, "7")
    assert [outcome.success for outcome in journal] == [1.0, 0.0]


def test_leaving_the_block_sends_what_waits(address, journal):
    async def report():
        async with connected(address) as client:
            client.report_later(OutcomeReport(DECISION_ID, success=1.0))

    asyncio.run(report())
    assert len(journal) == 1


def test_a_call_that_its_task_gives_up_is_cancelled(address, router):
    async def ask():
        async with connected(address, default_model="big") as client:
            await client.route("warm")
            router.let_go.clear()
            task = asyncio.create_task(client.route("slow"))
            await until_asked(router, 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            router.let_go.set()
            return (await client.route("after")).version

    assert asyncio.run(ask()) == "after"


def test_closing_fails_what_is_in_flight(address, router):
    async def ask():
        async with connected(address) as client:
            await client.route("warm")
            router.let_go.clear()
            task = asyncio.create_task(client.route("slow"))
            await until_asked(router, 2)
            await client.close()
            with pytest.raises(RouterUnavailable, match="was closed before the router server answered"):
                await task

    asyncio.run(ask())


def test_it_must_be_made_in_a_coroutine():
    with pytest.raises(InputError, match="must be made in a coroutine; without asyncio use RouterClient"):
        AsyncRouterClient("127.0.0.1:1")
