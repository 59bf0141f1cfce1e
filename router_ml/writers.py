"""Who writes a journal: each process has a locked file in the folder, and a tally that outlives its death.

The lock (flock) goes with the process however it ends, so a `.writer` file that nobody holds
is proof of a death. The next process that opens the folder then closes the dead one's segments
and tells, as a record of the journal, how many decisions it had not brought to disk.

The tally lies in shared memory: a decision must not wait for a disk to be counted. So it is lost
when the machine stops, and where there is no /dev/shm; the loss is then told as unknown.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from router_ml.errors import InputError
from router_ml.records import RecordKind, loss_line, parse_line, record_kind
from router_ml.segments import Segment, close_left_open, open_segments

_SUFFIX = ".writer"
_SHARED = Path("/dev/shm")
_TALLY_BYTES = 16
_NUMBER = re.compile(rb'"number":"(\d{1,18})"\}\}\n\Z')
"""How `decision_line` ends a line."""
_LOG = logging.getLogger(__name__)


class Writer:
    """This process as a writer of one journal. Not safe for several threads, but for its two numbers."""

    def __init__(self, folder: Path) -> None:
        """Lock a new file in `folder`; OSError when it cannot be written."""
        self.id = f"{os.getpid()}-{os.urandom(4).hex()}"
        """Part of the names of its segments."""
        self._path = folder / f"{self.id}{_SUFFIX}"
        self._lock = _created_and_locked(self._path)
        self._tally_path = _SHARED / f"router-ml-{self.id}"
        self._tally = _tally(self._tally_path).cast("Q")

    def hand(self, number: int) -> None:
        """Note that so many decisions were handed over; a store to memory, which is all that a decision pays."""
        self._tally[0] = number

    def settle(self, number: int) -> None:
        """Note that up to this number each decision is on disk, or is told there to be lost."""
        self._tally[1] = number

    def reenter(self) -> None:
        """Make the lock file anew where somebody emptied the folder; OSError when that cannot be done."""
        if self._lock is not None and not self._path.exists():
            old, self._lock = self._lock, _created_and_locked(self._path)
            os.close(old)

    def leave(self) -> None:
        """End in order: nothing is left to tell. Never raises."""
        with suppress(OSError):
            self._path.unlink()
        with suppress(OSError):
            self._tally_path.unlink()
        self.abandon()

    def abandon(self) -> None:
        """Let go of the lock and leave the rest to the next process, as if this one had died."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@dataclass(frozen=True, slots=True)
class Died:
    """What became of a writer that died."""

    writer: str
    decisions_lost: int | None
    """None: unknown, at most those of one flush interval."""


def recover(folder: Path) -> list[Died]:
    """Close the segments of dead writers and tell their losses in the journal; those that live are left alone.

    What cannot be done is logged, and left to the next call.
    """
    found = []
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        with _held(path) as is_dead:
            if not is_dead:
                continue
            try:
                found.append(_bury(folder, path))
            except OSError as error:
                _LOG.warning("%s: what a dead process left cannot be put in order (%s)", path, error.strerror)
    return found


def _bury(folder: Path, path: Path) -> Died:
    writer = path.name.removesuffix(_SUFFIX)
    left_open = open_segments(folder, writer)
    tally_path = _SHARED / f"router-ml-{writer}"
    lost, last = _lost(left_open, _read_tally(tally_path))
    if lost != 0:
        _LOG.error(
            "%s: process %s died; decisions it had not yet written: %s",
            folder, writer, "unknown, at most those of a flush interval" if lost is None else lost,
        )  # fmt: skip
        # In a segment of its own, and first: a death in the midst of this repeats it, under the same key.
        segment = Segment(folder, writer, 0)
        try:
            segment.append(loss_line(writer, last, lost, "process ended", time.time_ns() // 1000))
        finally:
            segment.close()
    for segment_path in left_open:
        close_left_open(segment_path)
    with suppress(OSError):
        tally_path.unlink()
    path.unlink()
    return Died(writer, lost)


def _lost(left_open: list[Path], tally: tuple[int, int] | None) -> tuple[int | None, int]:
    """Decisions lost (None: unknown), and the number of the last one handed over, as far as is known."""
    handed, settled = tally or (0, 0)
    last, covered = 0, 0
    for path in left_open:
        with path.open("rb") as lines:
            for line in lines:
                number, count = _told(line)
                last = max(last, number)
                if number > settled:
                    covered += count
    if tally is None:
        return None, last
    return max(0, handed - settled - covered), handed


def _told(line: bytes) -> tuple[int, int]:
    """Of a line: the number it goes up to, and how many decisions it is or tells to be lost."""
    if match := _NUMBER.search(line, max(0, len(line) - 40)):
        return int(match[1]), 1
    if record_kind(line) is RecordKind.LOSS and line.endswith(b"\n"):
        with suppress(InputError):
            loss = parse_line(line).loss
            return loss.last_number, loss.decisions
    return 0, 0


def _created_and_locked(path: Path) -> int | None:
    """Descriptor that holds the lock; None, and no file, on a file system without locks.

    It gets its name when it is locked: a `.writer` file that nobody holds would be taken for that of a dead process.
    """
    unnamed = path.with_suffix(".new")
    handle = os.open(unnamed, os.O_RDONLY | os.O_CREAT, 0o640)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        os.close(handle)
        unnamed.unlink()
        return None
    unnamed.rename(path)
    return handle


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Whether the file was locked by nobody; then it is ours for as long as the context lasts."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield os.fstat(handle).st_nlink > 0
    finally:
        os.close(handle)


def _tally(path: Path) -> memoryview:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return memoryview(bytearray(_TALLY_BYTES))
    try:
        os.write(handle, bytes(_TALLY_BYTES))  # takes the memory now, not when it may be gone
        return memoryview(mmap.mmap(handle, _TALLY_BYTES))
    except OSError:
        path.unlink()
        return memoryview(bytearray(_TALLY_BYTES))
    finally:
        os.close(handle)


def _read_tally(path: Path) -> tuple[int, int] | None:
    """Decisions handed over and settled; None when nobody knows."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    if len(raw) != _TALLY_BYTES:
        return None
    handed, settled = memoryview(raw).cast("Q")
    return handed, settled
