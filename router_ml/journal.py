"""The durable record of decisions and outcomes, written by one thread per process.

Whoever decides only puts the decision on a queue; whoever reports outcomes
waits until they are on disk. One sync serves all who wait (group commit).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from router_ml.errors import InputError
from router_ml.records import OutcomeReport, decision_line, outcome_line
from router_ml.segments import Segment, read_records
from router_ml.types import Decision, Request

__all__ = ["Journal", "JournalSettings", "JournalStats", "OutcomeReport", "read_records"]

_LOG = logging.getLogger(__name__)

_DECISION_BYTES = 4096
"""Memory a queued decision is taken to need beside its prompt; about that of ten candidates."""

_BREATH = 8
_BREATH_SECONDS = 5e-5
"""Every so many lines the writer sleeps so long, so that a thread that decides never waits for the interpreter
lock longer than a few lines take; merely giving the lock up would take it back before the other has woken."""


@dataclass(frozen=True, slots=True)
class JournalSettings:
    """How a journal is written. InputError on a value that is not above zero."""

    flush_seconds: float = 0.1
    """Decisions reach the disk this often; those of the last interval are what a crash may lose."""
    segment_bytes: int = 64 * 2**20
    """A segment that has reached this size is closed."""
    segment_seconds: float = 3600.0
    """A segment of this age is closed."""
    queue_bytes: int = 64 * 2**20
    """Memory for decisions that wait for the disk; beyond it they are dropped and counted."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InputError(f"`{field.name}` of the journal must be a number above 0; found {value!r}")


@dataclass(frozen=True, slots=True)
class JournalStats:
    """What a journal has done since it was opened."""

    decisions_written: int
    """Decisions on disk."""
    decisions_dropped: int
    """Decisions lost to a full queue, to trouble with the disk, or handed over after the end."""
    outcomes_written: int
    """Outcome reports on disk, each acknowledged to its sender."""
    outcomes_refused: int
    """Outcome reports that could not be written; their senders got an OSError."""
    queued_bytes: int
    """Memory taken by decisions that wait."""
    lag_seconds: float
    """Age of the oldest decision that waits; 0 when none does."""
    trouble: str | None
    """What the disk said at the last write; None: it went well."""


class _Decided(NamedTuple):
    request: Request
    decision: Decision
    time_unix_micros: int
    n_bytes: int


class _Reported(NamedTuple):
    lines: bytes
    n_reports: int
    done: Future[None]


class Journal:
    """Appends to segment files in one folder; all methods may be called from any thread.

    Make one per process, after any fork: its thread does not follow into a
    child. A process that ends without `close` may lose the decisions of the
    last flush interval, never an outcome that was acknowledged.
    """

    def __init__(self, folder: str | Path, *, settings: JournalSettings | None = None) -> None:
        """InputError when there is no such folder and it cannot be made. No file is made before the first record."""
        self.settings = settings or JournalSettings()
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be a journal folder ({error.strerror}); name one that can be made"
            ) from None
        self._lock = threading.Lock()  # guards what follows, up to the wake event
        self._queue: deque[_Decided | _Reported] = deque()
        self._queued_bytes = 0
        self._closed = False
        self._decisions_written = self._decisions_dropped = 0
        self._outcomes_written = self._outcomes_refused = 0
        self._trouble: str | None = None
        self._wake = threading.Event()
        self._segment: Segment | None = None
        self._n_segments = 0
        self._thread = threading.Thread(target=self._write_on, name="router-ml-journal", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def stats(self) -> JournalStats:
        """Counts at this moment."""
        with self._lock:
            return JournalStats(
                decisions_written=self._decisions_written,
                decisions_dropped=self._decisions_dropped,
                outcomes_written=self._outcomes_written,
                outcomes_refused=self._outcomes_refused,
                queued_bytes=self._queued_bytes,
                lag_seconds=self._lag_seconds(),
                trouble=self._trouble,
            )

    def append_decision(self, request: Request, decision: Decision) -> None:
        """Hand a decision to the writer in a few microseconds; never raises, never waits for the disk.

        The two objects, an embedding included, must not be changed afterwards.
        """
        n_bytes = _DECISION_BYTES + _prompt_bytes(request)
        micros = time.time_ns() // 1000
        with self._lock:
            if self._closed or self._queued_bytes + n_bytes > self.settings.queue_bytes:
                self._decisions_dropped += 1
                return
            self._queued_bytes += n_bytes
            self._queue.append(_Decided(request, decision, micros, n_bytes))

    def append_outcomes(self, reports: Sequence[OutcomeReport]) -> None:
        """Write outcomes and return when they are on disk.

        OSError when that cannot be done: then none of them counts as written,
        and the caller may send them again.
        """
        if not reports:
            return
        micros = time.time_ns() // 1000
        reported = _Reported(b"".join(outcome_line(report, micros) for report in reports), len(reports), Future())
        with self._lock:
            if self._closed:
                self._outcomes_refused += len(reports)
                raise OSError("the journal is closed")
            self._queue.append(reported)
        self._wake.set()
        reported.done.result()

    def close(self) -> None:
        """Write what waits, close the segment and stop; a second call does nothing."""
        with self._lock:
            self._closed = True
        self._wake.set()
        self._thread.join()

    def _write_on(self) -> None:
        closed = False
        while not closed:
            self._wake.wait(self.settings.flush_seconds)
            self._wake.clear()
            with self._lock:
                closed = self._closed  # nothing joins the queue after this, so this round is the last
                batch = list(self._queue)
                self._queue.clear()
            if batch:
                self._write(batch)
            if closed or self._is_full():
                self._end_segment()

    def _write(self, batch: list[_Decided | _Reported]) -> None:
        decided = [item for item in batch if isinstance(item, _Decided)]
        reported = [item for item in batch if isinstance(item, _Reported)]
        lines = self._decision_lines(decided) + [item.lines for item in reported]
        trouble: OSError | None = None
        try:
            self._append(b"".join(lines))
        except OSError as error:
            trouble = error
            self._end_segment()
        n_decisions = len(lines) - len(reported) if trouble is None else 0
        n_outcomes = sum(item.n_reports for item in reported)
        with self._lock:
            self._queued_bytes -= sum(item.n_bytes for item in decided)
            self._decisions_written += n_decisions
            self._decisions_dropped += len(decided) - n_decisions
            self._outcomes_written += n_outcomes if trouble is None else 0
            self._outcomes_refused += n_outcomes if trouble is not None else 0
        self._tell(trouble)
        for item in reported:
            if trouble is None:
                item.done.set_result(None)
            else:
                item.done.set_exception(OSError(trouble.errno, f"the journal cannot be written: {trouble.strerror}"))

    def _decision_lines(self, decided: list[_Decided]) -> list[bytes]:
        lines = []
        for n, item in enumerate(decided, 1):
            try:
                lines.append(decision_line(item.request, item.decision, item.time_unix_micros))
            except Exception:  # whatever one decision holds, those after it are still to be written
                _LOG.exception("decision %s cannot be journaled", item.decision.decision_id)
            if n % _BREATH == 0 and self._queued_bytes < self.settings.queue_bytes / 2:  # rather late than lost
                time.sleep(_BREATH_SECONDS)
        return lines

    def _append(self, lines: bytes) -> None:
        if not lines:
            return
        if self._segment is None:
            self._n_segments += 1
            self._segment = Segment(self._folder, self._n_segments)
        self._segment.append(lines)

    def _is_full(self) -> bool:
        segment = self._segment
        return segment is not None and (
            segment.n_bytes >= self.settings.segment_bytes or segment.age_seconds >= self.settings.segment_seconds
        )

    def _end_segment(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _lag_seconds(self) -> float:
        waiting = next((item for item in self._queue if isinstance(item, _Decided)), None)
        return 0.0 if waiting is None else max(0.0, time.time() - waiting.time_unix_micros / 1e6)

    def _tell(self, trouble: OSError | None) -> None:
        """Log when trouble with the disk begins and ends, not at every write."""
        before, now = self._trouble, None if trouble is None else str(trouble.strerror)
        with self._lock:
            self._trouble = now
        if now is not None and before is None:
            _LOG.error("%s: cannot be written (%s); decisions go on, their records are lost", self._folder, now)
        elif now is None and before is not None:
            _LOG.warning("%s: is written again", self._folder)


def _prompt_bytes(request: Request) -> int:
    if request.text is not None:
        return len(request.text)
    if request.embedding is not None:
        return request.embedding.nbytes
    return sum(len(message.content) for message in request.messages)
