"""The files of a journal: one process appends to one, anyone reads them all.

A segment that is being written is named `<begin, UTC>-<writer>-<number>.jsonl.open`
and renamed to `.jsonl` when it is closed, so a closed one never changes again.
The names sort by time. One that a killed process left open stays readable, and
is closed by the next process that opens the folder (see `writers`).
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from router_ml.errors import InputError
from router_ml.records import RecordKind, parse_line, record_kind
from router_ml.v1 import log_pb2

_CLOSED = ".jsonl"
_OPEN = ".jsonl.open"
_NAME = re.compile(r"\d{8}T\d{6}\.\d+Z-.+-\d{6}\.jsonl(\.open)?")
"""As `Segment` makes it."""
_TAIL_BYTES = 1 << 16
_LOG = logging.getLogger(__name__)


class Segment:
    """The open file of one journal. Not safe for several threads."""

    def __init__(self, folder: Path, writer: str, number: int) -> None:
        """Create the file; OSError when the folder cannot be written."""
        begin = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self._path = folder / f"{begin}-{writer}-{number:06d}{_OPEN}"
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)
        self._begun = time.monotonic()
        self.n_bytes = 0
        """Bytes known to be on disk."""
        try:
            _sync_folder(folder)
        except OSError:
            self.close()
            raise

    @property
    def age_seconds(self) -> float:
        """Time since the file was created."""
        return time.monotonic() - self._begun

    def append(self, lines: bytes) -> None:
        """Write whole lines and return when they are on disk.

        After an OSError the file may end in a part of `lines`, and what the
        kernel still held may be lost though a second sync would succeed: close
        the segment and begin another.
        """
        rest = memoryview(lines)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        os.fsync(self._file)
        self.n_bytes += len(lines)

    def close(self) -> None:
        """Cut the file back to what is known to be on disk, close and rename it; an empty one is removed.

        Never raises: where the disk refuses even this, the file keeps its open
        name, and readers skip a torn last line.
        """
        try:
            if os.fstat(self._file).st_size != self.n_bytes:
                os.ftruncate(self._file, self.n_bytes)
                os.fsync(self._file)
            if self.n_bytes:
                self._path.rename(_closed(self._path))
            else:
                self._path.unlink()
            _sync_folder(self._path.parent)
        except OSError as error:
            _LOG.warning("%s: could not be closed in order (%s)", self._path, error.strerror)
        finally:
            os.close(self._file)


def open_segments(folder: Path, writer: str) -> list[Path]:
    """Segments of one writer that are not closed."""
    return sorted(folder.glob(f"*-{writer}-*{_OPEN}"))


def close_left_open(path: Path) -> None:
    """Close the segment of a dead process: cut off a torn last line, rename; an empty one is removed. OSError."""
    with path.open("r+b") as file:
        size = whole = file.seek(0, os.SEEK_END)
        while whole:
            begin = max(0, whole - _TAIL_BYTES)
            file.seek(begin)
            at = file.read(whole - begin).rfind(b"\n")
            if at >= 0:
                whole = begin + at + 1
                break
            whole = begin
        if whole != size:
            file.truncate(whole)
            os.fsync(file.fileno())
    if whole:
        path.rename(_closed(path))
    else:
        path.unlink()
    _sync_folder(path.parent)


def remove_old(folder: Path, *, keep_seconds: float | None, keep_bytes: float | None) -> list[Path]:
    """Remove closed segments last written longer ago than `keep_seconds`, and the oldest beyond `keep_bytes` in all.

    Open ones are neither counted nor removed. Returns what was removed; OSError when the folder cannot be written.
    """
    found = []
    for path in folder.glob(f"*{_CLOSED}"):
        with suppress(FileNotFoundError):  # another process of the journal removes as well
            about = path.stat()
            found.append((path, about.st_mtime, about.st_size))
    removed, kept_bytes, now = [], 0, time.time()
    for path, written, size in sorted(found, key=lambda item: item[0].name, reverse=True):
        kept_bytes += size
        too_old = keep_seconds is not None and now - written > keep_seconds
        if too_old or (keep_bytes is not None and kept_bytes > keep_bytes):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not a record."""

    path: Path
    line: int
    """Counted from 1."""
    reason: str
    kind: RecordKind | None
    """What it would have been; None where the line does not even tell that."""
    torn: bool
    """The last line of a file, cut off where its writer died: nobody was told that it was written."""


def log_bad_line(bad: BadLine) -> None:
    """Warn of one bad line, without its content: prompts do not belong into logs."""
    _LOG.warning("%s:%d: skipped, %s", bad.path, bad.line, bad.reason)


def is_segment(name: str) -> bool:
    """Whether a file of that name is a segment, open or closed."""
    return _NAME.fullmatch(name) is not None


def journal_files(source: str | Path | Iterable[str | Path]) -> list[Path]:
    """The segments that `source` names, folder by folder in the order they were begun.

    Segments still open, and those left open by a dead process, are among them.
    InputError names a file or folder that does not exist.
    """
    files: list[Path] = []
    for path in map(Path, [source] if isinstance(source, str | Path) else source):
        if path.is_dir():
            entries = {entry for entry in path.iterdir() if entry.name.endswith((_CLOSED, _OPEN))}
            # A segment closed during the listing may be listed under both names.
            files += sorted(entry for entry in entries if entry == _closed(entry) or _closed(entry) not in entries)
        elif path.is_file() or _closed(path).is_file():
            files.append(path)
        else:
            raise InputError(f"{path}: no such file or folder; expected a journal folder or its `{_CLOSED}` files")
    return files


def read_records(
    source: str | Path | Iterable[str | Path],
    *,
    only: Collection[RecordKind] | None = None,
    on_bad_line: Callable[[BadLine], None] = log_bad_line,
) -> Iterator[log_pb2.JournalRecord]:
    """Records of a journal folder or of segment files, in the order they were written, one line in memory at a time.

    With `only`, lines of other kinds are passed over unread. A line that is
    not a record goes to `on_bad_line` and reading goes on; a line whose kind
    cannot be told goes there whatever `only` says. A segment that retention
    removed since it was listed is passed over with a warning.
    """
    for path in journal_files(source):
        try:
            lines = _opened(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        if lines is None:
            _LOG.warning("%s: removed since it was listed", path)
            continue
        with lines:
            for number, line in enumerate(lines, 1):
                kind = record_kind(line)
                if only is not None and kind is not None and kind not in only:
                    continue
                torn = not line.endswith(b"\n")
                try:
                    if torn:
                        raise InputError("cut off: its writer died before the line was whole")
                    record = parse_line(line)
                except InputError as error:
                    on_bad_line(BadLine(path, number, str(error), kind, torn))
                    continue
                yield record


def _opened(path: Path) -> BinaryIO | None:
    """A segment to read, under its closed name where its writer has renamed it since it was listed; None: removed."""
    for candidate in (path, _closed(path)):  # not looked for first: it may be renamed between a look and the opening
        with suppress(FileNotFoundError):
            return candidate.open("rb")
    return None


def _closed(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(_OPEN) + _CLOSED) if path.name.endswith(_OPEN) else path


def _sync_folder(folder: Path) -> None:
    """A new or renamed file outlives a power cut only once its folder is on disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
