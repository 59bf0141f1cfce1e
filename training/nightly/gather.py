"""The first stage: journal and imported logs as one outcome table, joined anew, cut to the history asked for.

Every night joins all closed segments again. So a night that was missed is caught up, and an outcome
that was reported late finds its decision, without anything to remember from one night to the next;
the journal's own retention bounds the work.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from router_ml.errors import InputError
from training.ingest import ingest_journal
from training.nightly.inputs import Inputs, NightlySettings
from training.outcomes import OutcomeReader, read_outcomes, write_outcomes
from training.sources import REJECTS_SUFFIX

OUTCOMES = "outcomes.parquet"
_DAY_US = 86_400_000_000


def gather(inputs: Inputs, settings: NightlySettings, folder: Path, since_us: int | None) -> dict[str, Any]:
    """Write `OUTCOMES` into `folder`; returns what was read, left out and kept, by day.

    `since_us` is the newest row of the last night, after which rows are new; None, or nothing later: those of the
    newest day are. InputError: inputs that cannot be
    read, or no row left.
    """
    with tempfile.TemporaryDirectory(prefix=".gather-", dir=folder) as scratch:
        tables, told = _tables(inputs, settings, folder, Path(scratch))
        newest = max((found for found in map(_newest_us, tables) if found is not None), default=None)
        if newest is None:
            raise InputError(
                "no row has a `timestamp`, and a night splits by time: add the column to the logs, or use `train`"
            )
        keep = _Keep(newest - settings.days * _DAY_US, frozenset(settings.left_out_days))
        both = read_outcomes(tables)
        n_rows = write_outcomes(folder / OUTCOMES, keep.batches(both))
        told["repeated"] = both.report.rows_rejected
    if not n_rows:
        raise InputError(
            f"no row is left to learn from: of the last {settings.days} days all were left out; "
            "see --days and --leave-out-day"
        )
    since_us = None if since_us is None or since_us >= newest else since_us
    return (
        told
        | {"rows": n_rows, "left_out": dict(keep.left_out), "newest_us": newest, "since_us": since_us}
        | {"by_day": _by_day(folder / OUTCOMES)}
    )


def _tables(
    inputs: Inputs, settings: NightlySettings, folder: Path, scratch: Path
) -> tuple[list[Path], dict[str, Any]]:
    tables: list[Path] = []
    told: dict[str, Any] = {"journal": None, "logs": None, "rows_read": 0, "rows_rejected": 0}
    if inputs.logs:
        rejects = folder / f"logs{REJECTS_SUFFIX}"
        reader = read_outcomes(inputs.logs, prompt_column=settings.train.prompt_column, rejects=rejects)
        write_outcomes(scratch / "logs.parquet", reader.batches())
        tables.append(scratch / "logs.parquet")
        told["logs"] = reader.report.to_dict()
        told["rows_read"] += reader.report.rows_read
        told["rows_rejected"] += reader.report.rows_rejected
    if inputs.segments:
        report = ingest_journal(inputs.segments, folder / "journal")
        tables.append(report.table.replace(scratch / "journal.parquet"))
        told["journal"] = report.to_dict()
        told["rows_read"] += report.n_rows + sum(report.rejected.values())
        told["rows_rejected"] += sum(report.rejected.values())
    return tables, told


class _Keep:
    """Lets pass the rows of the days asked for, and counts the others."""

    def __init__(self, from_us: int, without: frozenset[str]) -> None:
        self._from_us = from_us
        self._without = pa.array(sorted(without), pa.string())
        self.left_out: Counter[str] = Counter()

    def batches(self, reader: OutcomeReader) -> Iterator[pa.RecordBatch]:
        for batch in reader.batches():
            times = batch.column("timestamp")
            micros = times.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
            untimed, old = micros < 0, (micros >= 0) & (micros <= self._from_us)
            unwanted = _days(times, self._without)
            self.left_out["without a timestamp"] += int(untimed.sum())
            self.left_out["older than the history asked for"] += int(old.sum())
            self.left_out["of days to leave out"] += int((unwanted & ~old).sum())
            yield batch.filter(pa.array(~(untimed | old | unwanted)))


def _days(times: pa.Array, names: pa.Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    found = pc.is_in(pc.strftime(times, format="%Y-%m-%d"), value_set=names)
    return np.asarray(found.fill_null(False).to_numpy(zero_copy_only=False))


def _newest_us(path: Path) -> int | None:
    newest = pc.max(pq.read_table(path, columns=["timestamp"])["timestamp"])
    return None if not newest.is_valid else int(newest.cast(pa.int64()).as_py())


def _by_day(path: Path) -> list[dict[str, Any]]:
    """Rows, known outcomes and their mean of each day, in order."""
    table = pq.read_table(path, columns=["timestamp", "success"])
    day = table["timestamp"].cast(pa.int64()).to_numpy() // _DAY_US
    success = table["success"].cast(pa.float64()).fill_null(np.nan).to_numpy()
    found = []
    for number in np.unique(day):
        known = success[(day == number) & ~np.isnan(success)]
        found.append(
            {
                "day": datetime.fromtimestamp(int(number) * 86_400, UTC).strftime("%Y-%m-%d"),
                "rows": int((day == number).sum()),
                "known": len(known),
                "success": float(known.mean()) if len(known) else None,
            }
        )
    return found
