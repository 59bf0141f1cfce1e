"""A version that only looks on: what it would have decided is recorded, and it holds nobody up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from router_ml import shadow as shadows
from router_ml.experiment import Shadow, Unit
from router_ml.exploration import Exploration
from router_ml.journal import Journal, read_records
from router_ml.meter import Meter, read
from router_ml.metrics import ServerMetrics
from router_ml.router import Router
from router_ml.shadow import ShadowQueue, shadow_decision
from router_ml.split_router import SplitRouter
from router_ml.traffic import Traffic
from router_ml.types import Constraints, Decision, Request, ShadowDecision

REQUEST = Request(text="bab xrob dec", session_id="s1")


@pytest.fixture(scope="module")
def router(tiny_bundle: Path) -> Router:
    return Router.load(tiny_bundle)


@pytest.fixture(scope="module")
def served(router: Router) -> Decision:
    return router.decide(REQUEST)


class Slow:
    """A router that decides when it is told to."""

    def __init__(self, router: Router) -> None:
        self.begun, self.go_on, self.bundle, self._router = threading.Event(), threading.Event(), router.bundle, router

    def decide_as(self, decision_id: str, request: Request) -> Decision:
        self.begun.set()
        assert self.go_on.wait(120)
        if request.segment == "fault":
            raise ArithmeticError("of this one request")
        return self._router.decide_as(decision_id, request)


class Kept(list[ShadowDecision]):
    """A journal in memory."""

    append_shadow = list.append


@pytest.fixture
def counted() -> Iterator[tuple[Meter, Callable[[], dict[str, float]]]]:
    metrics = ServerMetrics()

    def counts() -> dict[str, float]:
        found = read(metrics.memories).counts
        return {result: count for result in shadows.RESULTS if (count := found[f"shadow_{result}"])}

    yield Meter(metrics.memories[0]), counts


def test_the_same_version_agrees_and_says_what_it_expects(router: Router, served: Decision) -> None:
    found = shadow_decision("look", router, REQUEST, served)
    chosen = served.candidate(served.offer)
    assert (found.decision_id, found.test, found.offer, found.model) == (
        served.decision_id,
        "look",
        served.offer,
        served.model,
    )
    assert (found.agrees, found.served_propensity, found.error) == (True, 1.0, "")
    assert (found.p_success, found.cost_usd) == (chosen.p_success, chosen.cost_usd)
    assert (found.served_p_success, found.served_cost_usd) == (chosen.p_success, chosen.cost_usd)
    assert found.micros > 0


def test_another_choice_is_told_beside_what_it_thinks_of_the_one_that_was_made(
    router: Router, served: Decision
) -> None:
    other = next(each for each in served.candidates if each.model != served.model)
    found = shadow_decision("look", router, REQUEST, served._replace(offer=other.offer, model=other.model))
    assert (found.model, found.agrees, found.served_propensity) == (served.model, False, 0.0)
    assert (found.served_p_success, found.served_cost_usd) == (other.p_success, other.cost_usd)


def test_with_exploration_the_chance_of_the_served_model_is_told(tiny_bundle: Path, served: Decision) -> None:
    router = Router.load(tiny_bundle, exploration=Exploration(0.4, floor=0.0, cost_multiple=1e6))
    chances = router.chances((REQUEST,))[0]
    assert len(chances) == 4
    for model, chance in chances.items():
        assert shadow_decision("look", router, REQUEST, served._replace(model=model)).served_propensity == chance


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Request(text="bab", constraints=Constraints(allowed_regions=("moon",))), "no_eligible_offer"),
        (Request(text=" "), "request_not_taken"),
    ],
)
def test_a_version_that_would_not_have_decided_says_why(
    request_: Request, error: str, router: Router, served: Decision
) -> None:
    found = shadow_decision("look", router, request_, served)
    assert (found.offer, found.model, found.cost_usd, found.agrees, found.error) == ("", "", None, False, error)


def test_a_shadow_stands_in_the_journal_as_it_was_decided(
    router: Router, served: Decision, counted: tuple[Meter, Callable[[], dict[str, float]]], tmp_path: Path
) -> None:
    meter, counts = counted
    with Journal(tmp_path) as journal:
        queue = ShadowQueue(journal, meter)
        queue.put("look", router, REQUEST, served)
        queue.put("look", router, Request(text=" "), served)
        queue.close()
    first, second = (record.shadow for record in read_records(tmp_path))
    expected = shadow_decision("look", router, REQUEST, served)
    for name in ShadowDecision._fields:
        if name != "micros":
            assert getattr(first, name) == getattr(expected, name), name
    assert first.micros > 0 and first.time_unix_micros > 1e15
    assert (second.error, second.HasField("p_success"), second.HasField("served_cost_usd")) == (
        "request_not_taken",
        False,
        False,
    )
    assert counts() == {"agrees": 1, "failed": 1}


def test_a_slow_shadow_holds_up_nobody_and_what_is_too_much_is_dropped_and_counted(
    router: Router, counted: tuple[Meter, Callable[[], dict[str, float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadows, "_WAITING_BYTES", 10 * (4096 + 12))  # a queue of ten, in place of thousands
    meter, counts = counted
    slow, kept = Slow(router), Kept()
    queue = ShadowQueue(kept, meter)
    traffic = Traffic("v", shadows=(Shadow("look", "", Unit.SESSION, None, 1.0, "slow"),))
    both = SplitRouter(traffic, {"v": router, "slow": slow}, queue)  # type: ignore[dict-item]
    begun = time.monotonic()
    decisions = [both.decide(REQUEST) for _ in range(30)]
    assert time.monotonic() - begun < 60, "less than one shadow takes"
    assert {each.arm for each in decisions} == {""}
    assert counts() == {"dropped": 20}
    slow.go_on.set()
    queue.close()
    assert counts() == {"dropped": 20, "agrees": 10}
    assert [each.decision_id for each in kept] == [each.decision_id for each in decisions[:10]]


def test_a_fault_of_one_shadow_decision_spoils_no_other(
    router: Router,
    served: Decision,
    counted: tuple[Meter, Callable[[], dict[str, float]]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    meter, counts = counted
    slow = Slow(router)
    slow.go_on.set()
    queue = ShadowQueue(None, meter)
    for segment in ("fault", "chat"):
        queue.put("look", slow, Request(text="secret", segment=segment), served)  # type: ignore[arg-type]
    queue.close()
    assert counts()["failed"] == 1 and sum(counts().values()) == 2
    assert [record.message for record in caplog.records] == ["test look: a shadow decision failed (ArithmeticError)"]


def test_at_the_end_what_waits_gets_a_moment_and_no_more(
    router: Router,
    served: Decision,
    counted: tuple[Meter, Callable[[], dict[str, float]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shadows, "_GRACE_SECONDS", -1.0)  # over at once
    meter, counts = counted
    slow = Slow(router)
    queue = ShadowQueue(None, meter)
    for _ in range(5):
        queue.put("look", slow, REQUEST, served)  # type: ignore[arg-type]
    assert slow.begun.wait(60)
    closing = threading.Thread(target=queue.close)
    closing.start()
    limit = time.monotonic() + 60
    while queue._limit == float("inf"):  # until the end has begun for those that wait
        assert time.monotonic() < limit
        time.sleep(0.001)
    slow.go_on.set()
    closing.join(60)
    assert counts() == {"agrees": 1, "dropped": 4}


def test_a_journal_that_cannot_keep_it_counts_what_is_lost(router: Router, served: Decision, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append_shadow(shadow_decision("look", router, REQUEST, served))
    journal.close()
    journal.append_shadow(shadow_decision("look", router, REQUEST, served))
    assert journal.stats.shadows_lost == 1
    assert (journal.stats.queued_bytes, journal.stats.decisions_dropped) == (0, 0)
    assert len(list(read_records(tmp_path))) == 1
