"""What a serving process counts, in memory that it shares with the process that tells Prometheus.

Counting must cost a decision next to nothing, several processes serve one port, and a process that is
killed must not take its counts along. So each worker adds to plain numbers in a piece of shared memory that
another process made; the worker that replaces a dead one goes on in the same piece, and whoever reads adds
the pieces up. The mapped files of prometheus-client, made for the same end, would cost a decision more.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from ctypes import Array, c_byte
from dataclasses import dataclass, field
from typing import Protocol

from router_ml.journal import JournalStats
from router_ml.types import Decision, Reason

METHODS = ("Route", "RouteBatch", "RouteStream", "ReportOutcomes", "Describe")
TIMED = METHODS[:3]
"""Methods that decide, whose latency is measured."""

STATUSES = (
    "OK", "CANCELLED", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION", "INTERNAL", "UNAVAILABLE", "UNAUTHENTICATED",
)  # fmt: skip
"""What a call of ours may end with."""

BUCKETS = (
    25e-6, 50e-6, 75e-6, 100e-6, 150e-6, 200e-6, 300e-6, 500e-6, 750e-6,
    1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 10e-3, 20e-3, 50e-3, 100e-3,
)  # fmt: skip
"""Upper bounds of the latency histogram, seconds; what took longer goes into one more bucket."""

REFUSED_OVERLOAD, REFUSED_GONE = "refused_overload", "refused_gone"

_COUNTERS = (
    "explored", REFUSED_OVERLOAD, REFUSED_GONE, "outcomes_accepted", "outcomes_rejected", "outcomes_unwritten",
    "shadow_agrees", "shadow_differs", "shadow_failed", "shadow_dropped",
    "journal_written", "journal_lost", "journal_unredacted", "shadow_unwritten",
)  # fmt: skip
_OF_JOURNAL = _COUNTERS[-4:]
_GAUGES = ("alive", "taken", "ended", "journal", "journal_trouble", "journal_queued_bytes", "journal_oldest_unix")
"""`alive` and `journal`: 1 while there is a worker, and while it keeps a journal; `taken` less `ended`: calls in
flight; `journal_oldest_unix`: time of the oldest decision that waits for the disk, 0 when none waits."""

_SERIES = 1024
"""Sets of labels of decisions that are told apart; those that come later count as `OTHER`."""
_NAME_BYTES = 256
_LABEL_BYTES = 62
"""Longer labels are cut: four of them and what parts them fill a name."""
_PART = "\x1f"

_LATENCY_CELLS = len(BUCKETS) + 2  # with what took longer, and the sum
_RPCS = len(TIMED) * _LATENCY_CELLS
_SINGLES = _RPCS + len(METHODS) * len(STATUSES)
_N_SERIES = _SINGLES + len(_COUNTERS) + len(_GAUGES)
_DECISIONS = _N_SERIES + 1
_CELLS = _DECISIONS + _SERIES

_LATENCY_AT = {method: k * _LATENCY_CELLS for k, method in enumerate(TIMED)}
_RPC_AT = {(m, s): _RPCS + i * len(STATUSES) + j for i, m in enumerate(METHODS) for j, s in enumerate(STATUSES)}
_SINGLE_AT = {name: _SINGLES + k for k, name in enumerate(_COUNTERS + _GAUGES)}
_EXPLORED, _TAKEN, _ENDED = _SINGLE_AT["explored"], _SINGLE_AT["taken"], _SINGLE_AT["ended"]

Labels = tuple[str, str, str, str]
"""Version, arm, model and reason of decisions."""
OTHER: Labels = ("other", "other", "other", "other")

Memory = Array[c_byte]

_SAMPLE_SECONDS = 0.5


def new_memory() -> Memory:
    """Memory for the counts of one worker; it may be handed to a process as that is started."""
    return multiprocessing.get_context("spawn").RawArray(c_byte, 8 * _CELLS + _SERIES * _NAME_BYTES)


class _Here(threading.local):
    """What a thread has done."""

    answered = False
    """Whether it answered a call, since this was last set to False."""


class Meter:
    """Counts into a piece of memory, which one meter at a time may use. All methods may be called from any thread."""

    def __init__(self, memory: Memory) -> None:
        """Goes on with the counts that the memory holds, say of a worker that died."""
        forget_worker(memory)
        self._cells, self._names = _views(memory)
        self._lock = threading.Lock()
        self._series: dict[tuple[str, str, str, tuple[Reason, ...]], int] = {}
        self._series_of = {labels: k for k, labels in enumerate(_read_names(self._cells, self._names))}
        self._journal_before = [self._cells[_SINGLE_AT[name]] for name in _OF_JOURNAL]
        self.here = _Here()
        self._cells[_SINGLE_AT["alive"]] = 1

    def count(
        self, method: str, status: str | None = None, seconds: float | None = None, decisions: Sequence[Decision] = ()
    ) -> None:
        """What came of a call, as far as it is known, in one step, since each takes its time.

        `status`: the call ended with the gRPC status of that name, and this is the thread that served it. `seconds`: an
        answer was made so long after its message came. `decisions`: what was decided.
        """
        cells = self._cells
        with self._lock:
            for decision in decisions:
                key = (decision.version, decision.arm, decision.model, decision.reasons)
                cells[self._series.get(key) or self._new_series(key)] += 1
                if decision.propensity < 1 and Reason.EXPLORED in decision.reasons:
                    cells[_EXPLORED] += 1
            if seconds is not None:
                start = _LATENCY_AT[method]
                cells[start + bisect_left(BUCKETS, seconds)] += 1
                cells[start + _LATENCY_CELLS - 1] += seconds
            if status is not None:
                cells[_RPC_AT[method, status]] += 1
                cells[_ENDED] += 1
                self.here.answered = True

    def outcomes(self, *, accepted: int = 0, rejected: int = 0, unwritten: int = 0) -> None:
        """Outcomes were reported: on disk now, wrong in themselves, or not to be written."""
        with self._lock:
            self._cells[_SINGLE_AT["outcomes_accepted"]] += accepted
            self._cells[_SINGLE_AT["outcomes_rejected"]] += rejected
            self._cells[_SINGLE_AT["outcomes_unwritten"]] += unwritten

    def shadow(self, result: str) -> None:
        """A shadow decision came to one of `shadow.RESULTS`."""
        with self._lock:
            self._cells[_SINGLE_AT[f"shadow_{result}"]] += 1

    def refused(self, method: str, why: str, status: str) -> None:
        """A call ended without being served: REFUSED_OVERLOAD, before it was taken, or REFUSED_GONE, afterwards."""
        with self._lock:
            self._cells[_SINGLE_AT[why]] += 1
            self._cells[_RPC_AT[method, status]] += 1
            self._cells[_ENDED] += why == REFUSED_GONE

    def taken(self) -> None:
        """A call was taken and waits for a thread. Only for the one thread that takes calls."""
        self._cells[_TAKEN] += 1

    def journal(self, stats: JournalStats) -> None:
        """How the journal of this worker stands now."""
        written, lost, unredacted, unwritten = self._journal_before
        oldest = time.time() - stats.lag_seconds if stats.lag_seconds > 0 else 0.0
        with self._lock:
            for name, value in (
                ("journal", 1.0),
                ("journal_written", written + stats.decisions_written),
                ("journal_lost", lost + stats.decisions_dropped),
                ("journal_unredacted", unredacted + stats.redactions_failed),
                ("shadow_unwritten", unwritten + stats.shadows_lost),
                ("journal_trouble", float(stats.trouble is not None)),
                ("journal_queued_bytes", float(stats.queued_bytes)),
                ("journal_oldest_unix", oldest),
            ):
                self._cells[_SINGLE_AT[name]] = value

    def _new_series(self, key: tuple[str, str, str, tuple[Reason, ...]]) -> int:
        labels = _cut((*key[:3], "+".join(key[3])))
        n = int(self._cells[_N_SERIES])
        if labels not in self._series_of and n >= _SERIES - 1:  # the last one takes all that come later
            labels = OTHER
        if labels not in self._series_of:
            self._write_name(n, labels)
        cell = self._series[key] = _DECISIONS + self._series_of[labels]
        return cell

    def _write_name(self, n: int, labels: Labels) -> None:
        name = _PART.join(labels).encode().ljust(_NAME_BYTES, b"\0")
        self._names[n * _NAME_BYTES : (n + 1) * _NAME_BYTES] = name
        self._cells[_N_SERIES] = n + 1  # only now, so that a reader never sees half a name
        self._series_of[labels] = n


class _Journal(Protocol):
    @property
    def stats(self) -> JournalStats: ...


class JournalWatch:
    """A thread that tells a meter how a journal stands, twice a second until `close`."""

    def __init__(self, meter: Meter, journal: _Journal) -> None:
        self._meter, self._journal = meter, journal
        self._closed = threading.Event()
        self._meter.journal(journal.stats)
        self._thread = threading.Thread(target=self._watch, name="router-ml-journal-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """After the journal was closed: its last counts are taken."""
        self._closed.set()
        self._thread.join()
        self._meter.journal(self._journal.stats)

    def _watch(self) -> None:
        while not self._closed.wait(_SAMPLE_SECONDS):
            self._meter.journal(self._journal.stats)


@dataclass
class Reading:
    """What one or several pieces of memory hold, added up."""

    buckets: dict[str, list[float]] = field(default_factory=lambda: {m: [0.0] * (len(BUCKETS) + 1) for m in TIMED})
    """Method -> answers by bucket, not cumulated; the last one is above all bounds."""
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Method -> sum of latencies."""
    rpcs: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    """Method and status -> calls."""
    counts: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Each single counter and gauge, but for times."""
    decisions: defaultdict[Labels, float] = field(default_factory=lambda: defaultdict(float))
    oldest_unix: float | None = None
    """Time of the oldest decision that waits for a disk; None when none waits."""


def read(memories: Iterable[Memory]) -> Reading:
    """The sum of all pieces, at about this moment."""
    reading = Reading()
    for memory in memories:
        cells, names = _views(memory)
        for method, start in _LATENCY_AT.items():
            for k in range(len(BUCKETS) + 1):
                reading.buckets[method][k] += cells[start + k]
            reading.seconds[method] += cells[start + _LATENCY_CELLS - 1]
        for key, cell in _RPC_AT.items():
            reading.rpcs[key] += cells[cell]
        for name, cell in _SINGLE_AT.items():
            reading.counts[name] += cells[cell]
        for k, labels in enumerate(_read_names(cells, names)):
            reading.decisions[labels] += cells[_DECISIONS + k]
        if oldest := cells[_SINGLE_AT["journal_oldest_unix"]]:
            reading.oldest_unix = min(oldest, reading.oldest_unix or oldest)
    return reading


def forget_worker(memory: Memory) -> None:
    """The worker of that memory is gone: what held of it alone does not hold any more; its counts stay."""
    cells, _ = _views(memory)
    for name in _GAUGES:
        cells[_SINGLE_AT[name]] = 0.0


def _views(memory: Memory) -> tuple[memoryview[float], memoryview[int]]:
    """The numbers and the names."""
    whole = memoryview(memory).cast("B")
    return whole[: 8 * _CELLS].cast("d"), whole[8 * _CELLS :]


def _read_names(cells: memoryview[float], names: memoryview[int]) -> list[Labels]:
    found = []
    for k in range(int(cells[_N_SERIES])):
        name = bytes(names[k * _NAME_BYTES : (k + 1) * _NAME_BYTES]).rstrip(b"\0").decode()
        version, arm, model, reason = name.split(_PART)
        found.append((version, arm, model, reason))
    return found


def _cut(labels: Labels) -> Labels:
    version, arm, model, reason = (
        label.replace(_PART, "?").replace("\0", "?").encode(errors="replace")[:_LABEL_BYTES].decode(errors="ignore")
        for label in labels
    )
    return version, arm, model, reason
