"""The same request gets the same decision in process and from a server, whichever call carries it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router_ml.client import RouterClient
from router_ml.decision_ids import time_ordered_ids
from router_ml.errors import NoEligibleOfferError, RequestError, RouterMlError
from router_ml.exploration import Exploration, ExplorationRule
from router_ml.request import make_request
from router_ml.router import Router
from router_ml.server import ServerSettings, serve
from router_ml.types import Decision, Message, Reason, Request

N_UNARY, N_BATCH, N_STREAM = 2000, 3000, 2000
WORDS = [
    *"bab deb fib xrob xvac tu ? ! ( ) {x=1}; 1234 \n \t".split(" "),
    "漢字",
    "שלום",
    "مرحبا",
    "🤷🏽‍♀️",
    "é",
    "\0",
    "\ud800",
]
OFFERS = ("tiny@us", "tiny@eu", "small@eu", "mid@us", "large@us", "large@eu")


@pytest.fixture(scope="module")
def router(tiny_bundle: Path) -> Router:
    return Router.load(tiny_bundle)


@pytest.fixture(scope="module")
def client(router: Router) -> Iterator[RouterClient]:
    server = serve(router, settings=ServerSettings("127.0.0.1:0"))
    server.start()
    with RouterClient(server.address, timeout_s=60) as client:
        yield client
    server.stop(0)


def text(draw: random.Random) -> str:
    length = draw.choice((0, 3, 30, 300, 3000))
    if draw.random() < 0.2:  # any code point, surrogates too
        return "".join(chr(draw.randrange(0x110000)) for _ in range(draw.randrange(length + 1)))
    words = " ".join(draw.choices(WORDS, k=length // 3 + 1))
    return words[: draw.randrange(length + 1)]


def prompt(draw: random.Random) -> dict[str, Any]:
    kind = draw.random()
    if kind < 0.7:
        return {"text": text(draw)}
    if kind < 0.9:
        roles = ("system", "user", "assistant", "tool")
        return {"messages": tuple(Message(draw.choice(roles), text(draw)) for _ in range(draw.randint(1, 5)))}
    vector = [draw.gauss(0, 1) for _ in range(draw.choice((32, 32, 32, 31)))]
    return {"embedding": np.array(vector, dtype=np.float32), "input_tokens": draw.randrange(5000)}


def some(draw: random.Random, names: Sequence[str]) -> list[str]:
    return draw.sample(names, draw.randint(1, len(names))) if draw.random() < 0.15 else []


def request(draw: random.Random) -> Request:
    """A request of any kind, now and then a wrong or an impossible one."""
    options: dict[str, Any] = {
        "segment": draw.choice((None, "chat", "code", "never seen", "\udfff")),
        "session_id": draw.choice((None, "s-1")),
        "tenant": draw.choice((None, "t-é")),
        "allowed_models": some(draw, ("tiny", "small", "mid", "large", "unheard-of")),
        "denied_models": some(draw, ("tiny", "small", "mid", "large")),
        "allowed_regions": some(draw, ("us", "eu", "jp")),
        "required_capabilities": some(draw, ("tools", "vision", "reasoning")),
        "max_cost_usd": 10 ** draw.uniform(-6, -2) if draw.random() < 0.2 else None,
        "max_output_tokens": draw.randint(1, 3000) if draw.random() < 0.2 else None,
        "quality_target": draw.uniform(0.5, 1) if draw.random() < 0.5 else None,
        "min_success_probability": draw.random() if draw.random() < 0.1 else None,
        "input_tokens": draw.randrange(200_000) if draw.random() < 0.1 else None,
        "cached_input_tokens": {draw.choice((*OFFERS, "gone")): draw.randrange(3000)} if draw.random() < 0.2 else {},
        "batch": draw.random() < 0.3,
    }
    try:
        return make_request(**options | prompt(draw))
    except RequestError:  # a blank prompt: every way must refuse it alike
        return Request(text=draw.choice(("", "  ")))


def requests(seed: int, n: int) -> list[Request]:
    draw = random.Random(seed)
    return [request(draw) for _ in range(n)]


def expected(router: Router, of: Request) -> Decision | RouterMlError:
    try:
        return router.decide(of)
    except (RequestError, NoEligibleOfferError) as error:
        return error


def check_same(one: Decision | RouterMlError, other: Decision | RouterMlError, of: Request) -> None:
    if isinstance(one, Decision) and isinstance(other, Decision):
        assert one._replace(decision_id="") == other._replace(decision_id=""), of
        return
    assert type(one) is type(other), of
    assert str(one) == str(other), of


def test_the_draws_hold_requests_of_every_outcome(router: Router) -> None:
    kinds = [type(expected(router, each)).__name__ for each in requests(0, 1000)]
    assert kinds.count("Decision") > 500
    assert kinds.count("RequestError") > 20
    assert kinds.count("NoEligibleOfferError") > 20


def test_route_decides_as_in_process(router: Router, client: RouterClient) -> None:
    for each in requests(1, N_UNARY):
        answer: Decision | RouterMlError
        try:
            answer = client.decide(each)
        except RouterMlError as error:
            answer = error
        check_same(expected(router, each), answer, each)


def test_route_batch_decides_as_in_process(router: Router, client: RouterClient) -> None:
    asked = requests(2, N_BATCH)
    # The server sees only what the client lets through, and splits into parts of 1,024: neither may matter.
    good = [each for each in asked if not isinstance(expected(router, each), RequestError)]
    for part in (good[:7], good):
        answers = client.decide_batch(part)
        for start in range(0, len(part), 1024):
            here = part[start : start + 1024]
            in_process = router.decide_batch(here)
            for each, one, other in zip(here, in_process, answers[start : start + 1024], strict=True):
                check_same(one, other, each)


def test_wrong_requests_of_a_batch_keep_their_places(router: Router, client: RouterClient) -> None:
    asked = requests(3, 500)
    for each, answer in zip(asked, client.decide_batch(asked), strict=True):
        one = expected(router, each)
        if isinstance(one, Decision) and isinstance(answer, Decision):
            assert (one.offer, one.fallbacks, one.reasons) == (answer.offer, answer.fallbacks, answer.reasons)
        else:
            check_same(one, answer, each)


@pytest.mark.parametrize("rule", [None, *ExplorationRule])
def test_a_batch_decides_as_its_requests_alone(tiny_bundle: Path, rule: ExplorationRule | None) -> None:
    exploration = None if rule is None else Exploration(0.5, rule, cost_multiple=100, floor=0.0)
    router = Router.load(tiny_bundle, exploration=exploration)
    asked = requests(5, 400)
    ids = time_ordered_ids(len(asked))
    whole = router.decide_batch_as(ids, asked)
    one_by_one = router.decide_batch_as(ids, asked, alone=True)
    explored = 0
    for each, decision_id, in_whole, in_turn in zip(asked, ids, whole, one_by_one, strict=True):
        alone: Decision | RouterMlError
        try:
            alone = router.decide_as(decision_id, each)
        except RouterMlError as error:
            alone = error
        (in_batch,) = router.decide_batch_as([decision_id], [each])
        check_same(alone, in_batch, each)
        check_same(alone, in_turn, each)
        if isinstance(alone, Decision):
            assert isinstance(in_whole, Decision)
            assert in_batch.exploration == alone.exploration
            # Rows beside it change the graph's sums in the last digits, and nothing else.
            assert (in_whole.offer, in_whole.reasons) == (alone.offer, alone.reasons)
            assert in_whole.propensity == pytest.approx(alone.propensity, rel=1e-4)
            explored += Reason.EXPLORED in alone.reasons
    assert explored == 0 if rule is None else explored > 20


def test_route_stream_decides_as_in_process(router: Router, client: RouterClient) -> None:
    asked = requests(4, N_STREAM)
    answers = list(client.decide_stream(asked))
    assert len(answers) == len(asked)
    for each, answer in zip(asked, answers, strict=True):
        check_same(expected(router, each), answer, each)


def test_describe_is_the_same(router: Router, client: RouterClient) -> None:
    assert client.describe() == router.describe()
