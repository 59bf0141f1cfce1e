"""What the reader of outcome tables found, for a person and for a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from router_ml.errors import InputError
from training.header import Header
from training.validation import Fault

_LISTED = 8


@dataclass(frozen=True, slots=True)
class RejectCount:
    """Rows left out for one reason and field, with the first of them."""

    reason: str
    field: str
    expected: str
    rows: int
    first_file: str
    first_row: int
    first_value: str
    """As it was found, cut to a line."""


@dataclass(frozen=True, slots=True)
class ModelRows:
    """Kept rows of one model."""

    model: str
    rows: int
    known: int
    """Rows whose success is known."""
    mean_success: float | None
    """Of the known; None where there is none."""


@dataclass(frozen=True, slots=True)
class ReadReport:
    """What was read, kept and left out."""

    files: int
    rows_read: int
    rows_kept: int
    rejected: tuple[RejectCount, ...]
    """Most frequent first."""
    rejects_file: str | None
    """Where the rejected rows stand; None when there is none, or no file was asked for."""
    success_unknown: int
    """Kept rows whose success is null: they are kept, and teach cost and length only."""
    nan_read_as_null: Mapping[str, int]
    """Column -> NaN found there."""
    empty_files: tuple[str, ...]
    unknown_columns: tuple[str, ...]
    hints: tuple[str, ...]
    """What may be a slip, in words: misspelt columns, values that were set aside."""
    models: tuple[ModelRows, ...]
    segments: Mapping[str, int]
    """Segment -> kept rows; rows without one are not among them."""
    first_timestamp: str | None
    last_timestamp: str | None

    @property
    def rows_rejected(self) -> int:
        return self.rows_read - self.rows_kept

    def rejected_by_reason(self) -> dict[str, int]:
        """Reason -> rows, whatever the field."""
        counts: Counter[str] = Counter()
        for count in self.rejected:
            counts[count.reason] += count.rows
        return dict(counts)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"rows_rejected": self.rows_rejected, "rejected_by_reason": self.rejected_by_reason()}

    def lines(self) -> list[str]:
        """The report for a person."""
        files = f"{self.files:,} file" + ("s" if self.files != 1 else "")
        lines = [f"{self.rows_read:,} rows read from {files}, {self.rows_kept:,} kept, {self.rows_rejected:,} rejected"]
        lines += [f"  {line}" for line in map(reject_line, self.rejected)]
        if self.rejects_file:
            lines.append(f"  rejected rows, each with its reason: {self.rejects_file}")
        if self.first_timestamp:
            lines.append(f"from {self.first_timestamp} to {self.last_timestamp}")
        lines.append(f"{len(self.models):,} models: " + _most((m.model, m.rows) for m in self.models))
        if self.segments:
            lines.append(f"{len(self.segments):,} segments: " + _most(self.segments.items()))
        if self.success_unknown:
            lines.append(f"{self.success_unknown:,} rows have no known success")
        if self.nan_read_as_null:
            found = ", ".join(f"{name} {count:,}" for name, count in self.nan_read_as_null.items())
            lines.append(f"NaN was read as unknown: {found}")
        if self.empty_files:
            lines.append(f"empty: {', '.join(self.empty_files)}")
        if self.unknown_columns:
            lines.append(f"columns not used: {', '.join(self.unknown_columns)}")
        return lines + list(self.hints)


def reject_line(count: RejectCount) -> str:
    """One reason in words, with its first example."""
    return (
        f"{count.rows:,} {count.reason}: `{count.field}` must be {count.expected}; "
        f"first: {count.first_file} row {count.first_row}, found {count.first_value}"
    )


class Tally:
    """Counts while the table streams by."""

    def __init__(self) -> None:
        self.files = 0
        self.rows_read = 0
        self.rows_kept = 0
        self.empty_files: list[str] = []
        self.unknown_columns: dict[str, None] = {}
        self.hints: dict[str, None] = {}
        self.nan: Counter[str] = Counter()
        self.rejects_file: str | None = None
        self._rejected: dict[Fault, tuple[int, str, int, str]] = {}
        self._models: dict[str, tuple[int, int, float]] = {}
        self._segments: Counter[str] = Counter()
        self._span: tuple[int, int] | None = None

    def note_columns(self, header: Header) -> None:
        """Remember columns that are not used, and slips among their names."""
        fresh = [name for name in header.unused() if name not in self.unknown_columns]
        self.unknown_columns |= dict.fromkeys(fresh)
        for name in fresh:
            if near := header.near(name):
                self.hints[f"column `{name}` is not used; did you mean `{near}`?"] = None

    def reject(self, fault: Fault, file: str, row: int, value: str) -> None:
        """Count one row left out."""
        count, *first = self._rejected.get(fault, (0, file, row, value))
        self._rejected[fault] = (count + 1, *first)  # type: ignore[assignment]

    def keep(self, batch: pa.RecordBatch) -> None:
        """Count valid rows of the outcome table."""
        self.rows_kept += len(batch)
        table = pa.table({"model": batch["model"], "success": batch["success"]})
        sums = table.group_by("model").aggregate([("success", "count"), ("success", "sum"), ([], "count_all")])
        for row in sums.to_pylist():
            rows, known, total = self._models.get(row["model"], (0, 0, 0.0))
            self._models[row["model"]] = (
                rows + row["count_all"],
                known + row["success_count"],
                total + (row["success_sum"] or 0.0),
            )
        for entry in batch["segment"].drop_null().value_counts().to_pylist():
            self._segments[entry["values"]] += entry["counts"]
        times = pc.min_max(batch["timestamp"].cast(pa.int64())).as_py()
        if times["min"] is not None:
            low, high = self._span or (times["min"], times["max"])
            self._span = (min(low, times["min"]), max(high, times["max"]))

    def report(self) -> ReadReport:
        """The counts so far."""
        models = [
            ModelRows(name, rows, known, total / known if known else None)
            for name, (rows, known, total) in sorted(self._models.items())
        ]
        rejected = [
            RejectCount(fault.reason, fault.field, fault.expected, rows, file, row, value)
            for fault, (rows, file, row, value) in self._rejected.items()
        ]
        return ReadReport(
            files=self.files,
            rows_read=self.rows_read,
            rows_kept=self.rows_kept,
            rejected=tuple(sorted(rejected, key=lambda count: -count.rows)),
            rejects_file=self.rejects_file,
            success_unknown=sum(m.rows - m.known for m in models),
            nan_read_as_null=dict(self.nan),
            empty_files=tuple(self.empty_files),
            unknown_columns=tuple(self.unknown_columns),
            hints=tuple(self.hints),
            models=tuple(models),
            segments=dict(self._segments.most_common()),
            first_timestamp=_iso(self._span[0]) if self._span else None,
            last_timestamp=_iso(self._span[1]) if self._span else None,
        )


def check_not_empty(report: ReadReport) -> None:
    """InputError when no row was read, or none of them was valid."""
    if not report.rows_read:
        empty = ", ".join(report.empty_files)
        raise InputError(f"no row to read: {empty} is empty or a header alone; expected a row per request and model")
    if not report.rows_kept:
        reasons = "; ".join(map(reject_line, report.rejected))
        where = f"; all of them: {report.rejects_file}" if report.rejects_file else ""
        raise InputError(f"none of the {report.rows_read:,} rows is valid: {reasons}{where}")


def _most(counts: Iterable[tuple[str, int]]) -> str:
    ranked = sorted(counts, key=lambda pair: (-pair[1], pair[0]))
    listed = ", ".join(f"{name} ({rows:,})" for name, rows in ranked[:_LISTED])
    return listed + (f" and {len(ranked) - _LISTED:,} more" if len(ranked) > _LISTED else "")


def _iso(time_us: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).isoformat(timespec="seconds")
