"""Outcomes reported in the background: whoever calls a model never waits for the router's disk."""

from __future__ import annotations

import atexit
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from router_ml.calls import Receipt
from router_ml.convert import MAX_ITEMS
from router_ml.errors import RequestError, RouterMlError
from router_ml.records import OutcomeReport

CAPACITY = 10_000
"""Outcomes that wait at most: some megabytes."""

_LINGER_S = 0.2
"""How long the first outcome waits for others to be sent with."""
_BACKOFF_S = 0.1
_BACKOFF_MOST_S = 5.0
_AT_EXIT_S = 2.0
"""How long a program that ends without closing its client waits for outcomes to be reported."""
_END_S = 1.0
"""How long `close` waits for a call that was cancelled to return."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReportCounts:
    """What became of the outcomes handed over to `report_later` so far."""

    accepted: int
    """On the server's disk."""
    rejected: int
    """Refused by the server, each logged; repeating them is of no use."""
    skipped: int
    """Of default decisions, which the router does not know."""
    dropped: int
    """Lost: they did not fit into the buffer, or could not be sent before the client was closed."""
    waiting: int
    """Still to be acknowledged."""


class Reporter:
    """Sends outcomes from a thread of its own, which starts with the first one. Safe to share between threads."""

    def __init__(self, send: Callable[[Sequence[OutcomeReport]], Receipt], *, capacity: int = CAPACITY) -> None:
        """`send` reports up to 1,024 outcomes and raises RouterMlError when it cannot."""
        self._send = send
        self._capacity = capacity
        self._changed = threading.Condition()
        # Guarded by the condition.
        self._waiting: deque[OutcomeReport] = deque()
        self._under_way = 0
        self._accepted = self._rejected = self._skipped = self._dropped = 0
        self._overflows = False
        self._flushing = 0
        self._hurry = False
        self._stopped = False
        self._thread: threading.Thread | None = None

    def add(self, outcome: OutcomeReport) -> None:
        """Returns at once. When the buffer is full the oldest outcome gives way: the newest tell how things are now."""
        with self._changed:
            if not outcome.decision_id:
                self._skipped += 1
            elif self._stopped:
                self._dropped += 1
            else:
                self._queue(outcome)

    def counts(self) -> ReportCounts:
        """So far."""
        with self._changed:
            waiting = len(self._waiting) + self._under_way
            return ReportCounts(self._accepted, self._rejected, self._skipped, self._dropped, waiting)

    def flush(self, timeout_s: float) -> bool:
        """Send all that waits now rather than later, within `timeout_s` seconds; whether nothing waits any more."""
        with self._changed:
            self._flushing += 1
            self._hurry = True
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._waiting and not self._under_way, timeout_s)
            finally:
                self._flushing -= 1

    def stop(self) -> None:
        """Send nothing more; what waits is dropped and counted."""
        atexit.unregister(self._at_exit)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def join(self) -> None:
        """After `stop`, and after what `send` uses has been closed: wait for the thread to end."""
        if self._thread is not None:
            self._thread.join(_END_S)

    def _queue(self, outcome: OutcomeReport) -> None:
        if len(self._waiting) >= self._capacity:
            self._waiting.popleft()
            self._dropped += 1
            if not self._overflows:
                self._overflows = True
                _LOG.warning("the buffer of %d outcomes is full; the oldest are dropped", self._capacity)
        self._waiting.append(outcome)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="router-ml-report", daemon=True)
            self._thread.start()
            atexit.register(self._at_exit)
        elif len(self._waiting) == 1 or len(self._waiting) == MAX_ITEMS:
            self._changed.notify_all()

    def _at_exit(self) -> None:
        self.flush(_AT_EXIT_S)
        self.stop()

    def _run(self) -> None:
        while batch := self._take():
            backoff = _BACKOFF_S
            while not self._sent(batch):
                backoff = self._pause(backoff)
                if self._stopped:
                    break
        with self._changed:
            lost = len(self._waiting) + self._under_way
            self._waiting.clear()
            self._under_way = 0
            self._dropped += lost
            self._changed.notify_all()
        if lost:
            _LOG.warning("%d outcomes could not be reported before the client was closed; they are lost", lost)

    def _take(self) -> list[OutcomeReport]:
        """The next batch; empty: stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped)
            self._changed.wait_for(
                lambda: len(self._waiting) >= MAX_ITEMS or self._flushing or self._stopped, timeout=_LINGER_S
            )
            if self._stopped:
                return []
            batch = [self._waiting.popleft() for _ in range(min(MAX_ITEMS, len(self._waiting)))]
            self._under_way = len(batch)
            return batch

    def _sent(self, batch: Sequence[OutcomeReport]) -> bool:
        """Whether the batch is done with, in one way or another."""
        try:
            receipt = self._send(batch)
        except RequestError as error:
            _LOG.error("%d outcomes were refused: %s", len(batch), error)
            receipt = Receipt(0)
        except RouterMlError as error:
            _LOG.warning("outcomes wait to be reported again: %s", error)
            return False
        for item in receipt.rejected:
            _LOG.error("an outcome was refused: %s", item.reason)
        with self._changed:
            self._accepted += receipt.accepted
            self._rejected += len(batch) - receipt.accepted
            self._under_way = 0
            self._overflows = False
            self._changed.notify_all()
        return True

    def _pause(self, backoff: float) -> float:
        """Wait before the next attempt, unless someone is in a hurry; the seconds to wait the next time."""
        with self._changed:
            hurried = self._changed.wait_for(lambda: self._hurry or self._stopped, backoff * random.uniform(0.5, 1.0))
            self._hurry = False
        return _BACKOFF_S if hurried else min(2 * backoff, _BACKOFF_MOST_S)
