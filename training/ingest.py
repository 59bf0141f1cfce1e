"""From a journal of decisions and outcomes to an outcome table.

The journal is read twice. First its outcomes go into a throw-away database on
disk, then its decisions pass by, each looks up its own, and rows are written a
batch at a time: memory stays bounded whatever the journal's size, and the disk
needs room for the outcomes (without prompts) beside the table.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
from google.protobuf import json_format

from router_ml.errors import InputError, RequestError
from router_ml.records import RecordKind, outcome_report
from router_ml.segments import BadLine, journal_files, read_records
from router_ml.v1 import log_pb2
from training.joined import join
from training.outcomes import OUTCOME_SCHEMA, write_outcomes
from training.sources import REJECTS_SUFFIX

_TABLE = "journal.parquet"
_REJECTS = "journal" + REJECTS_SUFFIX
_BATCH_ROWS = 4096
_BATCH_CHARS = 16 << 20


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What became of a journal."""

    table: Path
    rejects: Path | None
    """JSON lines of what was left out, with a `reason` each; None when nothing was."""
    n_files: int
    n_decisions: int
    """Distinct decisions that gave rows."""
    n_rows: int
    n_without_outcome: int
    """Decisions of which nothing was reported; their rows have a null success."""
    n_repeated: int
    """Decisions found again, as in a segment that was given twice; only the first counts."""
    n_torn: int
    """Last lines cut off where a process died."""
    n_lost: int
    """Decisions that the journal itself tells to be lost."""
    n_unknown_losses: int
    """Processes that died without telling: each lost at most the decisions of one flush interval."""
    n_withheld: int
    """Decisions left out because the redaction of their prompts failed."""
    rejected: Mapping[str, int]
    """Reason -> number of lines and records left out for it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        paths = {"table": str(self.table), "rejects": None if self.rejects is None else str(self.rejects)}
        return asdict(self) | paths

    def lines(self) -> list[str]:
        """The report for a person."""
        told = [
            f"{self.table}: {self.n_rows:,} rows of {self.n_decisions:,} decisions in {self.n_files:,} segments; "
            f"of {self.n_without_outcome:,} decisions no outcome was reported"
        ]
        if self.n_repeated:
            told.append(f"{self.n_repeated:,} decisions stood in the journal more than once and were taken once")
        if self.n_torn:
            told.append(f"{self.n_torn:,} last lines were cut off where a process died")
        if self.n_lost:
            told.append(f"{self.n_lost:,} decisions were made but lost before they were on disk")
        if self.n_unknown_losses:
            told.append(
                f"{self.n_unknown_losses:,} processes died without telling how many decisions of their last flush "
                "interval were lost"
            )
        if self.n_withheld:
            told.append(f"{self.n_withheld:,} decisions left out: their prompts could not be redacted")
        told += [f"{count:,} left out: {reason}" for reason, count in sorted(self.rejected.items())]
        if self.rejects is not None:
            told.append(f"what was left out stands in {self.rejects}")
        return told


def ingest_journal(source: str | Path | Iterable[str | Path], out: Path) -> IngestReport:
    """Join the outcomes of a journal folder, or of segment files, to its decisions; write the table into folder `out`.

    One row per decision and model that answered (see `joined`). The table
    appears in `out` whole or not at all, in place of that of an earlier call,
    and beside it a file of what was left out. InputError when the journal
    holds no decision, or `out` cannot be written.
    """
    sources = [Path(path) for path in ([source] if isinstance(source, str | Path) else source)]
    if out.resolve() in {path.resolve() for path in sources}:
        raise InputError(f"{out}: is the journal itself; name another folder for the table")
    files = journal_files(sources)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".ingest-", dir=out) as scratch:
            return _Ingest(files, Path(scratch)).run(out)
    except (OSError, sqlite3.OperationalError) as error:
        raise InputError(
            f"{out}: the table cannot be written there ({error}); make room or name another folder"
        ) from None


class _Outcomes:
    """Outcome records on disk, by the decision they belong to."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        # Nothing here outlives the call, so nothing needs to be safe on disk.
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE outcomes (decision_id TEXT, time INTEGER, record BLOB)")
        self._database.execute("CREATE TABLE decisions (decision_id TEXT PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def add(self, outcome: log_pb2.OutcomeRecord) -> None:
        row = (outcome.decision_id, outcome.time_unix_micros, outcome.SerializeToString())
        self._database.execute("INSERT INTO outcomes VALUES (?, ?, ?)", row)

    def index(self) -> None:
        self._database.execute("CREATE INDEX by_decision ON outcomes (decision_id, time)")

    def is_first(self, decision_id: str) -> bool:
        """Whether this decision was not seen before; it is from now on."""
        return self._database.execute("INSERT OR IGNORE INTO decisions VALUES (?)", (decision_id,)).rowcount == 1

    def of(self, decision_id: str) -> list[log_pb2.OutcomeRecord]:
        """In the order they were reported."""
        query = "SELECT record FROM outcomes WHERE decision_id = ? ORDER BY time, rowid"
        return [_outcome(record) for (record,) in self._database.execute(query, (decision_id,))]

    def orphans(self) -> Iterator[log_pb2.OutcomeRecord]:
        """Outcomes whose decision was never seen."""
        query = (
            "SELECT record FROM outcomes WHERE decision_id NOT IN (SELECT decision_id FROM decisions) ORDER BY rowid"
        )
        return (_outcome(record) for (record,) in self._database.execute(query))

    def close(self) -> None:
        self._database.close()


class _Ingest:
    """One call of `ingest_journal`: its counts, and the files it writes before they are put in place."""

    def __init__(self, files: list[Path], scratch: Path) -> None:
        self._files = files
        self._scratch = scratch
        self._rejects: TextIO
        self._rejected: Counter[str] = Counter()
        self._n_decisions = self._n_rows = self._n_without = self._n_repeated = self._n_torn = self._n_withheld = 0
        self._losses: dict[tuple[str, int], log_pb2.LossRecord] = {}
        """One read twice counts once."""

    def run(self, out: Path) -> IngestReport:
        outcomes = _Outcomes(self._scratch / "outcomes.sqlite")
        try:
            with (self._scratch / _REJECTS).open("w", encoding="utf-8") as self._rejects:
                self._collect(outcomes)
                write_outcomes(self._scratch / _TABLE, self._batches(outcomes))
                for orphan in outcomes.orphans():
                    self._reject("an outcome without its decision", outcome=orphan)
        finally:
            outcomes.close()
        if not self._n_decisions:
            raise InputError(self._nothing())
        return self._put(out)

    def _collect(self, outcomes: _Outcomes) -> None:
        for record in read_records(self._files, only=(RecordKind.OUTCOME, RecordKind.LOSS), on_bad_line=self._bad_line):
            if record.HasField("loss"):
                self._losses[record.loss.writer, record.loss.last_number] = record.loss
                continue
            try:
                outcome_report(record.outcome)
            except RequestError as error:
                self._reject("an outcome out of range", detail=str(error), outcome=record.outcome)
            else:
                outcomes.add(record.outcome)
        outcomes.index()

    def _batches(self, outcomes: _Outcomes) -> Iterator[pa.RecordBatch]:
        rows: list[dict[str, Any]] = []
        n_chars = 0
        for record in read_records(self._files, only=(RecordKind.DECISION,), on_bad_line=self._bad_decision):
            for row in self._rows(record.decision, outcomes):
                rows.append(row)
                n_chars += len(row["prompt"] or row["messages"] or "")
            if len(rows) >= _BATCH_ROWS or n_chars >= _BATCH_CHARS:
                yield pa.RecordBatch.from_pylist(rows, schema=OUTCOME_SCHEMA)
                rows, n_chars = [], 0
        yield pa.RecordBatch.from_pylist(rows, schema=OUTCOME_SCHEMA)

    def _rows(self, decision: log_pb2.DecisionRecord, outcomes: _Outcomes) -> Sequence[dict[str, Any]]:
        if decision.request.withheld:
            self._n_withheld += outcomes.is_first(decision.decision_id)
            return ()
        try:
            joined = join(decision, outcomes.of(decision.decision_id))
        except InputError as error:
            self._reject("a decision out of range", detail=str(error), decision=decision)
            return ()
        if not outcomes.is_first(decision.decision_id):
            self._n_repeated += 1
            return ()
        for left in joined.left_out:
            self._reject(left.reason, detail=left.detail, outcome=left.outcome)
        self._n_decisions += 1
        self._n_without += not joined.is_answered
        self._n_rows += len(joined.rows)
        return joined.rows

    def _bad_line(self, bad: BadLine) -> None:
        if bad.torn:
            self._n_torn += 1
        else:
            self._reject("a line that is no record", detail=bad.reason, file=str(bad.path), line=bad.line)

    def _bad_decision(self, bad: BadLine) -> None:
        if bad.kind is RecordKind.DECISION:  # the first reading told of the lines whose kind is unknown
            self._bad_line(bad)

    def _reject(self, reason: str, **what: Any) -> None:
        self._rejected[reason] += 1
        told = {name: _plain(value) for name, value in what.items()}
        self._rejects.write(json.dumps({"reason": reason} | told, ensure_ascii=False) + "\n")

    def _nothing(self) -> str:
        names = ", ".join(map(str, self._files[:3])) + (", ..." if len(self._files) > 3 else "")
        found = f"{sum(self._rejected.values())} lines or records were left out" if self._rejected else "it is empty"
        if not self._files:
            return "the folder holds no segment of a journal (`.jsonl`, `.jsonl.open`); name the one the server writes"
        return f"no decision was found in {names} ({found}); name the journal that the server writes"

    def _put(self, out: Path) -> IngestReport:
        """The finished files to their place; a rejects file of an earlier call goes."""
        rejects = out / _REJECTS if self._rejected else None
        if rejects is None:
            (out / _REJECTS).unlink(missing_ok=True)
        else:
            os.replace(self._scratch / _REJECTS, rejects)
        os.replace(self._scratch / _TABLE, out / _TABLE)
        return IngestReport(
            table=out / _TABLE,
            rejects=rejects,
            n_files=len(self._files),
            n_decisions=self._n_decisions,
            n_rows=self._n_rows,
            n_without_outcome=self._n_without,
            n_repeated=self._n_repeated,
            n_torn=self._n_torn,
            n_lost=sum(loss.decisions for loss in self._losses.values()),
            n_unknown_losses=sum(not loss.HasField("decisions") for loss in self._losses.values()),
            n_withheld=self._n_withheld,
            rejected=dict(self._rejected),
        )


def _plain(value: Any) -> Any:
    if isinstance(value, log_pb2.OutcomeRecord | log_pb2.DecisionRecord):
        return json_format.MessageToDict(value, preserving_proto_field_name=True)
    return value


def _outcome(record: bytes) -> log_pb2.OutcomeRecord:
    return log_pb2.OutcomeRecord.FromString(record)
