"""Shadow decisions: a version decides beside the one in force, without effect and without holding it up."""

from __future__ import annotations

import logging
import threading
import time
from queue import SimpleQueue
from typing import NamedTuple, Protocol

from router_ml.errors import NoEligibleOfferError, RequestError
from router_ml.request import prompt_bytes
from router_ml.router import Router
from router_ml.types import Decision, Request, ShadowDecision

_LOG = logging.getLogger(__name__)

_WAITING_BYTES = 16 * 2**20
"""Memory for requests that wait; beyond it they are dropped and counted."""
_REQUEST_BYTES = 4096
"""What a waiting request is taken to need beside its prompt."""
_BREATH_SECONDS = 5e-5
"""Pause before each shadow decision, in which a thread that decides for good takes the interpreter."""
_GRACE_SECONDS = 1.0
"""What waits at the end gets so long."""

AGREES, DIFFERS, FAILED, DROPPED = RESULTS = ("agrees", "differs", "failed", "dropped")


class ShadowRecord(Protocol):
    """What keeps shadow decisions: the Journal."""

    def append_shadow(self, shadow: ShadowDecision, /) -> None:
        """Returns at once."""


class Count(Protocol):
    """What counts them: the Meter."""

    def shadow(self, result: str, /) -> None:
        """One of `RESULTS`."""


class _Waiting(NamedTuple):
    test: str
    router: Router
    request: Request
    decision: Decision
    n_bytes: int


class ShadowQueue:
    """Requests that wait for a shadow, and the one thread that decides them. Any thread may put; one per process."""

    def __init__(self, record: ShadowRecord | None, count: Count | None) -> None:
        self._record = record
        self._count = count
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._lock = threading.Lock()  # guards the two after it
        self._waiting_bytes = 0
        self._limit = float("inf")
        self._thread = threading.Thread(target=self._decide_on, name="router-ml-shadow", daemon=True)
        self._thread.start()

    def put(self, test: str, router: Router, request: Request, decision: Decision) -> None:
        """Let the router of a test decide this too, some time; never waits, never raises."""
        n_bytes = _REQUEST_BYTES + prompt_bytes(request)
        with self._lock:
            full = self._waiting_bytes + n_bytes > _WAITING_BYTES
            self._waiting_bytes += 0 if full else n_bytes
        if full:
            self._tell(DROPPED)
        else:
            self._queue.put(_Waiting(test, router, request, decision, n_bytes))

    def close(self) -> None:
        """Decide what waits, for a second at most, and drop the rest."""
        with self._lock:
            self._limit = time.monotonic() + _GRACE_SECONDS
        self._queue.put(None)
        self._thread.join()

    def _decide_on(self) -> None:
        while (waiting := self._queue.get()) is not None:
            if time.monotonic() > self._limit:
                self._tell(DROPPED)
                continue
            time.sleep(_BREATH_SECONDS)
            try:
                shadow = shadow_decision(waiting.test, waiting.router, waiting.request, waiting.decision)
                self._tell(FAILED if shadow.error else AGREES if shadow.agrees else DIFFERS)
                if self._record is not None:
                    self._record.append_shadow(shadow)
            except Exception as error:  # whatever one request provokes, the next is still to be decided
                # By its type alone: the message may quote the prompt.
                _LOG.error("test %s: a shadow decision failed (%s)", waiting.test, type(error).__name__)
                self._tell(FAILED)
            with self._lock:
                self._waiting_bytes -= waiting.n_bytes

    def _tell(self, result: str) -> None:
        if self._count is not None:
            self._count.shadow(result)


def shadow_decision(test: str, router: Router, request: Request, served: Decision) -> ShadowDecision:
    """What that version would have decided, beside what was."""
    begun = time.perf_counter_ns()
    decision, error = None, ""
    try:
        decision = router.decide_as(served.decision_id, request)
    except NoEligibleOfferError:
        error = "no_eligible_offer"
    except RequestError:
        error = "request_not_taken"
    micros = (time.perf_counter_ns() - begun) // 1000
    manifest = router.bundle.manifest
    if decision is None:
        nothing = ("", "", None, None, False, None, None, 0.0)
        return ShadowDecision(served.decision_id, test, manifest.version, router.bundle.sha256, *nothing, micros, error)
    chosen = decision.candidate(decision.offer)
    of_served = next((each for each in decision.candidates if each.offer == served.offer), None)
    agrees = decision.model == served.model
    if decision.propensity == 1.0:
        chance = float(agrees)
    else:
        chance = router.chances((request,))[0].get(served.model, 0.0)
    return ShadowDecision(
        decision_id=served.decision_id,
        test=test,
        version=manifest.version,
        bundle_sha256=router.bundle.sha256,
        offer=decision.offer,
        model=decision.model,
        p_success=chosen.p_success,
        cost_usd=chosen.cost_usd,
        agrees=agrees,
        served_p_success=None if of_served is None else of_served.p_success,
        served_cost_usd=None if of_served is None else of_served.cost_usd,
        served_propensity=chance,
        micros=micros,
        error="",
    )
