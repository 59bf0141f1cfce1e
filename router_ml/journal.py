"""The durable record of decisions and outcomes, written by one thread per process.

Whoever decides only puts the decision on a queue; whoever reports outcomes
waits until they are on disk. One sync serves all who wait (group commit).
Decisions that never reach the disk are counted, and the count stands in the
journal: as soon as it can be written again, or at the next start.
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
from router_ml.privacy import FullText, PromptRule
from router_ml.records import OutcomeReport, decision_line, loss_line, outcome_line, shadow_line
from router_ml.request import prompt_bytes
from router_ml.segments import Segment, read_records, remove_old
from router_ml.types import Decision, Request, ShadowDecision
from router_ml.writers import Writer, recover

__all__ = ["Journal", "JournalSettings", "JournalStats", "OutcomeReport", "read_records"]

_LOG = logging.getLogger(__name__)

_DECISION_BYTES = 4096
"""Memory a queued decision is taken to need beside its prompt; about that of ten candidates."""

_SHADOW_BYTES = 1024
"""The same for a shadow decision."""

_BREATH = 16
_BREATH_SECONDS = 5e-5
"""Every so many lines the writer sleeps so long, so that a thread that decides never waits for the interpreter
lock longer than a few lines take; merely giving the lock up would take it back before the other has woken."""

_SWEEP_SECONDS = 60.0
"""How often old segments are looked for."""


@dataclass(frozen=True, slots=True)
class JournalSettings:
    """How a journal is written. InputError on a value that is not above zero."""

    flush_seconds: float = 0.1
    """Decisions reach the disk this often, or as soon as those before them have; those of the last interval are what
    a crash may lose."""
    segment_bytes: int = 64 * 2**20
    """A segment that has reached this size is closed."""
    segment_seconds: float = 3600.0
    """A segment of this age is closed."""
    queue_bytes: int = 64 * 2**20
    """Memory for decisions that wait for the disk; beyond it they are dropped and counted."""
    keep_seconds: float | None = None
    """Closed segments last written longer ago are removed, whether or not anything has read them; None: never."""
    keep_bytes: float | None = None
    """The oldest closed segments beyond so many bytes in all are removed; None: never."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
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
    shadows_lost: int
    """Shadow decisions lost to a full queue, to trouble with the disk, or handed over after the end."""
    queued_bytes: int
    """Memory taken by decisions that wait."""
    lag_seconds: float
    """Age of the oldest decision that waits; 0 when none does."""
    redactions_failed: int
    """Prompts and error messages left out because they could not be redacted."""
    processes_died: int
    """Processes of this journal found dead at the start; what they lost stands in the journal."""
    trouble: str | None
    """What the disk said at the last write; None: it went well."""


class _Decided(NamedTuple):
    request: Request
    decision: Decision
    time_unix_micros: int
    n_bytes: int
    number: int


class _Shadowed(NamedTuple):
    shadow: ShadowDecision
    time_unix_micros: int


class _Reported(NamedTuple):
    reports: tuple[OutcomeReport, ...]
    time_unix_micros: int
    done: Future[None]


class Journal:
    """Appends to segment files in one folder; all methods may be called from any thread.

    Make one per process, after any fork: its thread does not follow into a child. A process that ends without
    `close` may lose the decisions of the last flush interval, never an outcome that was acknowledged.
    """

    def __init__(
        self, folder: str | Path, *, settings: JournalSettings | None = None, rule: PromptRule | None = None
    ) -> None:
        """InputError when there is no such folder and it cannot be made. No segment is made before the first record.

        `rule` says what of a prompt is written; None: all of it.
        """
        self.settings = settings or JournalSettings()
        self._rule = rule or FullText()
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be a journal folder ({error.strerror}); name one that can be made"
            ) from None
        self._lock = threading.Lock()  # guards what follows, up to the wake event
        self._queue: deque[_Decided | _Shadowed | _Reported] = deque()
        self._queued_bytes = 0
        self._closed = False
        self._number = self._untold = 0
        self._decisions_written = self._decisions_dropped = 0
        self._outcomes_written = self._outcomes_refused = self._shadows_lost = 0
        self._processes_died = 0
        self._trouble: str | None = None
        self._writer: Writer | None = None
        self._wake = threading.Event()
        self._segment: Segment | None = None
        self._n_segments = 0
        self._swept = -math.inf
        try:
            self._begin()
        except OSError as error:
            self._tell(error)
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
                shadows_lost=self._shadows_lost,
                queued_bytes=self._queued_bytes,
                lag_seconds=self._lag_seconds(),
                redactions_failed=self._rule.failures,
                processes_died=self._processes_died,
                trouble=self._trouble,
            )

    def append_decision(self, request: Request, decision: Decision) -> None:
        """`append_decisions` of one."""
        self.append_decisions(((request, decision),))

    def append_decisions(self, decided: Sequence[tuple[Request, Decision]]) -> None:
        """Hand decisions to the writer in a few microseconds; never raises, never waits for the disk.

        The objects, embeddings included, must not be changed afterwards.
        """
        micros = time.time_ns() // 1000
        with self._lock:
            first, self._number = self._number + 1, self._number + len(decided)
            if self._writer is not None:
                self._writer.hand(self._number)
            for number, (request, decision) in enumerate(decided, first):
                n_bytes = _DECISION_BYTES + prompt_bytes(request)
                if self._closed or self._queued_bytes + n_bytes > self.settings.queue_bytes:
                    self._decisions_dropped += 1
                    self._untold += 1
                    continue
                self._queued_bytes += n_bytes
                self._queue.append(_Decided(request, decision, micros, n_bytes, number))

    def append_shadow(self, shadow: ShadowDecision) -> None:
        """Hand a shadow decision to the writer; never raises, never waits for the disk."""
        micros = time.time_ns() // 1000
        with self._lock:
            if self._closed or self._queued_bytes + _SHADOW_BYTES > self.settings.queue_bytes:
                self._shadows_lost += 1
                return
            self._queued_bytes += _SHADOW_BYTES
            self._queue.append(_Shadowed(shadow, micros))

    def append_outcomes(self, reports: Sequence[OutcomeReport]) -> None:
        """Write outcomes and return when they are on disk.

        OSError when that cannot be done: then none of them counts as written, and the caller may send them again.
        """
        if not reports:
            return
        micros = time.time_ns() // 1000
        reported = _Reported(tuple(reports), micros, Future())
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

    def _begin(self) -> None:
        """Look after what dead processes left, and enter this one; OSError when the folder cannot be written."""
        died = recover(self._folder)
        writer = Writer(self._folder)
        with self._lock:
            self._processes_died += len(died)
            self._writer = writer
            writer.hand(self._number)

    def _write_on(self) -> None:
        closed = False
        while not closed:
            self._wake.wait(self.settings.flush_seconds)
            self._wake.clear()
            with self._lock:
                closed = self._closed  # nothing joins the queue after this, so this round is the last
                batch = list(self._queue)
                self._queue.clear()
                up_to, untold = self._number, self._untold
            if batch or untold:
                self._write(batch, up_to, untold)
            if closed or self._is_full():
                self._end_segment()
            if time.monotonic() - self._swept >= min(_SWEEP_SECONDS, self.settings.segment_seconds):
                self._sweep()
        self._leave()

    def _write(self, batch: list[_Decided | _Shadowed | _Reported], up_to: int, untold: int) -> None:
        """Write a batch, and that `untold` decisions were lost; decisions up to number `up_to` are then settled."""
        decided = [item for item in batch if isinstance(item, _Decided)]
        shadowed = [item for item in batch if isinstance(item, _Shadowed)]
        reported = [item for item in batch if isinstance(item, _Reported)]
        lines = self._decision_lines(decided)
        unwritable = len(decided) - len(lines)
        trouble: OSError | None = None
        try:
            writer = self._entered()
            if lost := untold + unwritable:
                reason = self._trouble or ("queue full" if untold else "unwritable")
                lines.append(loss_line(writer.id, up_to, lost, reason, time.time_ns() // 1000))
            lines += [shadow_line(item.shadow, item.time_unix_micros) for item in shadowed]
            self._append(writer, b"".join(lines + self._outcome_lines(reported)))
        except OSError as error:
            trouble = error
            self._end_segment()
        else:
            writer.settle(up_to)
        n_outcomes = sum(len(item.reports) for item in reported)
        with self._lock:
            self._queued_bytes -= sum(item.n_bytes for item in decided) + _SHADOW_BYTES * len(shadowed)
            if trouble is None:
                self._decisions_written += len(decided) - unwritable
                self._decisions_dropped += unwritable
                self._outcomes_written += n_outcomes
                self._untold -= untold
            else:
                self._decisions_dropped += len(decided)
                self._outcomes_refused += n_outcomes
                self._untold += len(decided)
                self._shadows_lost += len(shadowed)
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
                prompt = self._rule.prompt(item.request, item.decision)
                line = decision_line(
                    item.request, item.decision, item.time_unix_micros, number=item.number, prompt=prompt
                )
                lines.append(line)
            except Exception as error:  # whatever one decision holds, those after it are still to be written
                # By its type alone: the message may quote the prompt.
                _LOG.error("decision %s cannot be journaled (%s)", item.decision.decision_id, type(error).__name__)
            if n % _BREATH == 0 and self._queued_bytes < self.settings.queue_bytes / 2:  # rather late than lost
                time.sleep(_BREATH_SECONDS)
        return lines

    def _outcome_lines(self, reported: list[_Reported]) -> list[bytes]:
        return [
            outcome_line(self._rule.outcome(report), item.time_unix_micros)
            for item in reported
            for report in item.reports
        ]

    def _entered(self) -> Writer:
        if self._writer is None:  # the disk refused at the start
            self._begin()
        assert self._writer is not None
        return self._writer

    def _append(self, writer: Writer, lines: bytes) -> None:
        if not lines:
            return
        if self._segment is None:
            writer.reenter()
            self._n_segments += 1
            self._segment = Segment(self._folder, writer.id, self._n_segments)
        self._segment.append(lines)

    def _sweep(self) -> None:
        """Remove segments that need not be kept any longer."""
        self._swept = time.monotonic()
        keep_seconds, keep_bytes = self.settings.keep_seconds, self.settings.keep_bytes
        if keep_seconds is None and keep_bytes is None:
            return
        try:
            removed = remove_old(self._folder, keep_seconds=keep_seconds, keep_bytes=keep_bytes)
        except OSError as error:
            _LOG.warning("%s: old segments cannot be removed (%s)", self._folder, error.strerror)
        else:
            if removed:
                _LOG.info("%s: removed %d old segments, the last was %s", self._folder, len(removed), removed[0].name)

    def _leave(self) -> None:
        """After the last write: what could not be told is left for the next process to tell."""
        with self._lock:
            writer, self._writer, untold = self._writer, None, self._untold
        if writer is not None:
            if untold:
                writer.abandon()
            else:
                writer.leave()

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
